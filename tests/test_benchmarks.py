"""The benchmarks' machinery: what they refuse to report, the JSON they write, their oracles, and the measured peak.

No test here says how fast anything is.
"""

import io
import json

import numpy as np
import pytest
import tvm
from rich.console import Console
from tvm.script import tirx as T
from tvm.tirx import compilation_pipeline

from benchmarks import harness, oracle, scaling, sparse_conv
from benchmarks.harness import Benchmark, Case, Options, Peer, WrongResult
from tests.instruction_sets import INTEGER_ISAS, ISAS
from tests.tolerance import compare
from tir_kernels import script
from tir_kernels.cpu import bandwidth, peak
from tir_kernels.cpu.int8_linear import Form
from tir_kernels.cpu.isa import Isa, host_target
from tir_kernels.spec import kernel_map, sites

HOST = Isa.of(host_target())


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    """Timing says nothing here, so one round is enough."""
    monkeypatch.setattr(harness, "QUICK", (0.0, 1, 1))
    monkeypatch.setattr(harness, "QUICK_SECONDS", float("inf"))


def benchmark(**options) -> Benchmark:
    return Benchmark("test", Options(quick=True, **options), Console(file=io.StringIO(), width=140))


def doubling(result=None, **settings) -> Case:
    """A case that doubles four numbers, or returns `result` instead."""
    given = np.arange(4.0, dtype="float32")
    settings.setdefault("check", lambda found: [compare(found, given * 2, name="doubled")])
    return Case("float32", lambda: given * 2 if result is None else result, flops=4.0, **settings)


@pytest.mark.parametrize("isa", {**ISAS, **INTEGER_ISAS, "host": HOST}.values(), ids=str)
@pytest.mark.parametrize("dtype", peak.DTYPES)
def test_the_peak_loop_computes_what_it_counts(isa, dtype):
    if peak.uses_integers(isa, dtype):
        start = np.random.default_rng(0).integers(-(2**31), 2**31, (2, peak.accumulators(isa), isa.lanes)).astype("int32")
        acc = tvm.runtime.tensor(start)
        run = tvm.compile(tvm.IRModule({"main": peak.peak_loop(isa, dtype)}), target=host_target())["main"]
        run(acc, tvm.runtime.tensor(peak.operand(isa, dtype)), 9)
        np.testing.assert_array_equal(acc.numpy(), peak.naive_integers(start, 9, Form.of(isa).per))
        return
    dot = peak.uses_dot(isa, dtype)
    start = np.random.default_rng(0).standard_normal((2, peak.accumulators(isa), isa.lanes)).astype("float32")
    acc = tvm.runtime.tensor(start)
    run = tvm.compile(tvm.IRModule({"main": peak.peak_loop(isa, dtype)}), target=host_target())["main"]
    run(acc, tvm.runtime.tensor(peak.operand(isa, dtype)), 9)
    assert compare(acc.numpy(), peak.naive(start, 9, dot), depth=9, dtype="float32").ok


def test_the_peak_is_positive_and_knows_its_dtypes():
    assert peak.measure_peak("float32", seconds=0.002) > 0
    assert peak.measure_peak("bfloat16", threads=1, seconds=0.002) > 0
    assert peak.measure_peak("int8", threads=1, seconds=0.002) > 0
    with pytest.raises(ValueError, match="float16"):
        peak.measure_peak("float16")


def test_a_depthwise_case_is_held_against_the_triad(tmp_path, monkeypatch):
    monkeypatch.setattr(bandwidth, "array_bytes", lambda: 1 << 20)
    sparse_conv.memory.cache_clear()
    triad = sparse_conv.memory().call
    assert triad.moved == 3 << 20
    assert (triad().numpy() == triad.RESULT).all()
    file = tmp_path / "out.json"
    assert sparse_conv.main(["--quick", "--only", "depthwise3_nut64_c64", "--json", str(file)]) == 0
    sparse_conv.memory.cache_clear()
    (row,) = json.loads(file.read_text())["rows"]
    assert row["groups"] == row["cin"] == 64
    assert row["bytes"] == 2 * row["voxels"] * 64 * 4 + 8 * row["pairs"]
    assert row["bandwidth_fraction"] == pytest.approx(row["ratios"]["triad"] * row["bytes"] / triad.moved)


def test_json_has_the_documented_form(tmp_path):
    file = tmp_path / "new" / "out.json"
    bench = benchmark(json=file)
    theirs = Peer(lambda: np.arange(4.0) * 2, memory=True)
    bench.run("right", lambda: doubling(peers={"peer": theirs}, facts={"voxels": 4}))
    assert bench.finish() == 0
    report = json.loads(file.read_text())
    assert set(report) == {"machine", "rows"}
    assert set(report["machine"]["peak_gflops"]) == {"float32", "bfloat16", "int8"}
    assert all(value > 0 for value in report["machine"]["peak_gflops"].values())
    assert {"cpu", "cores", "threads", "isa", "tvm", "torch", "spconv", "date"} <= set(report["machine"])
    (row,) = report["rows"]
    assert row["case"] == "right" and row["dtype"] == "float32" and row["voxels"] == 4
    for key in ("ours_ms", "gflops", "peak_fraction", "best_ms"):
        assert row[key] > 0, key
    assert row["peers"]["peer"] > 0 and row["ratios"]["peer"] > 0
    assert "peak_mb" in row
    assert list(file.parent.iterdir()) == [file]  # nothing temporary stays behind
    assert "right" in bench.console.file.getvalue()


def test_a_wrong_result_gets_no_speed(tmp_path):
    file = tmp_path / "out.json"
    bench = benchmark(json=file)
    assert bench.run("wrong", lambda: doubling(np.ones(4, "float32"))) is None
    assert bench.run("right", doubling) is not None  # others go on
    assert bench.finish() == 1
    assert [row["case"] for row in json.loads(file.read_text())["rows"]] == ["right"]
    assert "wrong: ours: doubled [4]" in bench.console.file.getvalue()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: doubling(check=lambda found: []), "nothing was compared"),
        (lambda: doubling(check=lambda found: [compare(found[:0], found[:0])]), "nothing was compared"),
        (lambda: doubling(peers={"peer": Peer(lambda: np.ones(4), lambda y: [compare(y, y * 2)])}), "peer: "),
        (lambda: doubling(np.float64("nan") * np.ones(4, "float32")), "NaN"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["no comparison", "comparison of nothing", "wrong peer", "nan", "error"],
)
def test_what_is_refused(case, message, capsys):
    bench = benchmark()
    assert bench.run("case", case) is None
    assert bench.finish() == 1
    assert message in bench.failures[0]


def test_a_result_that_turns_wrong_while_timed_is_refused():
    calls = []

    def ours():
        calls.append(None)
        return np.full(4, len(calls) == 1, "float32")

    check = lambda found: [compare(found, np.ones(4, "float32"))]  # noqa: E731
    bench = benchmark()
    assert bench.run("racy", lambda: Case("float32", ours, check)) is None
    assert "after the timing" in bench.failures[0]


def test_require_right_names_what_differs():
    with pytest.raises(WrongResult, match=r"ours: rows \[2\]: 1 of 2 values differ"):
        harness.require_right("ours", [compare(np.array([1, 2]), np.array([1, 3]), name="rows")])


def test_only_picks_cases_and_none_is_an_error():
    bench = benchmark(only="other")
    assert bench.run("case", lambda: pytest.fail("built a case that was not asked for")) is None
    assert bench.finish() == 1


def test_quick_starts_no_case_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(harness, "QUICK_SECONDS", -1.0)
    bench = benchmark()
    assert bench.run("late", lambda: pytest.fail("started a case too late")) is None
    assert bench.finish() == 0
    assert "out of time: late" in bench.console.file.getvalue()


def test_ratio_is_the_median_over_pairs():
    assert Benchmark.ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_arrays_flattens_results():
    a, b = np.arange(3), tvm.runtime.tensor(np.ones(2, "float32"))
    assert [found.shape for found in harness.arrays((a, [b, (a,)]))] == [(3,), (2,), (3,)]


def test_oracles_agree_with_those_beside_the_kernels():
    rng = np.random.default_rng(0)
    cells = rng.permutation(10**3)[:300]
    coords = np.stack([np.zeros_like(cells), cells // 100, cells // 10 % 10, cells % 10], 1).astype("int32")
    table = kernel_map.naive_table(coords, coords, sparse_conv.SUBM3)
    assert np.array_equal(oracle.table_of(coords, coords, sparse_conv.SUBM3), table)
    for geometry, extent in ((sparse_conv.STRIDED, 5), (sparse_conv.TRANSPOSED, 20)):  # of the output, for 10 cells
        out = sites.naive(coords, geometry, (extent,) * 3)
        assert np.array_equal(np.unique(out, axis=0), oracle.sites_of(coords, geometry, 10))
        table = kernel_map.naive_table(coords, out, geometry)
        assert np.array_equal(oracle.table_of(coords, out, geometry), table)


def test_a_case_of_the_sparse_benchmark_runs(tmp_path):
    file = tmp_path / "out.json"
    assert sparse_conv.main(["--quick", "--only", "growth_airplane64", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["case"] == "growth_airplane64_c32" and row["voxels"] == 2053
    assert row["gflops"] > 0 and row["ns_per_voxel"] > 0


def test_tasks_of_a_kernel():
    """A loop of 10 tasks dealt out in turn, then one of 5 parts; and all of the operands' bytes."""

    @script.prim_func(s_tir=True)
    def kernel(x: T.Buffer((10, 8), "float32"), y: T.Buffer((10, 8), "float16")):
        T.func_attr({"global_symbol": "main"})
        for i in T.parallel(10):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)
            for j in range(8):
                y[i, j] = T.Cast("float16", x[i, j] * T.float32(2))
        for i in T.parallel(5):
            for j in range(8):
                y[i, j] = y[i, j] + y[9 - i, j]

    before = dict(compilation_pipeline.PIPELINE_MAP)
    x, y = np.ones((10, 8), "float32"), tvm.runtime.tensor(np.zeros((10, 8), "float16"))
    with scaling.observing() as observer:
        run = tvm.compile(tvm.IRModule({"main": kernel}), target="llvm")["main"]
        run(tvm.runtime.tensor(x), y)
    np.testing.assert_array_equal(y.numpy()[:5], np.full((5, 8), 4))
    (call,) = observer.calls
    assert [(len(loop.seconds), loop.in_turn) for loop in call.loops] == [(10, True), (5, False)]
    assert call.nbytes == 10 * 8 * (4 + 2) and call.tasks == 10
    assert before == compilation_pipeline.PIPELINE_MAP


def test_work_of_the_busiest_core():
    """Tasks in contiguous parts or in turn, as TVM's pool deals them out, and what is serial counts for one core."""
    seconds = [4.0, 1.0, 1.0, 1.0, 1.0]
    assert [scaling.Loop(False, seconds).longest(n) for n in (1, 2, 4, 64)] == [8.0, 6.0, 5.0, 4.0]
    assert [scaling.Loop(True, seconds).longest(n) for n in (1, 2, 4, 64)] == [8.0, 6.0, 5.0, 4.0]
    assert (
        scaling.Loop(True, [4.0, 1.0, 4.0, 1.0]).longest(2) == 8.0
        and scaling.Loop(False, [4.0, 1.0, 4.0, 1.0]).longest(2) == 5.0
    )
    call = scaling.Call("kernel", 64_000_000, 10.0, [scaling.Loop(False, seconds)])
    (row,) = scaling.rows_of("case", "float32", [call])
    assert row["serial"] == 0.2 and row["largest_over_mean"][2] == 2 * 8.0 / 10 and row["mb_a_core"][64] == 64 / 5
    faster = scaling.Call("kernel", 64_000_000, 9.0, [scaling.Loop(False, [5.0, 0.5, 1.0, 1.0, 1.0])])
    (merged,) = scaling.shortest([[call], [faster]])
    assert merged.loops[0].seconds == [4.0, 0.5, 1.0, 1.0, 1.0] and merged.seconds == 7.5 + 0.5
