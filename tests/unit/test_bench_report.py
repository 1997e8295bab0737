"""The benchmark harness: what a line says and which value stands for the worst."""

from __future__ import annotations

import json
from pathlib import Path

from bench.report import Context, Measurement, percentile, render_line, run_case, worst_1_percent
from kvfs.clock import ManualClock


def test_a_line_carries_every_promised_field_and_the_ratio_to_its_floor() -> None:
    measured = Measurement(
        unit="GB/s", samples=[2.0, 4.0, 3.0], params={"size": 1}, floor=[6.0], floor_name="memcpy"
    )
    line = json.loads(render_line("codec::bench_x__y", measured, "abc", "box"))
    assert line["median"] == 3.0
    assert line["n"] == 3
    assert line["ratio_to_floor"] == 0.5
    assert line["floor"] == {"name": "memcpy", "median": 6.0}
    assert {"case", "params", "p99", "unit", "commit", "machine"} <= set(line)


def test_p99_is_the_slow_end_for_durations_and_for_throughput() -> None:
    samples = [float(number) for number in range(1, 201)]
    assert worst_1_percent(Measurement(unit="us", samples=samples)) == 198.0
    assert worst_1_percent(Measurement(unit="GB/s", samples=samples)) == 3.0


def test_percentile_of_one_sample_is_that_sample() -> None:
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([1.0, 2.0], 0.5) == 1.0


def test_a_case_may_return_one_measurement_or_many(tmp_path: Path) -> None:
    context = Context(directory=tmp_path, clock=ManualClock())
    one = list(run_case("one", lambda _: Measurement("s", [1.0]), context, "c", "m"))
    two = list(run_case("two", lambda _: [Measurement("s", [1.0])] * 2, context, "c", "m"))
    assert (len(one), len(two)) == (1, 2)


def test_times_are_read_from_the_given_clock_and_warmup_is_not_counted(tmp_path: Path) -> None:
    clock = ManualClock()
    context = Context(directory=tmp_path, clock=clock)
    assert context.times_s(lambda: clock.advance(0.5), 3, warmup=2) == [0.5, 0.5, 0.5]
