"""The watchdog barks once, for what outstays its limit, and for nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from service.watchdog import Watchdog

PATIENCE = 30.0


class Kennel:
    """A watchdog in its thread, and what it said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.watchdog = Watchdog(self.said.append)
        self.thread = threading.Thread(target=self.watchdog.watch, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.watchdog.end()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@pytest.fixture
def kennel() -> Iterator[Kennel]:
    made = Kennel()
    yield made
    made.close()


def test_it_barks_at_what_takes_too_long(kennel: Kennel) -> None:
    with kennel.watchdog.limit("a batch", 0.05):
        kennel.thread.join(PATIENCE)
    assert kennel.said == ["a batch took more than 0.05 s"]


def test_work_that_ends_in_time_is_never_barked_at(kennel: Kennel) -> None:
    for _ in range(50):
        with kennel.watchdog.limit("quick", PATIENCE), kennel.watchdog.limit("nested", PATIENCE):
            pass
    assert kennel.said == []
    assert kennel.thread.is_alive()


def test_limits_without_an_end_do_not_hide_a_short_one(kennel: Kennel) -> None:
    """The short limit is entered while the thread sleeps for the long one."""
    with kennel.watchdog.limit("for ever", float("inf")):
        wait_asleep(kennel)
        with kennel.watchdog.limit("short", 0.05):
            kennel.thread.join(PATIENCE)
    assert kennel.said == ["short took more than 0.05 s"]


def test_an_earlier_deadline_wins_whatever_was_entered_first(kennel: Kennel) -> None:
    with kennel.watchdog.limit("long", PATIENCE):
        wait_asleep(kennel)
        with kennel.watchdog.limit("short", 0.05):
            kennel.thread.join(PATIENCE / 2)
    assert kennel.said == ["short took more than 0.05 s"]


def test_exceptions_leave_the_limit(kennel: Kennel) -> None:
    with pytest.raises(KeyError), kennel.watchdog.limit("failing", 0.2):
        raise KeyError
    end = time.monotonic() + 0.4
    kennel.thread.join(end - time.monotonic())
    assert kennel.said == []


def wait_asleep(kennel: Kennel) -> None:
    """Until the thread waits on its condition, which it does without the lock."""
    end = time.monotonic() + PATIENCE
    while not kennel.watchdog._changed._waiters:  # type: ignore[attr-defined]
        assert time.monotonic() < end
        time.sleep(0.001)
