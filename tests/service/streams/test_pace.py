"""When the next frame is launched: as late as the model allows. No clock, no sleeping."""

from __future__ import annotations

import pytest

from service.stream_pace import Pace


def test_nothing_is_known_at_first() -> None:
    assert Pace().next_launch(10.0) is None


def test_next_is_ready_just_before_the_model_is_free() -> None:
    pace = Pace()
    pace.observe(launched_at=0.0, prepared=0.01, left_at=0.11)  # 0.1 s at the model
    launch = pace.next_launch(1.0)  # of one that reaches an idle model at 1.01
    assert launch is not None
    assert 0.01 < 1.11 - launch < 0.03


def test_frame_that_queued_behind_another_counts_from_when_that_left() -> None:
    pace = Pace()
    pace.observe(launched_at=0.0, prepared=0.01, left_at=0.11)
    pace.observe(launched_at=0.05, prepared=0.01, left_at=0.21)  # 0.1 s as well, not 0.15
    launch = pace.next_launch(0.15)  # reaches the model when the one before leaves: 0.21
    assert launch is not None
    assert 0.01 < 0.31 - launch < 0.03


def test_early_rather_than_late() -> None:
    """The shortest stay and the longest preparation of the last eight count."""
    pace, now = Pace(), 0.0
    for stay, prepared in ((0.08, 0.01), (0.2, 0.01), (0.12, 0.03)):
        pace.observe(now, prepared, now + prepared + stay)
        now += 1.0
    launch = pace.next_launch(now)
    assert launch is not None
    assert launch == pytest.approx(now + 0.03 + 0.08 - 1.5 * 0.03 - 0.002)
    for _ in range(8):
        pace.observe(now, 0.01, now + 0.01 + 0.2)
        now += 1.0
    launch = pace.next_launch(now)
    assert launch == pytest.approx(now + 0.01 + 0.2 - 1.5 * 0.01 - 0.002)
