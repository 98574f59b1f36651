"""`pool` and `segment_pool`: every mode and option, their oracles, order of sums, wrong input."""

import itertools

import numpy as np
import pytest
import torch
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features, voxels
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close
from tir_kernels.spec import pool, segment_pool
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_inverse, naive_table
from tir_kernels.spec.pool import Reduction

REDUCTIONS = [
    Reduction("sum"),
    Reduction("mean"),
    Reduction("mean", count_bias=1),
    Reduction("max"),
    Reduction("max", max_from_zero=True),
]


def options(reduction: Reduction) -> dict:
    return {"count_bias": reduction.count_bias, "max_from_zero": reduction.max_from_zero}


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_pool_oracle_is_dense_pooling(reduction):
    grid = features(np.random.default_rng(0), 1, 5, 4, 4, 4)
    coords = np.array([(0, *site) for site in itertools.product(range(4), repeat=3)])
    coords_out = np.array([(0, *site) for site in itertools.product(range(2), repeat=3)])
    table = naive_table(coords, coords_out, Geometry((2, 2, 2), (2, 2, 2)))
    out = pool.naive(grid[0].reshape(5, -1).T, table, reduction)
    if reduction.mode == "max":
        expected = torch.nn.functional.max_pool3d(torch.from_numpy(grid), 2).numpy()
        expected = np.maximum(expected, 0) if reduction.max_from_zero else expected
    else:
        expected = 8.0 * torch.nn.functional.avg_pool3d(torch.from_numpy(grid).double(), 2).numpy()
        expected = expected / (8 + reduction.count_bias) if reduction.mode == "mean" else expected
    np.testing.assert_allclose(out, expected[0].reshape(5, -1).T, atol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_pool_modes(reduction):
    """Back through an inverse map, where some rows meet none; all features are negative."""
    rng = np.random.default_rng(1)
    coords = voxels(rng, 150)
    x = -1 - np.abs(features(rng, 40, 5))
    sites = np.unique(coords // np.array([1, 2, 2, 2]), axis=0)[:40].astype("int32")
    table = naive_table(coords, sites, Geometry((2, 2, 2), (2, 2, 2)))
    inverse = naive_inverse(table, 150)
    assert (inverse < 0).all(0).any() and len(sites) == 40
    out = evaluate(
        lambda x, *fields: op.pool(x, relax.Tuple(fields[:4]), fields[4], reduction.mode, **options(reduction)),
        x,
        *_arrays(inverse, 40),
        coords,
    )
    assert_close(out, pool.naive(x, inverse, reduction), 8, dtype="float32")


def _arrays(table, rows_in):
    """A neighbour table as the arrays of a kernel map, in one block."""
    taps, rows = table.shape
    hits = table >= 0
    pair_in, pair_out = np.zeros((2, 1, taps * rows), "int32")
    pair_in[0, : hits.sum()] = table[hits]
    pair_out[0, : hits.sum()] = np.nonzero(hits)[1]
    segment = np.concatenate([[0], hits.sum(1).cumsum()])[None].astype("int32")
    return pair_in, pair_out, segment, np.array([rows_in, rows], "int64")


def test_a_map_of_other_rows_is_refused():
    coords = voxels(np.random.default_rng(2), 20)
    with pytest.raises(ValueError, match=r"kernel_map: expected a map from 19 input rows to 20 output rows"):
        evaluate(lambda x, c: op.pool(x, op.submanifold_map(c), c), np.zeros((19, 3), "float32"), coords)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_segment_pool_oracle_is_index_reduce(reduction):
    rng = np.random.default_rng(3)
    x, index = features(rng, 50, 4), rng.integers(0, 10, 50)
    start = torch.zeros(10, 4, dtype=torch.float64)
    name = {"sum": "sum", "mean": "mean", "max": "amax"}[reduction.mode]
    expected = start.scatter_reduce(
        0,
        torch.from_numpy(index)[:, None].expand(-1, 4),
        torch.from_numpy(x).double(),
        name,
        include_self=bool(reduction.count_bias or reduction.max_from_zero),  # TRELLIS counts the zero that it starts with
    )
    np.testing.assert_allclose(segment_pool.naive(x, index, 10, reduction), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_segment_pool_modes(reduction):
    """More channels than one panel, output rows that nothing goes to, input rows that go nowhere."""
    rng = np.random.default_rng(4)
    x = -1 - np.abs(features(rng, 300, 131))
    index = rng.choice([-1, *range(2, 90)], 300).astype("int32")
    like = np.zeros((90, 1), "float32")
    out = evaluate(lambda x, index, like: op.segment_pool(x, index, like, reduction.mode, **options(reduction)), x, index, like)
    assert_close(out, segment_pool.naive(x, index, 90, reduction), 10, dtype="float32")
    assert not out[:2].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_what_is_not_finite_propagates_as_in_numpy(isa, reduction, dtype):
    """Whatever the order of rows, in whole vectors and in what is left of them."""
    rng = np.random.default_rng(6)
    x = features(rng, 500, 37, dtype=dtype)
    rare = rng.random(x.shape)
    for value, most in ((np.inf, 0.3), (-np.inf, 0.2), (np.nan, 0.1)):
        x[rare < most] = value
    x[:20], x[20:30, ::2] = -np.inf, np.nan
    index = rng.permutation(np.repeat(np.arange(125), 4)).astype("int32")
    index[:20], index[20:40] = 0, np.repeat([1, 2], 10)
    args, more = (reduction.mode,), options(reduction)
    out = evaluate(lambda x, i, like: op.segment_pool(x, i, like, *args, **more), x, index, np.zeros((130, 1), "int32"))
    with np.errstate(invalid="ignore"):
        expected = segment_pool.naive(x, index, 130, reduction)
        assert np.isnan(expected).any() and np.isinf(expected).any()
        check_not_finite(out, expected, reduction)

        table = np.full((4, 130), -1)
        for row in range(125):
            sources = np.flatnonzero(index == row)[:4]
            table[: len(sources), row] = sources
        out = evaluate(
            lambda x, *fields: op.pool(x, relax.Tuple(fields[:4]), fields[4], *args, **more),
            x,
            *_arrays(table, 500),
            np.zeros((130, 1), "int32"),
        )
        check_not_finite(out, pool.naive(x, table, reduction), reduction)


def check_not_finite(out, expected, reduction: Reduction):
    """NaN and infinities where they belong; maxima are exact."""
    out = out.astype(np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.where(finite, 0, out), np.where(finite, 0, expected))
    assert np.isfinite(out[finite]).all()
    if reduction.mode == "max":
        np.testing.assert_array_equal(out, expected)


def test_segments_are_summed_in_the_order_of_rows():
    rng = np.random.default_rng(5)
    x, index = features(rng, 1000, 3), rng.integers(0, 7, 1000).astype("int32")
    expected = np.zeros((7, 3), "float32")
    np.add.at(expected, index, x)
    out = evaluate(lambda *args: op.segment_pool(*args, "sum"), x, index, np.zeros((7, 1), "int32"))
    assert (out == expected).all()


def test_an_index_beyond_the_output_is_named():
    x, index, like = np.zeros((4, 3), "float32"), np.array([0, 1, 2, 3], "int32"), np.zeros((3, 1), "int32")
    with pytest.raises(ValueError, match=r"index: entry 3 is 3, expected a row from 0 to 2, or -1"):
        evaluate(op.segment_pool, x, index, like)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"mode": "median"}, "mode: expected one of 'sum', 'mean', 'max', 'first', given 'median'"),
        ({"mode": "sum", "count_bias": 1}, "count_bias: expected 0 with mode 'sum', given 1"),
        ({"count_bias": -1}, "count_bias: expected an int of at least 0, given -1"),
        ({"max_from_zero": True}, "max_from_zero: expected False with mode 'mean', given True"),
    ],
)
def test_wrong_options_are_named(given, message):
    with pytest.raises(ValueError, match=rf"sparse_ops\.segment_pool: {message}"):
        op.segment_pool(None, None, None, **given)


def test_wrong_arguments_are_named():
    x, index, like = (
        relax.Var(name, relax.TensorType(shape, dtype))
        for name, shape, dtype in (("x", [4, 3], "float32"), ("index", [5], "int32"), ("like", [2], "int32"))
    )
    bb = relax.BlockBuilder()
    with pytest.raises(ValueError, match=r"sparse_ops\.segment_pool: index: expected \[4\] of int32"):
        bb.normalize(op.segment_pool(x, index, like))
    with pytest.raises(ValueError, match=r"sparse_ops\.pool: kernel_map: expected"):
        bb.normalize(op.pool(x, index, like))
    unknown = relax.Var("like", relax.TensorType(dtype="int32", ndim=2))
    with pytest.raises(ValueError, match=r"sparse_ops\.segment_pool: like: expected a tensor with a known number of rows"):
        bb.normalize(op.segment_pool(x, relax.Var("index", relax.TensorType([4], "int32")), unknown))
