"""How much memory a compiled module needs: as planned while it is compiled, and as measured while it runs.

    with planned_memory() as plan:
        executable = tvm.compile(mod, target, relax_pipeline=cpu_pipeline())
    plan.of("main", n=16000).peak

TVM's memory planning lets results share storage that is no longer needed. Where sizes are symbolic, only storages of equal
symbolic size are shared, unless the function has an upper bound for each: the attribute `tir_var_upper_bound`, such as
{"n": 20000}; then storages have the size of the bound, whatever the size of a call. In both cases a storage is given back
after its last use.

Sizes that the data decide, such as those of an index of coordinates and of what `unique` keeps, are known while running only.
They count with the most that they can be, which the kernel that chooses them tells, see `tir_kernels.bounds`.

To whom it is given back is the choice of whoever runs the module. A `Program`, as `build` returns it, gives buffers back to
the C library at once, as does `relax.VirtualMachine(executable, device, memory_cfg="naive")`. Without that setting a machine
keeps every buffer in a pool, by its exact size, and returns none: with sizes that vary memory grows with every new one.
With glibc set MALLOC_MMAP_THRESHOLD_=1048576 beside it, or it keeps a few of the freed buffers. Forty sizes of a chain of
softmaxes, 23 MB for a call, took 696 MB pooled, 103 MB naive, 35 MB with the setting as well.
"""

import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import tvm
import tvm_ffi
from tvm import relax, tirx

from tir_kernels.bounds import BOUNDS, bounds_of
from tir_kernels.buffers import STACK_BYTES
from tir_kernels.cpu.threads import threads

PLANNED = "KillAfterLastUse"  # the pass after which all storages, and the ends of their lives, are known
PR_SET_THP_DISABLE = 41  # of Linux's prctl


@dataclass(frozen=True)
class Memory:
    """Bytes that one call of a function needs.

    `activations`: results, at the time when most of them are alive; `workspace`: what the most demanding kernel allocates
    for itself; `peak`: the most of both together at any time. `weights` and `inputs` are there before the call: constants of
    the function and its parameters behind the first `num_input`, and its other parameters.
    """

    activations: int
    workspace: int
    peak: int
    weights: int
    inputs: int


class MemoryPlan:
    """What was planned for the module that was compiled last inside of `planned_memory`."""

    def __init__(self):
        self._mod: tvm.IRModule | None = None

    def of(self, function: str = "main", **sizes: int) -> Memory:
        """The memory of a call of `function`, where its symbolic dimensions have these sizes, by name.

        Sizes that only a running call knows need none: they count with their bounds. Raises ValueError where nothing was
        compiled, for an unknown function, and for any other dimension without a size.
        """
        if self._mod is None:
            raise ValueError("planned_memory: expected a Relax module to be compiled inside, given none")
        names = [gv.name_hint for gv, f in self._mod.functions_items() if isinstance(f, relax.Function)]
        if function not in names:
            raise ValueError(f"function: expected one of {', '.join(sorted(names))}, given {function!r}")

        run = _Run(self._mod, sizes).walk(self._mod[function].body)
        return Memory(run.activations, run.workspace, run.peak, *_held(self._mod[function], run.size_of))


@contextlib.contextmanager
def planned_memory() -> Iterator[MemoryPlan]:
    """Inside, note what is planned for Relax modules that are compiled, with any pipeline that plans memory as TVM's own do."""
    plan = MemoryPlan()

    @tvm.ir.instrument.pass_instrument
    class Recorder:
        def run_after_pass(self, mod, info):
            if info.name == PLANNED:
                plan._mod = mod

    around = tvm.transform.PassContext.current()
    with tvm.transform.PassContext(
        opt_level=around.opt_level, config=dict(around.config), instruments=[*around.instruments, Recorder()]
    ):
        yield plan


def _evaluate(expr: tirx.Expr, sizes: dict[str, int]) -> int:
    """The value of a size."""
    values = {var: tirx.const(sizes[var.name], "int64") for var in _variables(expr) if var.name in sizes}
    value = tvm.sym.Analyzer().simplify(_substitute(expr, values))
    if not isinstance(value, tirx.IntImm):
        missing = sorted({var.name for var in _variables(value)})
        raise ValueError(f"sizes: expected a size for {', '.join(missing)}, given {sizes or 'none'}")
    return value.value


def _substitute(expr: tirx.Expr, values: dict) -> tirx.Expr:
    return tvm_ffi.structural_map(expr, (tirx.Var, lambda var: values.get(var, var)))


def _dimensions(ty: relax.Type) -> list[tirx.Expr]:
    """The dimensions of a shape, or of a tensor whose shape is known."""
    shape = ty.shape if isinstance(ty, relax.TensorType) else ty
    return list(getattr(shape, "values", None) or [])


def _variables(expr: tirx.Expr) -> list[tirx.Var]:
    found = []
    tvm_ffi.structural_walk(expr, (tirx.Var, found.append))
    return found


def _bytes(shape, dtype) -> int:
    return prod(shape) * tvm.DataType(dtype).itemsize


def _tensor_bytes(ty: relax.Type, size_of: Callable) -> int:
    """Bytes of a tensor, or of a tuple of them; other values count as nothing."""
    if isinstance(ty, relax.TupleType):
        return sum(_tensor_bytes(field, size_of) for field in ty.fields)
    known = isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr)
    return _bytes(map(size_of, ty.shape.values), ty.dtype) if known else 0


def _held(function: relax.Function, size_of: Callable) -> tuple[int, int]:
    """Bytes of a function's weights and of its inputs."""
    count = function.attrs.get("num_input") if function.attrs else None
    params = [_tensor_bytes(param.ty, size_of) for param in function.params]
    first = len(params) if count is None else int(count)
    constants = []

    def visit(node):
        if isinstance(node, tvm.ir.GenericConst):
            constants.append(_tensor_bytes(node.ty, size_of))

    relax.analysis.post_order_visit(function, visit)
    return sum(params[first:]) + sum(constants), sum(params[:first])


class _Run:
    """Walks through a function as a call does, and follows which storages are alive."""

    def __init__(self, mod: tvm.IRModule, sizes: dict[str, int]):
        self.mod, self.sizes = mod, dict(sizes)  # of dimensions, by name
        self.bounds: dict[relax.Var, list[int]] = {}  # of tensors and shapes: the most that each element can be
        self.size: dict[relax.Var, int] = {}  # of storages
        self.storage: dict[relax.Var, relax.Var] = {}  # of storages and tensors that are alive: the storage they need
        self.activations = self.workspace = self.peak = 0

    def walk(self, body: relax.SeqExpr) -> "_Run":
        for block in body.blocks:
            for binding in block.bindings:
                self.step(binding.var, binding.value)
                if isinstance(binding, relax.MatchCast):
                    self.match(binding.value, binding.ty)
        return self

    def size_of(self, expr: tirx.Expr) -> int:
        return _evaluate(expr, self.sizes)

    def match(self, value: relax.Expr, ty: relax.Type) -> None:
        """Dimensions that get their sizes here have those of `value`, or the most that they can be."""
        given = self.bounds.get(value) or [
            self.size_of(dim) if {var.name for var in _variables(dim)} <= set(self.sizes) else None
            for dim in _dimensions(value.ty)
        ]
        for dim, size in zip(_dimensions(ty), given, strict=False):
            if isinstance(dim, tirx.Var) and size is not None:
                self.sizes.setdefault(dim.name, size)

    def step(self, var: relax.Var, value: relax.Expr) -> None:
        name = getattr(getattr(value, "op", None), "name", None)
        if isinstance(value, relax.If):
            for branch in (value.true_branch, value.false_branch):
                self.walk(branch)
        elif isinstance(value, relax.Var):
            self.follow(var, value)
        elif name == "relax.tensor_to_shape" and value.args[0] in self.bounds:
            self.bounds[var] = self.bounds[value.args[0]]
        elif name == "relax.memory.alloc_storage":
            self.size[var], self.storage[var] = _bytes(map(self.size_of, value.args[0].values), "uint8"), var
            self.note()
        elif name in ("relax.memory.alloc_tensor", "relax.reshape"):
            self.follow(var, value.args[0])
        elif name in ("relax.memory.kill_storage", "relax.memory.kill_tensor"):
            self.storage.pop(value.args[0], None)
        elif isinstance(value, relax.Call) and isinstance(value.op, relax.GlobalVar):
            self.call(self.mod[value.op], value.args)
        elif isinstance(value, relax.Call) and isinstance(value.op, relax.ExternFunc) and "reshape" in value.op.global_symbol:
            self.follow(var, value.args[0])

    def follow(self, var: relax.Var, source: relax.Expr) -> None:
        """`var` is in the same storage as `source`."""
        if source in self.storage:
            self.storage[var] = self.storage[source]

    def call(self, function: tvm.ir.BaseFunc, args: list) -> None:
        """A call of a kernel, or of another Relax function."""
        sizes = {}
        for param, arg in zip(function.params, args, strict=False):
            if isinstance(arg.ty, relax.TensorType) and isinstance(arg.ty.shape, relax.ShapeExpr):
                shape = getattr(param.ty.shape, "values", param.ty.shape)  # of a Relax tensor, or of a buffer
                for name, size in zip(shape, arg.ty.shape.values, strict=True):
                    if isinstance(name, tirx.Var):
                        sizes[name.name] = self.size_of(size)

        run = _Run(self.mod, sizes)
        if isinstance(function, relax.Function):
            run.walk(function.body)
            self.note(run.activations, run.workspace, run.peak)
        else:
            own = _workspace(function, run.size_of)
            self.note(0, own, own)
            if BOUNDS in (function.attrs or {}):
                bounds = bounds_of(function, run.size_of(function.params[0].ty.shape[0]))
                for param, arg in zip(function.params, args, strict=False):
                    if param.name in bounds:
                        self.bounds[arg] = bounds[param.name]

    def note(self, activations: int = 0, workspace: int = 0, both: int = 0) -> None:
        """Something needs this much on top of what is alive."""
        alive = sum(self.size[storage] for storage in set(self.storage.values()))
        self.activations = max(self.activations, alive + activations)
        self.workspace = max(self.workspace, workspace)
        self.peak = max(self.peak, alive + both)


def _workspace(kernel: tirx.PrimFunc, size_of: Callable) -> int:
    """Bytes that a kernel allocates for itself: inside of a parallel loop once for every thread."""
    total, copies = 0, 1
    bound: dict[tirx.Var, tirx.Expr] = {}  # what variables stand for

    def bind(node, visitor):
        bound[node.var] = _substitute(node.value, bound)
        visitor.default_visit(node)

    def loop(node, visitor):
        nonlocal copies
        before, copies = copies, threads() if node.kind == tirx.ForKind.PARALLEL else copies
        visitor.default_visit(node)
        copies = before

    def allocate(node, visitor):
        nonlocal total
        for buffer in [node.buffer] if isinstance(node, tirx.AllocBuffer) else node.alloc_buffers:
            size = _bytes([size_of(_substitute(dim, bound)) for dim in buffer.shape], buffer.dtype)
            total += copies * size if size >= STACK_BYTES else 0
        visitor.default_visit(node)

    visits = [(tirx.Bind, bind), (tirx.For, loop), ((tirx.AllocBuffer, tvm.s_tir.SBlock), allocate)]
    tvm_ffi.structural_visit(kernel.body, visits)
    return total


def measured_memory(call: Callable[[], object], prepare: Callable[[], None] | None = None) -> int | None:
    """Bytes by which a call raises this process's resident memory at its peak: results and workspace, not its inputs.

    `prepare` runs before, unmeasured. None where the system does not tell: it takes Linux and glibc. The call runs in a thread
    of its own, because TVM's workspaces belong to threads and stay with them: a new thread starts without any. Pages that the C
    library still holds from earlier are given back first; it does so best with one heap, see M_ARENA_MAX of mallopt(3).
    """

    def measure() -> int | None:
        if prepare:
            prepare()
        libc = ctypes.CDLL(None)
        try:
            libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # pages of 2 MB would round everything up
            tvm.get_global_func("vm.builtin.memory_manager.clear")()  # what the VM keeps for the next call
            libc.malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
            before = _status("VmRSS:")
        except (OSError, AttributeError):  # no /proc, or no glibc
            return None
        try:
            call()
            return max(0, _status("VmHWM:") - before)
        finally:
            libc.prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0)

    gc.collect()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(measure).result()


def _status(entry: str) -> int:
    """Bytes that Linux tells of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {entry} in /proc/self/status")
