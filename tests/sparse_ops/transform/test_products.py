"""`IntegerProducts`: which layers have integer products, by where they stand, and what that does to numbers."""

from dataclasses import replace

import pytest
import tvm
from tvm import relax

from sparse_ops import op
from sparse_ops.op.register import OPS
from sparse_ops.transform.precision import features_of, gains, to_precision
from sparse_ops.transform.products import LEAST, IntegerProducts, has_integers
from tests.sparse_ops.transform.graphs import calls, graph
from tir_kernels.cpu.isa import AVX2, AVX512, AVX512_BF16, PORTABLE, forced_isa

R = relax.op
N, C = 12, max(LEAST)
VNNI = replace(AVX512, integer=("vpdpbusd",))
VNNI_BF16 = replace(AVX512_BF16, integer=("vpdpbusd",))
SEVEN_BITS = replace(AVX2, integer=("vpmaddubsw",))


@pytest.fixture(autouse=True)
def on_integers():
    with forced_isa(VNNI):
        yield


def emit(expr):
    return relax.BlockBuilder.current().emit(expr)


def norm(x, bias, **more):
    return emit(op.layer_norm(x, bias, bias, **more))


def products(mod) -> list[str]:
    """Of the linear layers of a module, in order."""
    linear = OPS["linear"].signature
    return [linear.options_of(call)["products"] for call in calls(mod, "sparse_ops.linear")]


def chosen(call, *shapes) -> list[bool]:
    """Which linear layers of a graph get integers."""
    return [found == "int8" for found in products(IntegerProducts("int8")(graph(call, *shapes)))]


X, W, B = (N, C), (C, C), (C,)


def test_a_transformer_block_between_its_embedding_and_its_head():
    def network(x, weight, bias):
        h = emit(op.linear(x, weight, bias))  # an embedding of the input
        h = emit(op.linear(norm(h, bias), weight, bias, residual=h))
        hidden = emit(op.linear(norm(h, bias), weight, bias, activation="gelu"))
        h = emit(op.linear(hidden, weight, residual=h))
        return op.linear(norm(h, bias), weight)  # a head

    assert chosen(network, X, W, B) == [False, True, True, True, False]


def test_adaptive_norms_and_the_embedding_of_time_do_not():
    def network(x, time, weight, bias):
        waves = emit(R.concat([emit(R.cos(time)), emit(R.sin(time))], 1))
        emb = emit(op.linear(waves, weight, activation="silu"))
        emb = emit(op.linear(emb, weight, activation="silu"))  # not a first layer, but all that it does is to modulate
        scale, shift, gate = (emit(op.linear(emb, weight)) for _ in range(3))
        h = emit(op.layer_norm(x, scale=scale, shift=shift))
        return op.linear(h, weight, residual=x, gate=gate)

    assert chosen(network, X, (1, C // 2), W, B) == [False] * 5 + [True]


@pytest.mark.parametrize("residual", [False, True])
def test_a_last_layer_is_one_that_adds_to_nothing(residual):
    def network(x, weight, bias):
        h = emit(op.linear(norm(x, bias), weight, residual=x if residual else None))
        return R.reshape(emit(R.sigmoid(h)), (N // 2, 2, C))

    assert chosen(network, X, W, B) == [residual]


def test_a_first_layer_is_one_whose_input_nothing_made():
    def masked(x, mask, weight, bias):
        h = emit(R.multiply(norm(x, bias), mask))
        return op.linear(h, weight, residual=x)

    def embedded(x, mask, weight, bias):
        return op.linear(emit(R.multiply(x, mask)), weight, residual=x)

    shapes = X, (N, 1), W, B
    assert chosen(masked, *shapes) == [True]
    assert chosen(embedded, *shapes) == [False]


def test_of_two_results_none_is_made_by_integers():
    def network(x, weight, bias):
        first = emit(op.linear(norm(x, bias), weight))
        return relax.Tuple([first, emit(op.linear(first, weight, residual=x))])

    builder = relax.BlockBuilder()
    given = [relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in zip("xwb", (X, W, B), strict=True)]
    with builder.function("main", given):
        with builder.dataflow():
            out = builder.emit_output(network(*given))
        builder.emit_func_output(out)
    assert products(IntegerProducts("int8")(builder.get())) == ["float", "int8"]


@pytest.mark.parametrize(
    ("cin", "cout", "expected"), [(*LEAST, True), (LEAST[0] - 1, LEAST[1], False), (LEAST[0], LEAST[1] - 1, False)]
)
def test_small_layers_do_not(cin, cout, expected):
    def network(x, weight, bias, residual):
        return op.linear(norm(x, bias), weight, residual=residual)

    assert chosen(network, (N, cin), (cout, cin), (cin,), (N, cout)) == [expected]


def layer(x, weight, bias):
    return op.linear(norm(x, bias), weight, residual=x)


def test_rows_may_be_unknown():
    assert chosen(layer, ("rows", C), W, B) == [True]


@pytest.mark.parametrize(
    ("isa", "precision", "features", "expected"),
    [
        (VNNI, "int8", "float32", "int8"),
        (VNNI, "int7", "float32", "int7"),
        (VNNI_BF16, "int8", "bfloat16", "int8"),
        (SEVEN_BITS, "int8", "float32", "float"),
        (SEVEN_BITS, "int7", "float32", "int7"),
        (PORTABLE, "int8", "float32", "float"),
        (AVX512_BF16, "int7", "bfloat16", "float"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_what_a_cpu_gains_by(isa, precision, features, expected):
    with forced_isa(isa):
        after = to_precision(precision)(graph(layer, X, W, B))
        assert features_of(precision) == features
        assert gains(precision) == (expected != "float")
    assert products(after) == [expected]
    assert [str(call.ty.dtype) for call in calls(after, "sparse_ops.linear")] == [features]
    assert str(after["main"].ret_ty.dtype) == "float32"


def test_where_nothing_is_gained_nothing_changes():
    before = graph(layer, X, W, B)
    with forced_isa(PORTABLE):
        tvm.ir.assert_structural_equal(to_precision("int8")(before), before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_floats_gain_nothing(precision):
    assert features_of(precision) == precision
    assert not gains(precision)
    assert products(to_precision(precision)(graph(layer, X, W, B))) == ["float"]


def test_wrong_precision():
    with pytest.raises(ValueError, match=r"precision: expected one of .*'int8', 'int7', given 'int4'"):
        features_of("int4")
    with pytest.raises(ValueError, match=r"gains: precision: expected one of .*'int8', 'int7', given 'int4'"):
        gains("int4")
    for made in (IntegerProducts, has_integers):
        with pytest.raises(ValueError, match=f"{made.__name__}: products: expected one of 'int8', 'int7', given 'float'"):
            made("float")
