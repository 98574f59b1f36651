"""`RecognizeLayerNorm`: what it takes in, and what it leaves alone."""

import pytest
from tvm import relax

from sparse_ops.transform import RecognizeLayerNorm, SimplifyLayout
from tests.sparse_ops.transform.graphs import arguments, arrays, calls, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.tolerance import assert_close

R = relax.op
B, S, C = 2, 3, 8


def norm(x, weight, bias, axes=(-1,)):
    return R.nn.layer_norm(x, weight, bias, list(axes), epsilon=0.1)


def plus_one(scale):
    return R.add(scale, relax.const(1.0, "float32"))


BEHIND = {  # what follows, shapes of further inputs, optional arguments but weight and bias, activation
    "nothing": (lambda y: y, [], set(), "none"),
    "scale": (lambda y, s: R.multiply(y, plus_one(s)), [(B, 1, C)], {"scale", "batch_index"}, "none"),
    "shift": (lambda y, t: R.add(t, y), [(C,)], {"shift"}, "none"),
    "scale and shift": (
        lambda y, s, t: R.add(R.multiply(plus_one(s), y), t),
        [(B, 1, C), (B, 1, C)],
        {"scale", "shift", "batch_index"},
        "none",
    ),
    "scale, shift and activation": (
        lambda y, s, t: R.nn.silu(R.add(R.multiply(y, plus_one(s)), t)),
        [(1, 1, C), (C,)],
        {"scale", "shift"},
        "silu",
    ),
}


def check(follow, shapes):
    """The module after the pass; it computes the same."""
    shapes = [(B, S, C), (C,), (C,), *shapes]
    before = graph(lambda x, w, b, *rest: follow(norm(x, w, b), *rest), *shapes)
    after = SimplifyLayout()(RecognizeLayerNorm()(SimplifyLayout()(before)))
    given = arrays(*shapes)
    assert_close(interpret(after, *given), interpret(before, *given), depth=C, dtype="float32")
    return after


@pytest.mark.parametrize("case", BEHIND)
def test_what_follows(case):
    follow, shapes, names, activation = BEHIND[case]
    after = check(follow, shapes)
    assert set(ops(after)) <= {"reshape", "sparse_ops.layer_norm", "batch_index"}
    (call,) = calls(after, "sparse_ops.layer_norm")
    assert arguments(call) == names | {"weight", "bias"} and call.attrs["activation"] == activation


BESIDE = {  # what follows, shapes of further inputs, ops that stay
    "a factor without 1": (lambda y, s: R.multiply(y, s), [(C,)], ["multiply"]),
    "a factor behind a shift": (lambda y, t, s: R.multiply(R.add(y, t), plus_one(s)), [(C,), (C,)], ["add", "multiply"]),
    "two shifts": (lambda y, t, u: R.add(R.add(y, t), u), [(C,), (C,)], ["add"]),
    "a summand of a token": (lambda y, t: R.add(y, t), [(S, C)], ["add"]),
    "tables of unequal rows": (
        lambda y, s, t: R.add(R.multiply(y, plus_one(s)), t),
        [(C,), (B, 1, C)],
        ["add"],
    ),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_does_not_belong(case):
    follow, shapes, kept = BESIDE[case]
    after = check(follow, shapes)
    assert [name for name in ops(after) if name in ("add", "multiply")][-len(kept) :] == kept
    assert calls(after, "sparse_ops.layer_norm")


def test_symbolic_rows():
    after = RecognizeLayerNorm()(graph(norm, ("b", "s", C), (C,), (C,)))
    assert ops(after) == ["reshape", "sparse_ops.layer_norm", "reshape"]


KEPT = {
    "two axes": (lambda x: norm(x, *(relax.op.ones((S, C), "float32") for _ in range(2)), axes=(-2, -1)), (B, S, C)),
    "channels of unknown number": (norm, ("b", "c"), ("c",), ("c",)),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case):
    assert "nn.layer_norm" in ops(RecognizeLayerNorm()(graph(*KEPT[case])))
