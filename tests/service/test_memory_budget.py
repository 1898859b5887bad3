"""What bodies may take together, and what becomes of it when a request ends."""

from __future__ import annotations

import pytest

from service.errors import ClientGone, QueueFull
from service.memory_budget import MemoryBudget, MemoryShare


def test_all_shares_together_are_bounded() -> None:
    budget = MemoryBudget(10)
    first, second = MemoryShare(budget), MemoryShare(budget)
    first.take(6)
    second.take(4)
    with pytest.raises(QueueFull):
        second.take(1)
    first.release()
    second.take(6)
    with pytest.raises(QueueFull):
        MemoryShare(budget).take(1)


def test_a_refused_piece_is_not_counted() -> None:
    budget = MemoryBudget(10)
    share = MemoryShare(budget)
    with pytest.raises(QueueFull):
        share.take(11)
    share.take(10)
    share.release()
    MemoryShare(budget).take(10)


def test_who_works_on_after_the_end_takes_nothing() -> None:
    """A thread cannot be cancelled with its request; what it took then would never come back."""
    budget = MemoryBudget(10)
    share = MemoryShare(budget)
    share.release()
    with pytest.raises(ClientGone):
        share.take(1)
    MemoryShare(budget).take(10)
