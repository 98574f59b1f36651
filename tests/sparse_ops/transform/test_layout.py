"""`SimplifyLayout`: every rule on IR, and any chain of moves on numbers."""

from math import prod

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from sparse_ops.transform import SimplifyLayout
from sparse_ops.transform.layout import groups
from tests.sparse_ops.transform.graphs import graph, ops
from tests.sparse_ops.transform.interpret import interpret

R = relax.op


def cut(x, axis, begin, end):
    return R.strided_slice(x, [axis], [begin], [end])


CASES = {  # shape, before, after
    "nothing to broadcast": (("b", 6), lambda x: R.broadcast_to(x, x.ty.shape), lambda x: x),
    "reshapes merge": ((4, 6), lambda x: R.reshape(R.reshape(x, (2, 12)), (24,)), lambda x: R.reshape(x, (24,))),
    "a reshape and its inverse": (("b", 6), lambda x: R.squeeze(R.expand_dims(x, [1]), [1]), lambda x: x),
    "transpositions merge": (
        ("b", "s", 4),
        lambda x: R.permute_dims(R.permute_dims(x, [1, 0, 2]), [0, 2, 1]),
        lambda x: R.permute_dims(x, [1, 2, 0]),
    ),
    "a transposition and its inverse": (
        ("b", "s", 4),
        lambda x: R.permute_dims(R.permute_dims(x, [2, 0, 1]), [1, 2, 0]),
        lambda x: x,
    ),
    "an axis of size 1 moves": (
        ("b", 1, 4),
        lambda x: R.permute_dims(x, [1, 0, 2]),
        lambda x: R.reshape(x, (1, x.ty.shape[0], 4)),
    ),
    "a split before a transposition": (
        ("s", "b", 32),
        lambda x: R.reshape(R.permute_dims(x, [1, 0, 2]), (x.ty.shape[1], x.ty.shape[0], 2, 16)),
        lambda x: R.permute_dims(R.reshape(x, (x.ty.shape[0], x.ty.shape[1], 2, 16)), [1, 0, 2, 3]),
    ),
    "all of an axis": (("b", 6), lambda x: cut(x, 1, 0, 6), lambda x: x),
    "a slice before a transposition": (
        ("b", 6),
        lambda x: cut(R.permute_dims(x), 0, 2, 4),
        lambda x: R.permute_dims(cut(x, 1, 2, 4), [1, 0]),
    ),
    "a slice before a reshape": (
        ("n", 12),
        lambda x: R.squeeze(cut(R.reshape(x, (x.ty.shape[0], 3, 4)), 1, 1, 2), [1]),
        lambda x: cut(x, 1, 4, 8),
    ),
    "an element": (
        ("b", 3, 4),
        lambda x: R.take(x, relax.const(2, "int64"), 1),
        lambda x: R.reshape(cut(x, 1, 2, 3), (x.ty.shape[0], 4)),
    ),
    "parts": (
        ("b", 6),
        lambda x: relax.TupleGetItem(R.split(x, [2], axis=1), 1),
        lambda x: cut(x, 1, 2, 6),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_rule(case):
    shape, before, after = CASES[case]
    tvm.ir.assert_structural_equal(SimplifyLayout()(graph(before, shape)), graph(after, shape))


KEPT = {
    "a slice across what was taken apart": ((4, 6), lambda x: cut(R.reshape(x, (4, 3, 2)), 2, 0, 1)),
    "a merge behind a transposition": ((4, 6), lambda x: R.reshape(R.permute_dims(x, [1, 0]), (24,))),
    "an element at a place known at run time": ((4, 6), lambda x: R.take(x, relax.const([0, 1], "int64"), 0)),
    "a broadcast": ((1, 6), lambda x: R.broadcast_to(x, (4, 6))),
    "steps": ((8, 6), lambda x: R.strided_slice(x, [0], [0], [8], [2])),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case):
    shape, expr = KEPT[case]
    before = graph(expr, shape)
    tvm.ir.assert_structural_equal(SimplifyLayout()(before), before)


@given(st.data())
def test_any_chain_moves_the_same_elements(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4))

    def chain(x):
        for _ in range(data.draw(st.integers(1, 5))):
            dims = [int(dim) for dim in relax.BlockBuilder.current().emit(x).ty.shape.values]
            x = relax.BlockBuilder.current().emit(x)
            match data.draw(st.sampled_from(["reshape", "permute_dims", "strided_slice"])):
                case "reshape":
                    x = R.reshape(x, _factors(data, prod(dims)))
                case "permute_dims":
                    x = R.permute_dims(x, data.draw(st.permutations(range(len(dims)))))
                case "strided_slice":
                    axis = data.draw(st.integers(0, len(dims) - 1))
                    begin = data.draw(st.integers(0, dims[axis] - 1))
                    x = cut(x, axis, begin, data.draw(st.integers(begin + 1, dims[axis])))
        return x

    before = graph(chain, tuple(shape))
    after = SimplifyLayout()(before)
    x = np.arange(prod(shape), dtype="float32").reshape(shape)
    np.testing.assert_array_equal(interpret(after, x), interpret(before, x))
    assert ops(after).count("permute_dims") <= ops(before).count("permute_dims")


def _factors(data, size: int) -> list[int]:
    """A shape of so many elements."""
    dims = []
    while size > 1:
        dims.append(data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0])))
        size //= dims[-1]
    return dims or [1]


def test_groups_of_a_reshape():
    b, s = (tvm.tirx.Var(name, "int64") for name in "bs")
    assert groups([b, s, 96], [b * s, 3, 32]) == [([0, 1], [0]), ([2], [1, 2])]
    assert groups([6, 4], [2, 3, 4, 1]) == [([0], [0, 1]), ([1], [2, 3])]
    assert groups([4, 6], [6, 4]) == [([0, 1], [0, 1])]
