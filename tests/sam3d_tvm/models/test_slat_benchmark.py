"""The benchmark of the structured-latent generator, on the tiny one: its cases are checked, a run is added up."""

import io

import pytest

pytest.importorskip("spconv")

from rich.console import Console

from benchmarks import harness, slat
from benchmarks.harness import Benchmark, Options
from tests.sam3d_tvm.tiny import CONFIG

WORK = slat.Workload(CONFIG, 5, "airplane_64")


@pytest.fixture
def bench(monkeypatch) -> Benchmark:
    monkeypatch.setattr(harness, "QUICK", (0.0, 1, 1))
    monkeypatch.setattr(harness, "QUICK_SECONDS", float("inf"))
    return Benchmark("slat", Options(quick=True), Console(file=io.StringIO(), width=140))


def test_a_run_is_added_up_from_its_calls(bench):
    models = slat.Models(WORK)
    for kind in ("velocity", "guided_step"):
        bench.run(kind, lambda kind=kind: slat.call_case(models, "float32", kind))
    for kind in ("prepare", "schedule"):
        bench.run(kind, lambda kind=kind: slat.once_case(models, "float32", kind))
    assert not bench.failures
    slat.print_marks(bench)
    row = {row["case"]: row["ours_ms"] / 1e3 for row in bench.rows}
    (guided,) = (found for found in bench.rows if found["case"] == "guided_step")
    expected = row["prepare"] + row["schedule"] + 13 * row["guided_step"] + 12 * row["velocity"]
    assert guided["run_s"] == pytest.approx(expected)
    assert "13 guided steps + 12 others" in bench.console.file.getvalue()
    assert bench.rows[0]["weights_mb"] > 0.1 and bench.rows[0]["context_mb"] == pytest.approx(2 * 2 * 5 * 48 * 4 / 1e6)


def test_a_wrong_velocity_is_not_timed(bench, monkeypatch):
    monkeypatch.setattr(slat.Ours, "velocity", lambda self, conditional=True: 1.01 * self.work.noise)
    bench.run("velocity", lambda: slat.call_case(slat.Models(WORK), "float32", "velocity"))
    assert not bench.rows and "max error above" in bench.failures[0]


def test_a_saving_is_compared_with_its_absence(bench):
    row = bench.run("saving", lambda: slat.saving_case(slat.Models(WORK), "shared_start"))
    assert row["ratios"]["without"] > 0 and not bench.failures


def test_arithmetic_is_counted():
    """By hand for one block: pairs of three convolutions of widths 16 and 48, products of the transformer."""
    rows = len(slat.unique.naive(WORK.coords, (2, 2, 2))[0])
    more = slat.Workload(slat.replace(CONFIG, num_blocks=CONFIG.num_blocks + 1), 5, "airplane_64")
    block = 2.0 * rows * (3 * 48 * 48 + 48 * 48 + 2 * 48 * 48 + 2 * 48 * 192 + 2 * 48 * (rows + 5))
    assert more.flops - WORK.flops == block
