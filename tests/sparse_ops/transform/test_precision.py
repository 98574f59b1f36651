"""`to_precision`: what becomes bfloat16 or float16, what stays float32, and how far the results move."""

import numpy as np
import pytest
import tvm
from tvm import relax

from sparse_ops import op
from sparse_ops.op.register import OPS as SIGNATURES
from sparse_ops.testing.examples import OPS
from sparse_ops.transform import to_precision
from tests.sparse_ops.transform.graphs import arrays, calls, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.sparse_ops.walk import example_module

R = relax.op
N, C = 12, 16


def emit(expr):
    return relax.BlockBuilder.current().emit(expr)


def dtypes(mod, name):
    """For each call of an op the dtypes of its tensors and of its result."""
    return [[str(tensor.ty.dtype) for tensor in (*call.args, call)] for call in calls(mod, name)]


def block(x, weight, gamma, bias, heads=2):
    """A transformer block in which all layers have the same weight, but for a factor."""
    offsets = relax.const(np.array([0, N], "int32"))

    def layer(x, **more):
        return emit(op.linear(x, weight, bias, **more))

    def norm(x):
        return emit(op.layer_norm(x, gamma, bias))

    h = norm(x)
    parts = [emit(R.reshape(layer(h), (N, heads, C // heads))) for _ in range(3)]
    x = layer(emit(R.reshape(emit(op.attention(*parts, offsets, offsets)), (N, C))), residual=x)
    return layer(layer(norm(x), activation="gelu"), residual=x)


SHAPES = [(N, C), (C, C), (C,), (C,)]
NARROW = to_precision("bfloat16")
both = pytest.mark.parametrize("narrow", ["bfloat16", "float16"])


@both
def test_everything_between_our_ops_is_narrow(narrow):
    before = graph(block, *SHAPES)
    after = to_precision(narrow)(before)
    tvm.ir.assert_structural_equal(after["main"].ty, before["main"].ty)
    assert ops(after).count("astype") == 3  # x, the weight, the result
    assert dtypes(after, "sparse_ops.attention") == [[narrow] * 3 + ["int32"] * 2 + [narrow]]
    assert dtypes(after, "sparse_ops.layer_norm") == [[narrow, "float32", "float32", narrow]] * 2
    kinds = {tuple(kind) for kind in dtypes(after, "sparse_ops.linear")}
    assert kinds == {(narrow, narrow, "float32", *residual, narrow) for residual in ([], [narrow])}
    assert {str(call.ty.dtype) for call in calls(after, "reshape")} == {narrow}


def test_float32_changes_nothing():
    before = graph(block, *SHAPES)
    tvm.ir.assert_structural_equal(to_precision("float32")(before), before)


def test_moves_need_no_casts():
    def call(x, w):
        y = emit(op.linear(x, w))
        halves = [emit(R.strided_slice(y, [1], [begin], [begin + C // 2])) for begin in (0, C // 2)]
        turned = emit(R.permute_dims(emit(R.permute_dims(emit(R.concat(halves[::-1], 1)), [1, 0])), [1, 0]))
        return op.linear(turned, w)

    after = NARROW(graph(call, *SHAPES[:2]))
    assert ops(after).count("astype") == 3  # x, w, the result
    given = arrays(*SHAPES[:2])
    assert within(interpret(after, *given), interpret(graph(call, *SHAPES[:2]), *given), 0.01)


@both
def test_casts_of_the_caller_are_left_out(narrow):
    """A caller that keeps a narrow type between functions gets no way over float32."""

    def call(x, w):
        return R.astype(emit(op.linear(emit(R.astype(x, "float32")), emit(R.astype(w, "float32")))), narrow)

    assert ops(to_precision(narrow)(graph(call, *SHAPES[:2], dtype=narrow))) == ["sparse_ops.linear"]


def test_other_ops_compute_in_float32():
    def call(x, w):
        return op.linear(emit(R.sin(emit(op.linear(x, w)))), w)

    after = NARROW(graph(call, *SHAPES[:2]))
    assert ops(after)[-5:] == ["astype", "sin", "astype", "sparse_ops.linear", "astype"]
    (sin,) = calls(after, "sin")
    assert str(sin.ty.dtype) == "float32"


def test_logits_stay_float32():
    after = NARROW(graph(lambda x, w: op.softmax(emit(op.linear(x, w))), *SHAPES[:2]))
    assert dtypes(after, "sparse_ops.softmax") == [["float32", "float32"]]


def test_modules_in_bfloat16_already():
    before = graph(lambda x, w: op.linear(x, w), *SHAPES[:2], dtype="bfloat16")
    tvm.ir.assert_structural_equal(NARROW(before), before)


@pytest.mark.parametrize("row", [row for row in OPS if "bfloat16" in row.dtypes], ids=lambda row: row.name)
def test_every_op_on_features_is_known(row):
    """An op that takes bfloat16 is one that the pass makes take it, or softmax, or a sum of gradients."""
    after = NARROW(example_module(row, "float32"))
    values = (binding.value for block in after["main"].body.blocks for binding in block.bindings)
    ours = [call for call in values if isinstance(call, relax.Call) and call.op.name.startswith("relax.sparse_ops.")]
    on_floats = [
        call for call in ours if isinstance(call.ty, relax.TensorType) and str(call.ty.dtype) in ("float32", "bfloat16")
    ]
    assert on_floats
    for call in on_floats:
        name = call.op.name.removeprefix("relax.sparse_ops.")
        stays = name in ("softmax", "sparse_conv_weight_gradient")
        assert str(call.ty.dtype) == ("float32" if stays else "bfloat16")
        assert SIGNATURES[name].signature.narrows != stays


def within(found: np.ndarray, expected: np.ndarray, share: float) -> bool:
    """Whether the relative error, in the L2 norm, is at most `share`, and not so small that nothing was rounded."""
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    return 1e-4 < error < share


@pytest.mark.parametrize(("precision", "share"), [("bfloat16", 0.02), ("float16", 0.0025)])  # of as many bits less
def test_24_blocks_stay_within_two_percent(precision, share):
    """With random weights, of its own for each block. What a block hands to the next is rounded, as within one model."""
    rng = np.random.default_rng(0)
    before, after = graph(block, *SHAPES), to_precision(precision)(graph(block, *SHAPES))
    wide = narrow = rng.standard_normal((N, C), dtype=np.float32)
    for _ in range(24):
        weight = rng.standard_normal((C, C)) / np.sqrt(C)
        gamma, bias = 1 + 0.1 * rng.standard_normal(C), 0.1 * rng.standard_normal(C)
        wide, narrow = interpret(before, wide, weight, gamma, bias), interpret(after, narrow, weight, gamma, bias)
    assert within(narrow, wide, share)


def test_wrong_precision():
    with pytest.raises(
        ValueError, match=r"precision: expected one of 'float32', 'tf32', 'bfloat16', 'float16', 'int8', 'int7', given 'int4'"
    ):
        to_precision("int4")
