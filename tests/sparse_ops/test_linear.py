"""`linear`: sizes around the blocks of its kernel, its arguments, bits that depend on one row alone, wrong input."""

import ml_dtypes
import numpy as np
import pytest
import torch
from tvm import relax

from sparse_ops import op
from sparse_ops.build import build
from sparse_ops.testing.examples import features
from sparse_ops.transform.memory import planned_memory
from tests.poison import compile_poisoned, poisoned
from tests.sparse_ops.walk import evaluate, module_of, run
from tests.tolerance import assert_close
from tir_kernels.cpu.linear import BLOCK_BYTES, BLOCK_DEPTH, BLOCK_ROWS, CHUNK_COLUMNS, LEAST_ROWS
from tir_kernels.cpu.threads import threads
from tir_kernels.dispatch import host_target
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.linear import naive


def arguments(rows: int = 40, cin: int = 37, cout: int = 29, batch: int = 3, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "x": features(rng, rows, cin, dtype=dtype),
        "weight": features(rng, cout, cin, dtype=dtype),
        "bias": features(rng, cout),
        "residual": features(rng, rows, cout, dtype=dtype),
        "gate": features(rng, batch, cout),
        "batch_index": rng.integers(0, batch, rows).astype("int32"),
    }


def apply(given: dict[str, np.ndarray], shapes=None, **options) -> np.ndarray:
    return evaluate(lambda *args: op.linear(**dict(zip(given, args, strict=True)), **options), *given.values(), shapes=shapes)


def test_oracle_is_linear():
    given = arguments()
    x, weight, bias = (torch.from_numpy(given[name]).double() for name in ("x", "weight", "bias"))
    expected = torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias))
    np.testing.assert_allclose(naive(given["x"], given["weight"], given["bias"], activation="gelu"), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("cin", "cout"),
    [(1, 1), (BLOCK_DEPTH + 1, 17), (3 * BLOCK_DEPTH, 8), (5, CHUNK_COLUMNS + 9), (BLOCK_DEPTH - 1, 2 * CHUNK_COLUMNS)],
)
def test_sizes_around_the_blocks(cin, cout, isa_of_float32):
    given = {name: array for name, array in arguments(1, cin, cout).items() if name in ("x", "weight", "bias")}
    executable = build(module_of(op.linear, list(given.values()), [("n", cin), (cout, cin), (cout,)]))
    for rows in (0, 1, 2, 5, 7, 13, BLOCK_ROWS - 1, BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 13):
        given["x"] = features(np.random.default_rng(rows), rows, cin)
        (out,) = run(executable, list(given.values()))
        assert_close(out, naive(**given), cin, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "names",
    [(), ("bias",), ("residual",), ("gate",), ("bias", "gate", "residual"), ("gate", "batch_index"), ("batch_index",)],
    ids="-".join,
)
def test_arguments(names, dtype):
    batch = 3 if {"gate", "batch_index"} <= set(names) else 1
    given = {name: array for name, array in arguments(batch=batch, dtype=dtype).items() if name in ("x", "weight", *names)}
    expected = naive(**{name: array for name, array in given.items() if name != "batch_index" or "gate" in names})
    assert_close(apply(given), expected, 37 if dtype == "float32" else 1, dtype=given["x"].dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    given = arguments(batch=1)
    del given["batch_index"]
    assert_close(apply(given, activation=activation), naive(**given, activation=activation), 37, dtype="float32")


@pytest.mark.parametrize("activation", ["none", "gelu"])  # from registers, and from sums that were kept
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_has_the_same_bits_whatever_lies_beside_it(dtype, activation, isa):
    given = arguments(2 * BLOCK_ROWS + 5, 2 * BLOCK_DEPTH + 3, 83, dtype=dtype)
    by_row = ("x", "residual", "batch_index")
    shapes = [("n", *array.shape[1:]) if name in by_row else array.shape for name, array in given.items()]
    together = apply(given, shapes, activation=activation)
    for rows in (slice(0, 1), slice(BLOCK_ROWS - 2, BLOCK_ROWS + 3), slice(17, None)):
        part = given | {name: given[name][rows] for name in by_row}
        np.testing.assert_array_equal(apply(part, shapes, activation=activation), together[rows])


def test_the_last_column_has_the_same_bits_in_every_row():
    """Of a panel of a single column, vectors of rows could be made, and of the last rows not."""
    given = {"x": None, "weight": np.linspace(-3, 3, 65, dtype="float32")[:, None]}
    rng = np.random.default_rng(0)
    given["x"] = rng.standard_normal((2 * BLOCK_ROWS + 5, 1), dtype=np.float32)
    shapes = [("n", 1), (65, 1)]
    out = apply(given, shapes, activation="gelu")
    for rows in (7, BLOCK_ROWS, BLOCK_ROWS + 1):
        np.testing.assert_array_equal(apply(given | {"x": given["x"][-rows:]}, shapes, activation="gelu"), out[-rows:])


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_depth_of_many_blocks(dtype, activation, isa):
    """Sums wait for each next block; of so deep rows a task has fewer than of others; the last pair is half a one."""
    rows, cin = 2 * LEAST_ROWS + 1, 16385
    assert BLOCK_BYTES // (4 * cin) < LEAST_ROWS and cin > 2 * BLOCK_DEPTH
    given = {name: array for name, array in arguments(rows, cin, 70, 1, dtype).items() if name != "batch_index"}
    out = apply(given, activation=activation)
    assert_close(out, naive(**given, activation=activation), cin if dtype == "float32" else 2, dtype=given["x"].dtype)


def test_a_batch_index_out_of_range_is_named():
    given = arguments()
    given["batch_index"][7] = 3
    with pytest.raises(ValueError, match=r"batch_index: row 7 is 3, expected 0 to 2"):
        apply(given)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": ((40, 37), "int8")}, r"x: expected \[any, any\] of float32 or bfloat16 or float16"),
        ({"x": ((40, 37), "float64")}, r"x: expected .*float64.*: cast it by relax.op.astype\(..., 'float32'\)"),
        ({"bias": ((29,), "float64")}, r"bias: expected .*float64.*: cast it by relax.op.astype\(..., 'float32'\)"),
        ({"x": ((40, 36), "float32")}, r"x: expected 37 channels, as weight \[29, 37\] takes, given 36"),
        ({"weight": ((29, 37), "bfloat16")}, r"weight: expected \[any, 37\] of float32"),
        ({"bias": ((28,), "float32")}, r"bias: expected \[29\] of float32"),
        ({"residual": ((41, 29), "float32")}, r"residual: expected \[40, 29\] of float32"),
        ({"gate": ((3, 28), "float32")}, r"gate: expected \[any, 29\] of float32"),
        ({"batch_index": ((40,), "int64")}, r"batch_index: expected \[40\] of int32"),
        ({"batch_index": None}, r"gate: expected \[1, 29\] of float32"),
    ],
)
def test_bad_arguments(change, says):
    types = {name: (array.shape, str(array.dtype)) for name, array in arguments().items()} | change
    given = {name: relax.Var(name, relax.TensorType(*ty)) for name, ty in types.items() if ty is not None}
    with pytest.raises(ValueError, match=rf"sparse_ops\.linear: {says}"):
        relax.BlockBuilder().normalize(op.linear(**given))


@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float32"), ("float32", "float16"), ("float16", "bfloat16")],
)
def test_a_result_of_another_dtype(dtype, out_dtype):
    given = {name: array for name, array in arguments(dtype=dtype).items() if name in ("x", "weight", "bias")}
    out = apply(given, out_dtype=out_dtype)
    assert out.dtype == np.dtype(ml_dtypes.bfloat16 if out_dtype == "bfloat16" else out_dtype)
    assert_close(out, naive(**given), 37 if out_dtype == "float32" else 1, dtype=out.dtype)


def test_an_unknown_option():
    x = relax.Var("x", relax.TensorType((1, 1), "float32"))
    with pytest.raises(ValueError, match=r"out_dtype: expected one of None, 'float32', 'bfloat16', 'float16', given 'int8'"):
        op.linear(x, x, out_dtype="int8")
    with pytest.raises(ValueError, match=r"linear: activation: expected one of 'none', .* given 'tanh'"):
        op.linear(x, x, activation="tanh")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("names", [(), ("bias", "gate", "residual")], ids=["alone", "with all"])
def test_without_input_channels(names, dtype):
    """The sum of nothing: act(gate * bias + residual), over outputs full of garbage."""
    given = {name: array for name, array in arguments(13, 0, 29, 1, dtype).items() if name in ("x", "weight", *names)}
    mod = module_of(
        lambda *args: op.linear(**dict(zip(given, args, strict=True)), activation="gelu"),
        list(given.values()),
        [array.shape for array in given.values()],
    )
    with host_target():
        mod = relax.transform.LegalizeOps()(mod)
    (out,) = run(compile_poisoned(poisoned(mod), host_target()), list(given.values()))
    assert_close(out, naive(**given, activation="gelu"), 2, dtype=dtype)


@pytest.mark.parametrize("cin", [100, 16385])
def test_memory_of_widened_rows_is_planned(cin):
    """Rows of a block as float32, for every thread."""
    given = {name: array for name, array in arguments(5, cin, 70, dtype="float16").items() if name in ("x", "weight")}
    with planned_memory() as plan:
        build(module_of(op.linear, list(given.values()), [("n", cin), (70, cin)]))
    for rows in (1, 1000):
        assert plan.of("main", n=rows).workspace < threads() * (2 * BLOCK_BYTES + (1 << 20))
