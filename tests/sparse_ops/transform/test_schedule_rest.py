"""The schedule of what our kernels do not cover: what becomes of the loops, and what they compute."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf
from tvm import ir, relax, s_tir, tirx
from tvm.relax import op
from tvm.script import tirx as T

from sparse_ops.op.register import SCHEDULED
from sparse_ops.testing.examples import OPS, features
from sparse_ops.transform import ScheduleRest
from sparse_ops.transform.cpu import schedule_rest
from tests.poison import compile_poisoned, poisoned
from tests.sparse_ops.walk import digest, example_module, module_of, run, with_threads
from tests.tolerance import assert_close
from tir_kernels.cpu.isa import Isa, forced_isa, host_target


@dataclass(frozen=True)
class Case:
    """A Relax expression, its oracle in float64, the shapes of its arguments; `depth` of the longest sum at any size."""

    call: Callable
    oracle: Callable
    shapes: list[tuple]
    depth: float = 1
    vectors: bool = True
    parallel: bool = True


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True, initial=-np.inf))
    return e / e.sum(axis, keepdims=True)


def pool(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))


CASES = {
    "gelu": Case(op.nn.gelu, lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))), [("n", 37)]),
    "tanh": Case(op.tanh, np.tanh, [("n", "m")]),
    "sigmoid": Case(op.sigmoid, lambda x: 1 / (1 + np.exp(-x)), [("n", 3)]),
    "log": Case(lambda x: op.log(op.abs(x)), lambda x: np.log(np.abs(x)), [("n", 37)]),
    "chain": Case(
        lambda x, y, z: op.add(op.multiply(op.add(x, y), z), y),
        lambda x, y, z: (x + y) * z + y,
        [(2, "n", 40), (40,), (2, 1, 40)],
    ),
    "exp broadcast": Case(lambda x, y: op.multiply(x, op.exp(y)), lambda x, y: x * np.exp(y), [("n", 40), (40,)]),
    "softmax": Case(lambda x: op.nn.softmax(x, -1), lambda x: softmax(x, -1), [(2, "n", 101)], 101),
    "softmax of symbolic size": Case(lambda x: op.nn.softmax(x, -1), lambda x: softmax(x, -1), [(5, "n")], 3000),
    "softmax across": Case(lambda x: op.nn.softmax(x, 1), lambda x: softmax(x, 1), [("n", 17, 24)], 17),
    "heads": Case(lambda x: op.permute_dims(x, [0, 2, 1, 3]), lambda x: x.transpose(0, 2, 1, 3), [(1, "n", 3, 16)]),
    "transpose": Case(lambda x: op.permute_dims(x, [1, 0]), lambda x: x.T, [("n", 50)]),
    "transpose of known size": Case(lambda x: op.permute_dims(x, [1, 0]), lambda x: x.T, [(300, 50)], parallel=False),
    "reshape and transpose": Case(
        lambda x: op.permute_dims(op.reshape(x, (50, 8, 4)), [1, 0, 2]),
        lambda x: x.reshape(50, 8, 4).transpose(1, 0, 2),
        [(50, 32)],
        parallel=False,
    ),
    "concat rows": Case(lambda *xs: op.concat(xs, 0), lambda *xs: np.concatenate(xs, 0), [("n", 20), ("m", 20), ("n", 20)]),
    "concat columns": Case(lambda *xs: op.concat(xs, 1), lambda *xs: np.concatenate(xs, 1), [("n", 20), ("n", 13), ("n", 8)]),
    "concat symbolic columns": Case(lambda *xs: op.concat(xs, 1), lambda *xs: np.concatenate(xs, 1), [(9, "n"), (9, "m")]),
    "pad": Case(lambda x: op.nn.pad(x, [0, 0, 1, 2]), lambda x: np.pad(x, [(0, 0), (1, 2)]), [("n", 30)]),
    "slice": Case(lambda x: op.strided_slice(x, [1], [2], [30], [3]), lambda x: x[:, 2:30:3], [("n", 40)]),
    "gather": Case(
        lambda x: op.take(x, relax.const(np.arange(40, 0, -2)), 1), lambda x: x[:, np.arange(40, 0, -2)], [("n", 41)]
    ),
    "sum of all": Case(op.sum, np.sum, [("n", 70)], 70 * 3000),
    "sum of rows": Case(lambda x: op.sum(x, 1), lambda x: x.sum(1), [("n", 70)], 70),
    "sum of columns": Case(lambda x: op.sum(x, 0), lambda x: x.sum(0), [("n", 70)], 3000),
    "sum of few columns": Case(lambda x: op.sum(x, 0), lambda x: x.sum(0), [("n", 3)], 3000, vectors=False),
    "sum of many columns": Case(lambda x: op.sum(x, 0), lambda x: x.sum(0), [("n", 2500)], 3000),
    "sum between": Case(lambda x: op.sum(x, 1), lambda x: x.sum(1), [(2, "n", 30)], 3000),
    "sum of pictures": Case(lambda x: op.sum(x, [0, 2, 3]), lambda x: x.sum((0, 2, 3)), [("n", 5, 7, 9)], 63 * 3000),
    "mean of short rows": Case(lambda x: op.mean(x, -1, True), lambda x: x.mean(-1, keepdims=True), [("n", 5)], 5),
    "max": Case(lambda x: op.max(x, -1), lambda x: x.max(-1), [("n", 70)]),
    "min of many": Case(lambda x: op.min(x, [0, 1]), lambda x: x.min((0, 1)), [(40, 7000)]),
    "variance": Case(lambda x: op.variance(x, -1), lambda x: x.var(-1), [("n", 70)], 70),
    "argmax": Case(lambda x: op.argmax(x, -1), lambda x: x.argmax(-1), [("n", 70)], vectors=False),
    "argmax across": Case(lambda x: op.argmax(x, 0), lambda x: x.argmax(0), [(40, "n")]),
    "layer norm": Case(
        lambda x, w, b: op.nn.layer_norm(x, w, b, [-1], 1e-5),
        lambda x, w, b: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b,
        [("n", 70), (70,), (70,)],
        70,
    ),
    "product": Case(op.matmul, np.matmul, [(2, "n", 33), (2, 33, "m")], 33),
    "product of symbolic depth": Case(op.matmul, np.matmul, [("n", "m"), ("m", 40)], 3000),
    "product, transposed, and more": Case(
        lambda x, y, z: op.nn.relu(op.add(op.matmul(x, op.permute_dims(y, [0, 2, 1])), z)),
        lambda x, y, z: np.maximum(x @ y.transpose(0, 2, 1) + z, 0),
        [(2, "n", 33), (2, "m", 33), ("m",)],
        33,
    ),
    "product of known sizes": Case(op.matmul, np.matmul, [(96, 64), (64, 128)], 64),
    "matrix times vector": Case(lambda x, y: op.matmul(x, y), np.matmul, [("n", 70), (70,)], 70),
    "vector times matrix": Case(lambda x, y: op.matmul(x, y), np.matmul, [(1, 300), (300, "n")], 300),
    "pooling": Case(lambda x: op.nn.max_pool2d(x, (2, 2), (2, 2)), pool, [("n", 3, 8, 40)]),
}


def unscheduled(case: Case, dtype: str = "float32") -> tvm.IRModule:
    arrays = [np.empty((1,) * len(shape), dtype) for shape in case.shapes]
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    with host_target():
        return tvm.transform.Sequential(passes)(module_of(case.call, arrays, case.shapes))


def scheduled(case: Case, dtype: str = "float32") -> tvm.IRModule:
    with host_target():
        return ScheduleRest()(unscheduled(case, dtype))


def compiled(mod: tvm.IRModule) -> tvm.runtime.Executable:
    """With outputs that are full of garbage before a kernel runs."""
    return compile_poisoned(poisoned(mod), host_target())


@pytest.fixture(scope="module")
def executables() -> dict[str, tvm.runtime.Executable]:
    return {}


@cache
def unscheduled_for(name: str) -> tvm.IRModule:
    return unscheduled(CASES[name])


@cache
def scheduled_for(isa: Isa, name: str, dtype: str = "float32") -> tvm.IRModule:
    with forced_isa(isa):
        return scheduled(CASES[name], dtype)


def executable_of(name: str, isa: Isa, executables: dict, dtype: str = "float32") -> tvm.runtime.Executable:
    """Compiled once for all instruction sets that get the same loops."""
    mod = scheduled_for(isa, name, dtype)
    if (loops := mod.script()) not in executables:
        executables[loops] = compiled(mod)
    return executables[loops]


def found(mod: tvm.IRModule, kind) -> list:
    """All nodes of a kind in the kernels of a module."""
    nodes = []
    for _, kernel in mod.functions_items():
        if isinstance(kernel, tirx.PrimFunc):
            tvm_ffi.structural_walk(kernel.body, (kind, nodes.append))
    return nodes


def loops(mod: tvm.IRModule) -> set[int]:
    return {loop.kind for loop in found(mod, tirx.For)}


def inputs(case: Case, sizes: dict[str, int], dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [features(rng, *(sizes.get(dim, dim) for dim in shape), dtype=dtype) for shape in case.shapes]


def check(case: Case, executable, sizes: dict[str, int], dtype: str = "float32") -> None:
    arrays = inputs(case, sizes, dtype)
    (out,) = run(executable, arrays)
    expected = np.asarray(case.oracle(*(array.astype("float64") for array in arrays)))
    if "int" in str(out.dtype):
        np.testing.assert_array_equal(out, expected)
    else:
        assert_close(out, expected, case.depth, dtype=dtype)


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name, isa):
    """Before: serial loops only. After: in parallel unless it is known to be small, and in vectors."""
    case = CASES[name]
    assert loops(unscheduled_for(name)) == {tirx.ForKind.SERIAL}
    after = scheduled_for(isa, name)
    kernels = [function for _, function in after.functions_items() if isinstance(function, tirx.PrimFunc)]
    assert all(SCHEDULED in kernel.attrs for kernel in kernels)
    assert not found(after, s_tir.SBlock)[len(kernels) :]  # none but the roots
    assert (tirx.ForKind.VECTORIZED in loops(after)) == case.vectors
    assert (tirx.ForKind.PARALLEL in loops(after)) == case.parallel


@pytest.mark.parametrize("name", ["softmax", "layer norm", "mean of short rows", "product of known sizes"])
def test_structure(name, isa):
    """Rows are finished one after the other, without a matrix in between; products have their sums in registers."""
    after = scheduled_for(isa, name)
    buffers = [node.buffer for node in found(after, tirx.AllocBuffer)]
    if name.startswith("product"):
        assert tirx.ForKind.UNROLLED in loops(after)
    elif name == "mean of short rows":
        assert len(buffers) == 1
    else:
        assert [loop.kind for loop in found(after, tirx.For)].count(tirx.ForKind.PARALLEL) == 1
        assert all(np.prod([int(dim) for dim in buffer.shape]) <= 101 for buffer in buffers)


@pytest.mark.parametrize("name", CASES)
def test_numbers(name, isa, executables):
    """No rows, one, and sizes that are no multiple of anything."""
    case = CASES[name]
    symbolic = any(isinstance(dim, str) for shape in case.shapes for dim in shape)
    for n, m in [(0, 5), (1, 1), (13, 8), (97, 31), (600, 16)] if symbolic else [(0, 0)]:
        check(case, executable_of(name, isa, executables), {"n": n, "m": m})


def test_same_bits_with_any_number_of_threads(isa, executables):
    built = {name: (executable_of(name, isa, executables), inputs(case, {"n": 1500, "m": 61})) for name, case in CASES.items()}
    one, two = (with_threads(count, lambda: {name: digest(run(*each)) for name, each in built.items()}) for count in (1, 2))
    assert one == two


@pytest.mark.parametrize(
    "name", ["gelu", "chain", "softmax", "transpose", "sum of all", "sum of rows", "sum of columns", "product"]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_are_computed_in_float32(name, dtype, isa, executables):
    """Rounded once on the way out: what is inside of a kernel, sums above all, is float32."""
    case = CASES[name]
    executable = executable_of(name, isa, executables, dtype)
    arrays = inputs(case, {"n": 97, "m": 31}, dtype)
    (out,) = run(executable, arrays)
    expected = case.oracle(*(array.astype("float64") for array in arrays))
    assert_close(out, expected, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name, function", [("gelu", "erf"), ("tanh", "tanh"), ("sigmoid", "sigmoid"), ("softmax", "exp")])
def test_functions_become_polynomials(name, function, dtype):
    def calls(mod):
        return {getattr(call.op, "name", "") for call in found(mod, ir.Call)}

    assert f"tirx.{function}" in calls(unscheduled(CASES[name], dtype))
    assert not {f"tirx.{name}" for name in ("exp", "erf", "tanh", "sigmoid")} & calls(scheduled(CASES[name], dtype))


def test_special_values_pass_through():
    case = Case(op.exp, np.exp, [("n",)])
    x = np.array([np.nan, np.inf, -np.inf, 0.0] * 3, "float32")
    np.testing.assert_array_equal(run(compiled(scheduled(case)), [x])[0], np.exp(x))


def test_known_small_work_stays_on_one_thread():
    def kinds(rows):
        return loops(scheduled(Case(op.nn.relu, None, [(rows, 64)])))

    assert tirx.ForKind.PARALLEL not in kinds(255) and tirx.ForKind.PARALLEL in kinds(256)


def test_parameters_need_no_alignment():
    (kernel,) = (f for _, f in scheduled(CASES["gelu"]).functions_items() if isinstance(f, tirx.PrimFunc))
    assert {param.data_alignment for param in kernel.params} == {4}


def test_our_kernels_are_left_alone():
    for row in OPS[:4]:
        with host_target():
            mod = relax.transform.LegalizeOps()(example_module(row, "float32"))
            own = {gv.name_hint: f for gv, f in mod.functions_items() if isinstance(f, tirx.PrimFunc) and SCHEDULED in f.attrs}
            after = ScheduleRest()(mod)
        assert own and all(after[name].same_as(kernel) for name, kernel in own.items())


def test_what_it_does_not_understand_stays_as_it_is(caplog):
    @T.prim_func(private=True, s_tir=True)
    def scan(x: T.Buffer((100,), "float32"), out: T.Buffer((100,), "float32")):
        for i in range(100):
            with T.sblock("scan"):
                at = T.axis.opaque(100, i)
                out[at] = x[at] + T.if_then_else(at > 0, out[at - 1], T.float32(0))

    @T.prim_func(private=True, s_tir=True)
    def called(x: T.Buffer((100,), "float32"), out: T.Buffer((100,), "float32")):
        for i in range(100):
            with T.sblock("called"):
                at = T.axis.spatial(100, i)
                out[at] = T.call_extern("float32", "elsewhere", x[at])

    @T.prim_func(private=True, s_tir=True)
    def strided(x_: T.handle, out: T.Buffer((100,), "float32")):
        x = T.match_buffer(x_, (100,), "float32", strides=(2,))
        for i in range(100):
            with T.sblock("copy"):
                at = T.axis.spatial(100, i)
                out[at] = x[at]

    kernels = {"scan": scan, "called": called, "strided": strided}
    with host_target(), caplog.at_level("INFO", "sparse_ops"):
        after = ScheduleRest()(tvm.IRModule(kernels))
    # Only arguments may lie anywhere: without strides they are aligned to their elements, as everywhere.
    expected = {"scan": schedule_rest.unaligned(scan), "called": schedule_rest.unaligned(called), "strided": strided}
    assert all(tvm_ffi.structural_equal(after[name], kernel) for name, kernel in expected.items())
    assert [after["scan"].params[0].ty.data_alignment, scan.params[0].ty.data_alignment] == [4, 64]
    assert sorted(caplog.messages) == [
        "called: left unscheduled: NotUnderstood: it calls tirx.call_extern",
        "scan: left unscheduled: NotUnderstood: block scan: axis at is neither of the result nor reduced",
        "strided: left unscheduled: NotUnderstood: a parameter has strides",
    ]


def refuse_first(monkeypatch, times: int, error: Exception) -> None:
    """The first step fails so many times."""
    schedule_blocks, errors = schedule_rest.schedule_blocks, [error] * times

    def refusing(func, **options):
        if errors:
            raise errors.pop()
        return schedule_blocks(func, **options)

    monkeypatch.setattr(schedule_rest, "schedule_blocks", refusing)


@pytest.mark.parametrize("refusal", schedule_rest.REFUSALS, ids=lambda refusal: refusal.__name__)
def test_what_was_refused_is_logged(refusal, monkeypatch, caplog):
    """With fewer options instead, or not at all."""
    reason = f"{refusal.__name__}: no such loop"
    outcomes = ("scheduled without tile", "scheduled without tile and share_rows", "left unscheduled")
    for times, outcome in enumerate(outcomes, start=1):
        caplog.clear()
        refuse_first(monkeypatch, times, refusal("\nno such loop\nand where"))
        with caplog.at_level("INFO", "sparse_ops"):
            after = scheduled(CASES["tanh"])
        assert caplog.messages == [f"tir_tanh: {outcome}: {reason}"]
        assert (tirx.ForKind.VECTORIZED in loops(after)) == (times < 3)


def test_other_errors_are_raised(monkeypatch):
    refuse_first(monkeypatch, 1, ValueError("a defect of ours"))
    with pytest.raises(ValueError, match="a defect of ours"):
        scheduled(CASES["tanh"])


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_chain_of_elementwise_broadcast_transpose_and_reduction(data):
    """Random expressions of random static shapes, against numpy."""
    shape = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=4), label="shape")
    steps = data.draw(st.lists(st.sampled_from(["add", "tanh", "permute", "sum", "pad", "flatten"]), max_size=4), label="steps")
    axis = data.draw(st.integers(0, 1), label="axis")

    def apply(x, step, numpy):
        rank = len(x.shape) if numpy else len(x.ty.shape)
        if step == "add":
            return x + x if numpy else op.add(x, x)
        if step == "tanh":
            return np.tanh(x) if numpy else op.tanh(x)
        if step == "permute":
            order = list(range(rank))[::-1]
            return x.transpose(order) if numpy else op.permute_dims(x, order)
        if step == "sum":
            return x.sum(axis, keepdims=True) if numpy else op.sum(x, [axis], True)
        if step == "pad":
            return np.pad(x, [(0, 0)] * (rank - 1) + [(1, 2)]) if numpy else op.nn.pad(x, [0, 0] * (rank - 1) + [1, 2])
        return x.reshape(-1, x.shape[-1]) if numpy else op.reshape(x, (-1, x.ty.shape.values[-1]))

    def chain(x, numpy=False):
        builder = relax.BlockBuilder.current()
        for step in ["tanh", *steps]:
            x = apply(x, step, numpy)
            x = x if numpy else builder.emit(x)
        return x

    case = Case(chain, lambda x: chain(x, numpy=True), [tuple(shape)], depth=40**2)
    check(case, compiled(scheduled(case)), {})


@T.prim_func(private=True, s_tir=True)
def by_a_scalar(n: T.Buffer((1,), "int64"), x: T.Buffer((1000, 8), "float32"), out: T.Buffer((1000, 8), "float32")):
    scalar = T.sblock_alloc_buffer((), "int64")
    with T.sblock("scalar"):
        step = T.axis.spatial(1, 0)  # noqa: F841
        scalar[()] = n[0]
    for i, j in T.grid(1000, 8):
        with T.sblock("divide"):
            row, column = T.axis.remap("SS", [i, j])
            out[row, column] = x[row, column] / T.Cast("float32", scalar[()])


def test_a_scalar_among_its_blocks_is_computed_where_it_is_used():
    with host_target():
        after = ScheduleRest()(tvm.IRModule({"by_a_scalar": by_a_scalar}))
    assert SCHEDULED in after["by_a_scalar"].attrs and "alloc" not in after.script()
