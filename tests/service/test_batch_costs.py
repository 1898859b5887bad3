"""What the service expects of a batch before it has run."""

from __future__ import annotations

import pytest

from service.batch_costs import BatchCosts


def test_nothing_known_is_a_guess_that_grows_with_the_size() -> None:
    costs = BatchCosts()
    assert 0 < costs.seconds(1) < costs.seconds(8)


def test_sizes_are_learnt_apart_and_others_are_scaled_from_the_nearest() -> None:
    costs = BatchCosts()
    costs.observe(1, 0.010)
    costs.observe(8, 0.040)
    assert costs.seconds(1) == pytest.approx(0.010)
    assert costs.seconds(8) == pytest.approx(0.040)
    assert costs.seconds(16) == pytest.approx(0.080)
    assert costs.seconds(7) == pytest.approx(0.035)


def test_the_newest_count_more_but_one_outlier_does_not_rule() -> None:
    costs = BatchCosts()
    for _ in range(20):
        costs.observe(4, 0.04)
    costs.observe(4, 4.0)
    assert 0.04 < costs.seconds(4) < 1.0
    for _ in range(40):
        costs.observe(4, 0.02)
    assert costs.seconds(4) == pytest.approx(0.02, rel=0.05)


def test_a_queue_drains_in_full_batches_and_a_remainder() -> None:
    costs = BatchCosts()
    costs.observe(8, 0.08)
    costs.observe(2, 0.04)
    assert costs.drain_seconds(18, 8) == pytest.approx(0.08 + 0.08 + 0.04)
    assert costs.drain_seconds(0, 8) == 0.0
