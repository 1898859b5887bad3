"""The queueing model behind the capacity table, against what theory and arithmetic say."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import capacity
from benchmarks.capacity import Replica


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_without_batching_the_mean_wait_is_that_of_pollaczek_and_khinchine(load: float) -> None:
    """M/D/1: the mean wait is load * service / (2 (1 - load))."""
    service = 0.02
    replica = Replica(((1, service),), overhead=0.0)
    took = capacity.simulate(replica, load / service, 5_000.0, random.Random(0))
    expected = service + load * service / (2 * (1 - load))
    assert sum(took) / len(took) == pytest.approx(expected, rel=0.03)


def test_batches_carry_a_rate_that_single_requests_cannot() -> None:
    alone = Replica(((1, 0.05),), overhead=0.0)
    batched = Replica(((1, 0.05), (8, 0.1)), overhead=0.0)
    assert alone.capacity == pytest.approx(20) and batched.capacity == pytest.approx(80)
    assert capacity.latency(batched, 40, 100, 0.99, 1) < 0.3
    assert capacity.latency(alone, 40, 100, 0.99, 1) > 10  # twice what it can do: a growing queue


def test_batch_times_between_measured_ones_lie_on_a_line() -> None:
    replica = Replica(((1, 1.0), (2, 3.0), (6, 5.0)), overhead=0.0)
    assert [replica.seconds(size) for size in (1, 2, 3, 4, 6)] == [1.0, 3.0, 3.5, 4.0, 5.0]
    assert replica.max_batch_size == 6


def test_overhead_delays_a_request_and_nobody_else() -> None:
    fast = Replica(((1, 0.02), (4, 0.04)), overhead=0.0)
    slow = Replica(fast.batch_seconds, overhead=0.5)
    took = [capacity.simulate(replica, 40, 50, random.Random(3)) for replica in (fast, slow)]
    pairs = zip(*took, strict=True)
    assert all(after - before == pytest.approx(0.5) for before, after in pairs)


def test_the_answer_is_the_smallest_number_that_keeps_the_promise() -> None:
    replica = Replica(((1, 0.03), (8, 0.2)), overhead=0.01)
    for rate in (10, 100, 1000):
        count = capacity.replicas_for(replica, rate, 0.3)
        enough = capacity.latency(replica, rate / count, 600, 0.99, 1)
        assert enough <= 0.3 and rate / count < replica.capacity
        if count > 1:
            fewer = rate / (count - 1)
            assert fewer >= replica.capacity or capacity.latency(replica, fewer, 600, 0.99, 1) > 0.3
    assert capacity.replicas_for(replica, 100, 0.15) > capacity.replicas_for(replica, 100, 1.0)


def test_a_promise_that_no_number_can_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="not more replicas"):
        capacity.replicas_for(Replica(((1, 0.5),), overhead=0.1), 1, 0.55)


def test_quantiles_are_observed_values() -> None:
    times = [float(value) for value in range(1, 101)]
    assert capacity.quantile(times, 0.99) == 99 and capacity.quantile(times, 0.5) == 50
    assert capacity.quantile([], 0.5) == math.inf


# -- from measurements ------------------------------------------------------------------------

INFERENCE = {
    "machine": "a machine",
    "model": "a model",
    "rows": [{"batch": 1, "p50_ms": 40.0}, {"batch": 8, "p50_ms": 200.0}],
}
SERVING = {
    "machine": "a machine",
    "closed": {"answered_per_second": 32.0},
    "unloaded_milliseconds": {"client": 52.0, "inference": 40.0},
    "open": [
        {"rate": rate, "seconds": 20.0, "milliseconds": {"p50": 60.0, "p99": 150.0}}
        for rate in (8.0, 64.0)
    ],
}


def test_a_replica_reaches_the_measured_maximum_and_the_unloaded_time() -> None:
    replica = capacity.measured_replica(INFERENCE, SERVING)
    assert replica.capacity == pytest.approx(32.0)
    assert replica.seconds(1) + replica.overhead == pytest.approx(0.052)


def test_loads_beyond_saturation_are_not_compared() -> None:
    rows = capacity.compare(capacity.measured_replica(INFERENCE, SERVING), SERVING)
    assert [row["rate"] for row in rows] == [8.0]
    assert rows[0]["measured_p99"] == 0.15
    assert 0.052 <= rows[0]["model_p50"] < rows[0]["model_p99"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": "another"}, "two machines"),
        ({"rows": [{"batch": 2, "p50_ms": 1.0}]}, "from one pair up"),
        (
            {"rows": [{"batch": 1, "p50_ms": 1.0}, {"batch": 1, "p50_ms": 2.0}]},
            "measure one precision",
        ),
    ],
)
def test_measurements_that_do_not_belong_together_are_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        capacity.measured_replica({**INFERENCE, **change}, SERVING)


def test_the_command_prints_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, content in (("inference", INFERENCE), ("serving", SERVING)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        files.append(str(path))
    assert capacity.main(files) == 0
    assert "| 8.0 |" in capsys.readouterr().out
    assert capacity.main([*files, "--rate", "20", "200", "--p99", "0.2", "0.5"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "| 200 |" in line]
    assert len(rows) == 1 and int(rows[0][2]) >= int(rows[0][3]) >= 7
    assert capacity.main([*files, "--rate", "20", "--p99", "0.01"]) == 2
