"""How far kernels can be spread over cores, told on a machine that has few of them: `--scaling` of every benchmark.

Parallel loops are compiled as serial ones that note the time of each iteration, a task. From these times follows what any
number of cores would do with the loop, as TVM's pool deals tasks out: a contiguous part to each core, or in turn where a kernel
asks for that. What a core waits for memory, caches and other cores is not in it: it is a bound.

    tasks            of the parallel loops of a call of a kernel, the most that any of them has
    serial           share of the time outside of all parallel loops
    largest / mean   of the cores' work, serial parts counted for one core: 1 is even, and the number of cores no gain at all.
                     A loop that asks how many threads there are, as that of an index does, has as many parts as here
    MB               of operands, read and written, by the number of cores that have work
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import tvm
import tvm.tirx.compilation_pipeline as pipelines
import tvm_ffi
from rich import box
from rich.table import Table
from tvm import s_tir, tirx
from tvm.script import tirx as T

from sparse_ops.transform.cpu.small_calls import without_turns
from tir_kernels import script
from tir_kernels.cpu.isa import host_target

CORES = (2, 4, 8, 16, 32, 64)
BEGIN_KERNEL, END_KERNEL, BEGIN_TASK, END_TASK = (f"benchmarks.scaling.{what}" for what in ("begin", "end", "task", "done"))
WIDTH = 190  # of the table
LEAST_SHARE = 0.01  # of a case's time: kernels below are not in the table


@dataclass
class Loop:
    """One parallel loop while it runs: seconds of each task, and whether they are dealt out in turn."""

    in_turn: bool
    seconds: list[float] = field(default_factory=list)

    def longest(self, cores: int) -> float:
        """Seconds until the last of `cores` is ready."""
        if self.in_turn:
            return max(sum(self.seconds[core::cores]) for core in range(cores))
        part = -(-len(self.seconds) // cores)
        return max(sum(self.seconds[first : first + part]) for first in range(0, len(self.seconds), part))


@dataclass
class Call:
    """One call of a kernel: its loops, all of its time, and the bytes of its operands."""

    kernel: str
    nbytes: int
    seconds: float = 0.0
    loops: list[Loop] = field(default_factory=list)
    reporting: float = 0.0  # seconds of it that were spent on saying so of one task

    @property
    def serial(self) -> float:
        reported = self.reporting * sum(len(loop.seconds) for loop in self.loops)
        return max(self.seconds - sum(sum(loop.seconds) for loop in self.loops) - reported, 0.0)

    @property
    def tasks(self) -> int:
        return max((len(loop.seconds) for loop in self.loops), default=1)

    def longest(self, cores: int) -> float:
        """Seconds on so many cores."""
        return self.serial + sum(loop.longest(cores) for loop in self.loops if loop.seconds)


class Observer:
    """What the kernels that run say of themselves."""

    def __init__(self):
        self.calls: list[Call] = []
        self._loops: dict[int, Loop] = {}  # of the kernel that runs, by the number of the loop in the code
        self._begun = self._task_begun = 0.0
        self.reporting = 0.0

    def begin(self, kernel: str, nbytes: int) -> None:
        self.calls.append(Call(kernel, nbytes, reporting=self.reporting))
        self._loops = {}
        self._begun = time.perf_counter()

    def end(self) -> None:
        self.calls[-1].seconds = time.perf_counter() - self._begun

    def task(self, loop: int, iteration: int, in_turn: bool) -> None:
        if iteration == 0:  # the loop runs, perhaps once more
            self._loops[loop] = Loop(bool(in_turn))
            self.calls[-1].loops.append(self._loops[loop])
        self._task_begun = time.perf_counter()

    def done(self, loop: int) -> None:
        self._loops[loop].seconds.append(time.perf_counter() - self._task_begun)


@tvm.transform.module_pass(opt_level=0, name="ObserveTasks")
class ObserveTasks:
    """Module pass: parallel loops become serial ones that report each iteration, kernels report begin and end."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        for gv, function in mod.functions_items():
            if isinstance(function, tirx.PrimFunc):
                mod.update_func(gv, observed(function, gv.name_hint))
        return mod


def observed(function: tirx.PrimFunc, name: str) -> tirx.PrimFunc:
    """The kernel, reporting."""
    numbers: list[int] = []

    def report(what: str, *args) -> tirx.Stmt:
        return tirx.Evaluate(tirx.call_packed(what, *args))

    def serial(loop: tirx.For) -> tirx.Stmt:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        in_turn, body = without_turns(loop.body)
        number, index = len(numbers), tirx.Cast("int64", loop.loop_var - loop.min)
        numbers.append(number)
        steps = [report(BEGIN_TASK, number, index, int(in_turn)), body, report(END_TASK, number)]
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, tirx.SeqStmt(steps))

    def around(body: tirx.Stmt) -> tirx.Stmt:
        nbytes = tirx.IntImm("int64", 0)
        for operand in (param.ty for param in function.params if isinstance(param.ty, tirx.BufferType)):
            size = tirx.IntImm("int64", -(-tvm.DataType(operand.dtype).bits // 8))
            for extent in operand.shape:
                size = size * tirx.Cast("int64", extent)
            nbytes = nbytes + size
        return tirx.SeqStmt([report(BEGIN_KERNEL, name, nbytes), body, report(END_KERNEL)])

    body = tvm_ffi.structural_map(function.body, (tirx.For, serial))
    if isinstance(body, s_tir.SBlockRealize):  # the root block stays at the root
        block = body.block
        inner = s_tir.SBlock(
            *(block.iter_vars, block.reads, block.writes, block.name_hint, around(block.body), block.init),
            *(block.alloc_buffers, block.match_buffers, block.annotations),
        )
        return function.with_body(s_tir.SBlockRealize(body.iter_values, body.predicate, inner))
    return function.with_body(around(body))


def _cost_of_reporting(observer: Observer, tasks: int = 10_000) -> float:
    """Seconds that a task spends outside of what it measures, from tasks that do nothing."""

    @script.prim_func(s_tir=True)
    def nothing(cells: T.Buffer((tasks,), "int32")):
        T.func_attr({"global_symbol": "main"})
        for i in T.parallel(tasks):
            cells[i] = i

    run = tvm.compile(tvm.IRModule({"main": nothing}), target=host_target())["main"]
    cells = tvm.runtime.tensor(np.zeros(tasks, "int32"))
    for _ in range(3):
        run(cells)
    costs = [call.serial / tasks for call in observer.calls]
    observer.calls.clear()
    return min(costs)


@contextlib.contextmanager
def observing() -> Iterator[Observer]:
    """Inside, whatever is compiled reports to the observer."""
    observer, before = Observer(), dict(pipelines.PIPELINE_MAP)
    for name, method in ((BEGIN_KERNEL, observer.begin), (END_KERNEL, observer.end), (BEGIN_TASK, observer.task)):
        tvm.register_global_func(name, method, override=True)
    tvm.register_global_func(END_TASK, observer.done, override=True)

    def reporting(factory: Callable) -> Callable:
        def made(**options):
            lower, *finalize = factory(**options)
            return tvm.transform.Sequential([ObserveTasks(), lower]), *finalize

        return made

    for name, factory in before.items():
        pipelines.register_tir_pipeline(name, reporting(factory))
    try:
        observer.reporting = _cost_of_reporting(observer)
        yield observer
    finally:
        for name, factory in before.items():
            pipelines.register_tir_pipeline(name, factory)


def shortest(runs: Sequence[Sequence[Call]]) -> list[Call]:
    """The calls of several runs of the same work as one, each task with the least of its times."""
    merged = []
    for same in zip(*runs, strict=True):
        loops = [
            Loop(loops[0].in_turn, [min(times) for times in zip(*(loop.seconds for loop in loops), strict=True)])
            for loops in zip(*(call.loops for call in same), strict=True)
        ]
        inside = sum(sum(loop.seconds) for loop in loops)
        merged.append(Call(same[0].kernel, same[0].nbytes, inside + min(call.serial for call in same), loops))
    return merged


def rows_of(case: str, dtype: str, calls: Sequence[Call]) -> list[dict]:
    """A row a kernel, the longest first, of the calls of one run of a case."""
    kernels = defaultdict(list)
    for call in calls:
        kernels[call.kernel].append(call)
    whole, rows = sum(call.seconds for call in calls), []
    for kernel, of_kernel in kernels.items():
        seconds, tasks = sum(call.seconds for call in of_kernel), max(call.tasks for call in of_kernel)
        nbytes = sum(call.nbytes for call in of_kernel)
        row = {"case": case, "dtype": dtype, "kernel": kernel, "calls": len(of_kernel), "ms": seconds * 1e3}
        row |= {"share": seconds / whole, "tasks": tasks, "serial": sum(call.serial for call in of_kernel) / seconds}
        row["largest_over_mean"] = {n: n * sum(call.longest(n) for call in of_kernel) / seconds for n in CORES}
        row["mb_a_core"] = {n: nbytes / 1e6 / min(n, tasks) for n in CORES}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["ms"])


def table(rows: Sequence[dict]) -> Table:
    """The rows for people."""
    found = Table(
        title="tasks of kernels: largest / mean work of a core, and MB of it", title_justify="left", box=box.SIMPLE_HEAD
    )
    for name in ("case", "kernel"):
        found.add_column(name, no_wrap=True)
    for name in ("ms", "tasks", "serial %", *(f"{n} cores" for n in CORES)):
        found.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in rows:
        if row["share"] < LEAST_SHARE:
            continue
        case = f"{row['case']} {row['dtype']}"
        cores = [f"{row['largest_over_mean'][n]:.2f} {row['mb_a_core'][n]:.1f}" for n in CORES]
        found.add_row(
            *("" if case == before else case, row["kernel"].removeprefix("fused_")),
            *(f"{row['ms']:.2f}", str(row["tasks"]), f"{100 * row['serial']:.1f}", *cores),
        )
        before = case
    return found
