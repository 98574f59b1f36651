"""`conv_transpose3d`: its oracle, groups of phases, geometries, sizes that fill no tile, infinities, wrong input.

The registry's row walks it under every instruction set, with poisoned outputs and any number of threads.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close
from tir_kernels.spec.conv_transpose3d import axes_of, groups_of, naive, out_size
from tir_kernels.spec.geometry import Geometry

NAMES = ("stride", "padding", "output_padding", "dilation")


@pytest.mark.parametrize(
    "kernel, options",
    [
        ((1, 2, 2), {"stride": (1, 2, 2)}),
        ((3, 2, 4), {"stride": (2, 1, 3), "padding": (1, 0, 2), "output_padding": (1, 0, 1), "dilation": (2, 3, 1)}),
    ],
)
def test_oracle_is_torch_conv_transpose3d(kernel, options):
    rng = np.random.default_rng(0)
    x, weight, bias = features(rng, 2, 3, 4, 5, 6), features(rng, 3, 5, *kernel), features(rng, 5)
    tensors = (torch.from_numpy(array).double() for array in (x, weight, bias))
    expected = torch.nn.functional.conv_transpose3d(*tensors, **options)
    np.testing.assert_allclose(naive(x, weight, bias, **options), expected.numpy(), atol=1e-12)
    residual = features(rng, *expected.shape)
    np.testing.assert_allclose(
        naive(x, weight, bias, residual, **options, activation="relu"),
        torch.relu(expected + torch.from_numpy(residual)).numpy(),
        atol=1e-12,
    )


def test_groups_of_phases():
    """With a kernel as large as its stride all phases read one voxel; of 3 taps and stride 2 those of each size are apart."""
    (group,) = groups_of(Geometry((1, 2, 2), (1, 2, 2), transposed=True))
    assert (len(group.phases), group.steps, group.taps) == (4, ((0, 0, 0),), ((0,), (1,), (2,), (3,)))
    (group,) = groups_of(Geometry((1, 4, 4), (1, 2, 2), (0, 1, 1), transposed=True))
    assert (len(group.phases), len(group.steps)) == (4, 4)
    apart = groups_of(Geometry((1, 3, 3), (1, 2, 2), (0, 1, 1), transposed=True))
    assert [(len(group.phases), len(group.steps)) for group in apart] == [(1, 4), (1, 2), (1, 2), (1, 1)]


def test_nothing_is_padded_where_the_kernel_is_as_large_as_its_stride():
    axes = axes_of(Geometry((1, 2, 3), (1, 2, 3), transposed=True))
    assert [(axis.before, axis.after, axis.more) for axis in axes] == [(0, 0, 0)] * 3


def check(x, weight, bias=None, residual=None, shapes=None, activation="none", **options):
    """Compare the op with its oracle; returns what it computed."""
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    given = {name: array for name, array in given.items() if array is not None}
    options["activation"] = activation
    out = evaluate(
        lambda *args: op.conv_transpose3d(**dict(zip(given, args, strict=True)), **options), *given.values(), shapes=shapes
    )
    depth = max(2, weight.shape[0] * np.prod(weight.shape[2:])) if x.dtype == "float32" else 1
    assert_close(out, naive(x, weight, bias, residual, **options), depth, dtype=x.dtype)
    return out


@pytest.mark.parametrize(
    "cin, cout, size, kernel, options",
    [
        (5, 7, (3, 4, 5), (1, 1, 1), {"stride": (2, 1, 3), "output_padding": (1, 0, 2)}),  # phases without a tap
        (3, 700, (1, 3, 50), (1, 2, 2), {"stride": (1, 2, 2)}),  # several tasks for the rows of one place
        (70, 9, (1, 9, 15), (1, 4, 4), {"stride": (1, 2, 2), "padding": (0, 1, 1)}),
        (4, 5, (1, 1, 1), (1, 3, 3), {"padding": (0, 1, 1)}),  # all but one output cut off
        (4, 5, (2, 3, 4), (2, 3, 3), {"stride": (1, 2, 4), "padding": (1, 2, 1), "dilation": (1, 2, 3)}),
    ],
)
def test_geometries(cin, cout, size, kernel, options):
    rng = np.random.default_rng(1)
    check(features(rng, 2, cin, *size), features(rng, cin, cout, *kernel), features(rng, cout), **options)


axis = st.tuples(*[st.integers(1, 3)] * 2, st.integers(0, 2), st.integers(0, 2), st.integers(1, 3), st.integers(1, 5))


@settings(max_examples=4)
@given(st.tuples(axis, axis, axis), st.tuples(*[st.integers(1, 9)] * 2), st.integers(0, 3))
def test_any_geometry(axes, channels, batch):
    kernel, stride, padding, more, dilation, size = zip(*axes, strict=True)
    more = tuple(min(m, max(s, d) - 1) for m, s, d in zip(more, stride, dilation, strict=True))
    geometry = Geometry(kernel, stride, padding, dilation, True, more)
    size = [n + max(0, 1 - left) for n, left in zip(size, out_size(size, geometry), strict=True)]
    cin, cout = channels
    rng = np.random.default_rng(2)
    x, weight, bias = features(rng, batch, cin, *size), features(rng, cin, cout, *kernel), features(rng, cout)
    shapes = [("b", cin, "d", "h", "w"), weight.shape, bias.shape]
    check(x, weight, bias, shapes=shapes, **dict(zip(NAMES, (stride, padding, more, dilation), strict=True)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_infinities_stay_where_they_belong(dtype, isa):
    x = features(np.random.default_rng(3), 1, 37, 1, 6, 7, dtype=dtype)
    x[0, -1, -1, -1, -1] = np.inf
    weight = features(np.random.default_rng(4), 37, 6, 1, 3, 3, dtype=dtype)
    out = check(x, weight, stride=(1, 2, 2), padding=(0, 1, 1), output_padding=(0, 1, 1))
    assert np.isinf(out.astype("float32")).sum() == 6 * 9


def test_an_element_of_a_batch_does_not_depend_on_the_others():
    rng = np.random.default_rng(5)
    x, weight = features(rng, 3, 5, 2, 7, 8), features(rng, 5, 6, 1, 3, 3)
    shapes = [("b", *x.shape[1:]), weight.shape]
    both, one = (check(part, weight, shapes=shapes, stride=(1, 2, 2)) for part in (x, x[1:2]))
    assert np.array_equal(both[1:2], one)


def test_without_input_channels():
    """The sum of nothing: the bias and the residual."""
    rng = np.random.default_rng(0)
    x, weight, bias, residual = (features(rng, *shape) for shape in ((2, 0, 1, 4, 5), (0, 6, 1, 2, 2), (6,), (2, 6, 1, 8, 10)))
    check(x, weight, bias, residual, stride=(1, 2, 2))


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"x": (2, 3, 8, 8)}, {}, r"x: expected \[any, any, any, any, any\] of float32 or bfloat16"),
        ({"weight": (4, 5, 3, 3, 3)}, {}, r"x: expected 4 channels, as weight \[4, 5, 3, 3, 3\] takes, given 3"),
        ({"bias": (6,)}, {}, r"bias: expected \[5\] of float32"),
        ({"residual": (2, 5, 9, 10, 10)}, {}, r"residual: expected \[2, 5, 10, 10, 10\] of float32"),
        ({}, {"padding": (0, 5, 0)}, "x: expected a size that gives at least 1 output along axis 3, given 8, which gives 0"),
        ({"x": (2, 3, 8, 8, 0)}, {}, "x: expected a size that gives at least 1 output along axis 4, given 0, which gives 0"),
        ({}, {"stride": 0}, "stride: expected an int or three of at least 1, given 0"),
        ({}, {"output_padding": 1}, r"output_padding: expected less than stride or dilation, \(1, 1, 1\), given \(1, 1, 1\)"),
        ({}, {"activation": "swish"}, "activation: expected one of 'none'"),
    ],
)
def test_wrong_input_is_named(change, options, message):
    shapes = {"x": (2, 3, 8, 8, 8), "weight": (3, 5, 3, 3, 3), "bias": (5,), **change}
    variables = {name: relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=rf"sparse_ops\.conv_transpose3d: {message}"):
        relax.BlockBuilder().normalize(op.conv_transpose3d(**variables, **options))


def test_sizes_without_an_output_at_run_time_are_named():
    weight, shapes = np.zeros((2, 3, 1, 3, 3), "float32"), [(1, 2, 1, "h", "w"), (2, 3, 1, 3, 3)]
    for size, message in (((1, 2), "axis 3, given 1, which gives 0"), ((3, 0), "axis 4, given 0, which gives 0")):
        x = np.zeros((1, 2, 1, *size), "float32")
        with pytest.raises(ValueError, match=f"x: expected a size that gives at least 1 output along {message}"):
            evaluate(lambda x, w: op.conv_transpose3d(x, w, padding=(0, 2, 1)), x, weight, shapes=shapes)
