"""CUDA kernels on a GPU: first whether they are right, then how fast, against what is there.

    python -m benchmarks.device [--quick] [--json FILE] [--only SUBSTRING] [--small]

    check_<op>_<dtype>           every op on the device against its oracle, twice, with equal bits; --quick: float16 alone
    sanitize_<tool>              the same on few rows under compute-sanitizer, where it is installed
    subm3_<occupancy>_c<n>       submanifold 3^3, float16, map ready, against spconv-triton and spconv
    map3_<occupancy>             its kernel map, from coordinates
    attention_4096x5500          16 heads of 64, float16, against torch's scaled_dot_product_attention
    linear_4096x1024x4096        float16, against torch.matmul
    slat_velocity                one velocity of the structured-latent generator at its real size, random weights

All code is compiled first, by as many processes as there are cores. A time is the median of many launches between events of
the device, so that what the host does counts only where it is slower than the kernels. The whole takes at most six minutes on
an H100 with 16 cores, with --quick two. --small puts the emulated device of `tests.cuda_emulator` in the place of a GPU, and
cuts sizes to what that can do, to try the command itself.

A mark is a time in microseconds, computed for an H100 or H200 from its peak; a peer's is taken in the same run.
"""

import argparse
import concurrent.futures
import datetime
import importlib
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tvm
from rich.console import Console
from rich.table import Table

from sparse_ops import devices
from sparse_ops.build import build
from sparse_ops.eager import functional as F
from sparse_ops.program import Program, tensors_of
from tests import cuda_emulator
from tests.sparse_ops.walk import CASES, case_id, digest, example_module, example_of
from tests.tolerance import compare
from tir_kernels.dispatch import kernel_for
from tir_kernels.guards import NOWHERE, REPORTS, STATUS_FIRST, STATUS_SIZE
from tir_kernels.spec import Spec
from tir_kernels.spec.attention import Attention
from tir_kernels.spec.linear import Linear
from tir_kernels.spec.sparse_conv import SparseConv

from .sparse_conv import SUBM3 as SUBM
from .sparse_conv import coords_of, features, weight_of

LIMIT = 330.0  # seconds after which nothing new is begun
ROWS = (0, 1, 97, 1000)  # of the checks
SANITIZED = {"memcheck": ("", 97), "racecheck": ("sparse_conv,attention,linear,unique", 97)}  # tool: ops, rows
CHANNELS = (32, 64, 128, 256)
MARKS = {
    "subm3_nut_64_c32": 9.0,
    "subm3_nut_64_c64": 15.0,
    "subm3_nut_64_c128": 35.0,
    "subm3_nut_64_c256": 90.0,
    "subm3_nut_128_c256": 300.0,
    "slat_velocity": 25_000.0,
}
SHARES = {"attention_4096x5500": 0.7, "linear_4096x1024x4096": 0.7}  # of torch's speed that are asked for
DTYPE = "float16"


@dataclass
class Row:
    """A line of the result. Times are medians in microseconds; `problem`: what was wrong, empty if nothing."""

    name: str
    ours_us: float | None = None
    mark_us: float | None = None
    peers_us: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    facts: dict = field(default_factory=dict)


class Run:
    """The rows of one run, and the time that is left."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.rows, self.started = options, [], time.perf_counter()
        self.device = devices.cuda_device()

    def case(self, name: str, measure: Callable[[], Row]) -> None:
        """Adds what `measure` returns; an error becomes the row's problem."""
        if self.options.only not in name:
            return
        if time.perf_counter() - self.started > LIMIT:
            self.rows.append(Row(name, problem="not begun: no time left"))
            return
        try:
            row = measure()
        except Exception as error:
            row = Row(name, problem=f"{type(error).__name__}: {str(error)[:300]}")
        row.mark_us = row.mark_us or MARKS.get(name)
        self.rows.append(row)
        print(f"{name}: {row.problem or row.ours_us or 'right'}", file=sys.stderr, flush=True)


# Checks


def compile_case(number: int, folder: str, arch: str) -> None:
    """A case of the registry as a library in `folder`; runs in a process of its own."""
    row, dtype = CASES[number]
    build(example_module(row, dtype), devices.cuda_target_of(arch)).export_library(str(Path(folder) / f"{number}.so"))


def check_case(number: int, folder: str, rows: tuple[int, ...]) -> str:
    """What is wrong with a compiled case on this device: with its values, or that two runs differ. Empty if nothing."""
    row, dtype = CASES[number]
    program = Program(tvm.runtime.load_module(str(Path(folder) / f"{number}.so")))
    for count in rows:
        example = example_of(row, dtype, count)
        runs = []
        for _ in range(2):
            result = program["main"](*(tvm.runtime.tensor(array) for array in example.inputs))
            runs.append([out.numpy() for out in tensors_of(result)])
        if digest(runs[0]) != digest(runs[1]):
            return f"{count} rows: two runs differ"
        for out, expected in zip(runs[0], example.expected, strict=True):
            depth = example.depth if out.dtype.itemsize > 2 else 1
            found = compare(out, expected, depth, dtype=out.dtype, name=row.name)
            if not found.ok:
                return f"{count} rows: {found.problem}"
    return ""


def run_checks(run: Run, folder: str, rows: tuple[int, ...]) -> None:
    quick, arch = run.options.quick, str(devices.cuda_target().attrs["arch"])
    numbers = [
        number
        for number, (row, dtype) in enumerate(CASES)
        if not row.name.startswith("int8_") and (not quick or dtype == DTYPE or len(row.dtypes) == 1)
        if run.options.only in f"check_{case_id((row, dtype))}"
    ]
    problems: dict[int, str] = {}
    if run.options.small:  # an emulated device is there in this process alone
        for number in numbers:
            compile_case(number, folder, arch)
    else:
        workers = min(os.cpu_count() or 1, len(numbers) or 1)
        with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            compiling = {pool.submit(compile_case, number, folder, arch): number for number in numbers}
            for done in concurrent.futures.as_completed(compiling):
                if error := done.exception():
                    problems[compiling[done]] = f"{type(error).__name__}: {str(error)[:300]}"
    for number in numbers:
        name = f"check_{case_id(CASES[number])}"
        run.case(name, lambda n=number, name=name: Row(name, problem=problems.get(n) or check_case(n, folder, rows)))
    if not run.options.small and shutil.which("compute-sanitizer"):
        for tool, (ops, count) in SANITIZED.items():
            wanted = [n for n in numbers if not ops or CASES[n][0].name in ops.split(",")]
            run.case(f"sanitize_{tool}", lambda tool=tool, wanted=wanted, count=count: _sanitize(tool, folder, wanted, count))


def _sanitize(tool: str, folder: str, numbers: list[int], rows: int) -> Row:
    """Compiled cases once more, in a process that compute-sanitizer watches."""
    call = f"from benchmarks.device import check_case\nfor n in {numbers!r}: assert not check_case(n, {folder!r}, ({rows},)), n"
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", call]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        return Row(f"sanitize_{tool}", problem="not ended after 90 s")
    tail = (done.stdout + done.stderr).strip().splitlines()[-3:]
    return Row(
        f"sanitize_{tool}", problem="" if done.returncode == 0 else " | ".join(tail)[:300], facts={"cases": len(numbers)}
    )


# Times


class Kernel:
    """The kernel of a description on the device, with arguments that stay there."""

    def __init__(self, spec: Spec, inputs: list, outputs: list[tuple[tuple, str]]):
        target, device = devices.cuda_target(), devices.cuda_device()
        function = kernel_for(spec, target).function
        status = np.zeros(STATUS_SIZE, "int64")
        status[STATUS_FIRST] = NOWHERE
        given = [x if isinstance(x, tvm.runtime.Tensor) else tvm.runtime.tensor(x, device) for x in inputs]
        self.status = tvm.runtime.tensor(status, device)
        self.out = [tvm.runtime.empty(shape, dtype, device) for shape, dtype in outputs]
        self.arguments = [*given, *([self.status] if REPORTS in function.attrs else []), *self.out]
        with tvm.transform.PassContext(config={"tirx.disable_assert": True}):
            module = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target)
        self.module = module.mod if isinstance(module, tvm.runtime.Executable) else module
        self.call = self.module["main"]

    def microseconds(self, run: Run) -> float:
        self.call(*self.arguments)
        number, repeat = (1, 1) if run.options.small else (50, 11)
        times = self.module.time_evaluator("main", run.device, number=number, repeat=repeat)(*self.arguments).results
        return statistics.median(times) * 1e6


def torch_microseconds(call: Callable[[], object]) -> float:
    """The median time of a call of torch between events of the device."""
    import torch

    for _ in range(10):
        call()
    times = []
    for _ in range(11):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(50):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 50 * 1e3)
    return statistics.median(times)


def peers(run: Run, calls: dict[str, Callable[[], Callable[[], object]]]) -> dict[str, float]:
    """Times of peers that are installed and run here. `calls`: for each what makes its call."""
    found = {}
    for name, make in {} if run.options.small else calls.items():
        try:
            found[name] = torch_microseconds(make())
        except Exception as error:
            print(f"  without {name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    return found


def measure_conv(run: Run, occupancy: str, channels: int) -> Row:
    coords = some(coords_of(occupancy), run)
    rows = len(coords)
    x, weight = features(rows, channels, DTYPE), weight_of(SUBM, channels, channels, DTYPE)
    kernel_map = F.submanifold_map(tvm.runtime.tensor(coords, run.device), 3)
    spec = SparseConv(channels, channels, (3, 3, 3), DTYPE)
    inputs = [x, weight, np.zeros(channels, "float32"), *kernel_map.arrays]
    kernel = Kernel(spec, inputs, [((rows, channels), DTYPE)])
    ours = kernel.microseconds(run)
    sample = np.random.default_rng(0).permutation(rows)[:64]
    problem = _problem_of_conv(kernel.out[0].numpy()[sample], x, weight, coords, sample)
    flops = 2.0 * kernel_map.num_pairs * channels * channels

    def of(library: str) -> Callable[[], Callable[[], object]]:
        def make():
            import torch

            module = importlib.import_module(f"{library}.pytorch")
            layer = module.SubMConv3d(channels, channels, 3, bias=False, indice_key="k").cuda().half()
            given = (torch.tensor(x).cuda(), torch.tensor(coords).cuda(), [int(n) for n in coords[:, 1:].max(0) + 1], 1)
            tensor = module.SparseConvTensor(*given)
            with torch.no_grad():
                tensor.indice_dict.update(layer(tensor).indice_dict)
            return lambda: _without_gradient(layer, tensor)

        return make

    found = peers(run, {"spconv-triton": of("spconv_triton"), "spconv": of("spconv")})
    facts = {"rows": rows, "tflops": flops / ours / 1e6}
    return Row(f"subm3_{occupancy}_c{channels}", ours, peers_us=found, problem=problem, facts=facts)


def _without_gradient(layer, tensor):
    import torch

    with torch.no_grad():
        return layer(tensor)


def _problem_of_conv(out, x, weight, coords, sample) -> str:
    """What differs, on some rows, from sums in float64."""
    from .oracle import table_of

    table = table_of(coords, coords, SUBM)[:, sample]
    taps = np.moveaxis(weight.astype(np.float64).reshape(len(weight), -1, x.shape[1]), 0, 1)  # [taps, Cout, Cin]
    expected = np.zeros(out.shape)
    for tap, sources in zip(taps, table, strict=True):
        expected[sources >= 0] += x[sources[sources >= 0]].astype(np.float64) @ tap.T
    return compare(out, expected, 1, dtype=DTYPE, name="rows").problem or ""


def measure_map(run: Run, occupancy: str) -> Row:
    coords = some(coords_of(occupancy), run)
    on_device = tvm.runtime.tensor(coords, run.device)
    times = [_host_microseconds(run, lambda: F.submanifold_map(on_device, 3)) for _ in range(1 if run.options.small else 9)]

    def spconv():
        import torch
        from spconv.core import ConvAlgo
        from spconv.pytorch import ops

        given, shape = torch.tensor(coords).cuda(), [int(n) for n in coords[:, 1:].max(0) + 1]
        axes = ([3] * 3, [1] * 3, [1] * 3, [1] * 3, [0] * 3)
        return lambda: ops.get_indice_pairs_implicit_gemm(given, 1, shape, ConvAlgo.MaskImplicitGemm, *axes, True, False, False)

    return Row(
        f"map3_{occupancy}", statistics.median(times), peers_us=peers(run, {"spconv": spconv}), facts={"rows": len(coords)}
    )


def _host_microseconds(run: Run, call: Callable[[], object]) -> float:
    """Of a call that waits for the device itself, as it reads sizes."""
    call()
    run.device.sync()
    start = time.perf_counter()
    call()
    run.device.sync()
    return (time.perf_counter() - start) * 1e6


def measure_attention(run: Run) -> Row:
    queries, keys, heads, depth = (96, 130, 2, 64) if run.options.small else (4096, 5500, 16, 64)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((rows, heads, depth)).astype(DTYPE) for rows in (queries, keys, keys))
    offsets = [np.array([0, rows], "int32") for rows in (queries, keys)]
    kernel = Kernel(Attention(heads, depth, DTYPE), [q, k, v, *offsets], [((queries, heads, depth), DTYPE)])
    ours = kernel.microseconds(run)

    def torch_attention():
        import torch

        given = [torch.tensor(x).cuda().transpose(0, 1)[None].contiguous() for x in (q, k, v)]
        return lambda: torch.nn.functional.scaled_dot_product_attention(*given)

    found = peers(run, {"torch": torch_attention})
    facts = {"tflops": 4.0 * queries * keys * heads * depth / ours / 1e6}
    return _with_share(Row("attention_4096x5500", ours, peers_us=found, facts=facts))


def measure_linear(run: Run) -> Row:
    rows, cin, cout = (96, 64, 80) if run.options.small else (4096, 1024, 4096)
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(DTYPE) for shape in ((rows, cin), (cout, cin)))
    kernel = Kernel(Linear(cin, cout, DTYPE, out_dtype=DTYPE), [x, weight, np.zeros(cout, "float32")], [((rows, cout), DTYPE)])
    ours = kernel.microseconds(run)

    def torch_linear():
        import torch

        a, b = torch.tensor(x).cuda(), torch.tensor(weight).cuda()
        return lambda: torch.nn.functional.linear(a, b)

    found = peers(run, {"torch": torch_linear})
    return _with_share(
        Row("linear_4096x1024x4096", ours, peers_us=found, facts={"tflops": 2.0 * rows * cin * cout / ours / 1e6})
    )


def _with_share(row: Row) -> Row:
    """The mark is a share of torch's speed."""
    if "torch" in row.peers_us:
        row.mark_us = row.peers_us["torch"] / SHARES[row.name]
    return row


def measure_slat(run: Run) -> Row:
    from sam3d_tvm.models import slat_generator as slat

    config, coords = slat.preset("tiny" if run.options.small else "full"), some(coords_of("nut_64"), run)
    vm = slat.compile_model(config, devices.cuda_target(), precision=DTYPE)
    model = slat.SlatGenerator(config, slat.seeded_state(config, 0), vm, precision=DTYPE)
    rng, tokens = np.random.default_rng(0), 9 if run.options.small else 5496
    plan = model.prepare(coords, rng.standard_normal((1, tokens, config.cond_channels), "float32"))
    table = model.modulation(np.float32([480.0]))
    noise = rng.standard_normal((len(coords), config.in_channels), "float32")
    call = lambda: model.velocity(noise, np.float32(480.0), plan, True, table)  # noqa: E731
    times = [_host_microseconds(run, call) for _ in range(1 if run.options.small else 7)]
    problem = "" if np.isfinite(call()).all() else "the velocity is not finite"
    return Row("slat_velocity", statistics.median(times), problem=problem, facts={"rows": len(coords), "tokens": tokens})


def some(coords: np.ndarray, run: Run) -> np.ndarray:
    """The coordinates, or with --small the first of them."""
    return np.ascontiguousarray(coords[: 300 if run.options.small else None])


def times(run: Run) -> Iterator[tuple[str, Callable[[], Row]]]:
    for channels in CHANNELS:
        yield f"subm3_nut_64_c{channels}", lambda c=channels: measure_conv(run, "nut_64", c)
    yield "subm3_nut_128_c256", lambda: measure_conv(run, "nut_128", 256)
    for occupancy in ("nut_64", "nut_128"):
        yield f"map3_{occupancy}", lambda o=occupancy: measure_map(run, o)
    yield "attention_4096x5500", lambda: measure_attention(run)
    yield "linear_4096x1024x4096", lambda: measure_linear(run)
    yield "slat_velocity", lambda: measure_slat(run)


# Results


def table_of_rows(rows: list[Row]) -> Table:
    """Checks that failed, and all times."""
    table = Table(box=None, pad_edge=False)
    for column in ("work", "ours us", "mark us", "peers us", "TFLOP/s", ""):
        table.add_column(column, justify="left" if column in ("work", "peers us", "") else "right", no_wrap=column == "work")
    checks = [row for row in rows if row.ours_us is None and not row.problem]
    table.add_row("checks", f"{len(checks)} right", "", "", "", "")
    for row in rows:
        if row.ours_us is None and not row.problem:
            continue
        others = "  ".join(f"{name} {value:,.1f}" for name, value in row.peers_us.items())
        numbers = [f"{value:,.1f}" if value else "" for value in (row.ours_us, row.mark_us)]
        table.add_row(row.name, *numbers, others, f"{row.facts['tflops']:.0f}" if "tflops" in row.facts else "", row.problem)
    return table


def main(arguments: list[str] | None = None) -> int:
    """0 if everything that was checked is right, 2 without a device."""
    parser = argparse.ArgumentParser(description="CUDA kernels on a GPU: checks, then times against peers.")
    parser.add_argument("--quick", action="store_true", help="check float16 alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write device and rows to FILE")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="run only cases whose names contain this")
    parser.add_argument("--small", action="store_true", help="few rows, no peers, on an emulated device: to try the command")
    options = parser.parse_args(arguments)
    if options.small:
        cuda_emulator.install()
    try:
        run = Run(options)
    except ValueError as error:
        print(f"{error}; --small tries the command on an emulated device", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        run_checks(run, folder, (1, 30) if run.options.small else ROWS)
        for name, measure in times(run):
            run.case(name, measure)
    seconds = time.perf_counter() - run.started
    facts = {
        "device": str(run.device.device_name),
        "capability": str(run.device.compute_version),
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks.device " + " ".join(sys.argv[1:] if arguments is None else arguments),
        "seconds": seconds,
    }
    if run.options.json:
        run.options.json.write_text(json.dumps(facts | {"rows": [asdict(row) for row in run.rows]}, indent=1) + "\n")
    console = Console(width=160)
    console.print(f"{facts['device']}, compute capability {facts['capability']}, {facts['date']}, {seconds:.0f} s")
    console.print(table_of_rows(run.rows))
    return 1 if any(row.problem for row in run.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
