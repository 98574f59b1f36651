"""`conv3d`: its oracle, geometries, sizes that fill no tile, what lies outside of the input, wrong input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate, module_of
from tests.tolerance import assert_close
from tir_kernels.spec.conv3d import naive


def test_oracle_is_torch_conv3d():
    rng = np.random.default_rng(0)
    x, weight, bias = features(rng, 2, 3, 7, 8, 9), features(rng, 5, 3, 3, 2, 4), features(rng, 5)
    geometry = {"stride": (2, 1, 3), "padding": (1, 0, 2), "dilation": (2, 3, 1)}
    tensors = (torch.from_numpy(array).double() for array in (x, weight, bias))
    expected = torch.nn.functional.conv3d(*tensors, **geometry)
    np.testing.assert_allclose(naive(x, weight, bias, **geometry), expected.numpy(), atol=1e-12)
    around = [width for pad in geometry["padding"][::-1] for width in (pad, pad)]
    tensors = [torch.from_numpy(array).double() for array in (x, weight, bias)]
    tensors[0] = torch.nn.functional.pad(tensors[0], around, mode="replicate")
    replicated = torch.nn.functional.conv3d(*tensors, **geometry | {"padding": 0})
    np.testing.assert_allclose(naive(x, weight, bias, **geometry, padding_mode="replicate"), replicated.numpy(), atol=1e-12)
    residual = features(rng, *expected.shape)
    np.testing.assert_allclose(
        naive(x, weight, bias, residual, **geometry, activation="relu"),
        torch.relu(expected + torch.from_numpy(residual)).numpy(),
        atol=1e-12,
    )


def check(x, weight, bias=None, residual=None, shapes=None, **options):
    """Compare the op with its oracle; returns what it computed."""
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    given = {name: array for name, array in given.items() if array is not None}
    out = evaluate(lambda *args: op.conv3d(**dict(zip(given, args, strict=True)), **options), *given.values(), shapes=shapes)
    axes = {name: (value,) * 3 if isinstance(value, int) else value for name, value in options.items()}
    depth = weight[0].size if x.dtype == "float32" else 1
    assert_close(out, naive(x, weight, bias, residual, **axes), depth, dtype=x.dtype)
    return out


@pytest.mark.parametrize(
    "cin, cout, size, kernel, options",
    [
        (5, 7, (4, 5, 6), (1, 1, 1), {}),
        (3, 1, (5, 6, 16), (3, 3, 3), {"padding": 1}),
        (3, 40, (1, 28, 42), (1, 14, 14), {"stride": (1, 14, 14)}),  # a patch embedding
        (2, 1100, (3, 3, 3), (3, 3, 3), {"padding": 1}),  # several tasks for the channels of one voxel
        (2, 3, (1, 6, 7), (1, 1, 3), {}),  # the last vector of 8 voxels: a step between rows, two voxels too few
        (4, 9, (1, 1, 1), (3, 3, 3), {"padding": 2, "dilation": 2}),  # nothing but the centre meets the input
    ],
)
def test_geometries(cin, cout, size, kernel, options):
    rng = np.random.default_rng(1)
    check(features(rng, 2, cin, *size), features(rng, cout, cin, *kernel), **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(3, 4, 6), (1, 1, 1), (2, 9, 130)])
def test_replicated_edges(size, dtype):
    """Also where more is added to an axis than it has."""
    rng = np.random.default_rng(6)
    x, weight = features(rng, 2, 5, *size, dtype=dtype), features(rng, 7, 5, 3, 2, 3, dtype=dtype)
    options = {"stride": (1, 2, 1), "padding": (1, 2, 5), "dilation": (1, 1, 2), "padding_mode": "replicate"}
    check(x, weight, features(rng, 7), shapes=[("b", 5, "d", "h", "w"), weight.shape, (7,)], **options)


def test_replicated_edges_of_an_axis_without_padding():
    """An axis that is not padded may be empty as far as its edge is concerned: here the kernel does not fit in."""
    x, weight = np.zeros((1, 2, 3, 0, 4), "float32"), np.zeros((3, 2, 1, 1, 1), "float32")
    shapes = [(1, 2, "d", "h", "w"), weight.shape]
    for padding, message in (
        ((1, 0, 1), "a padded size of at least the 1 of the kernel along axis 3, given 0"),
        ((0, 1, 0), "a size of at least 1 along axis 3, whose edge is replicated, given 0"),
    ):
        with pytest.raises(ValueError, match=f"x: expected {message}"):
            evaluate(lambda x, w: op.conv3d(x, w, padding=padding, padding_mode="replicate"), x, weight, shapes=shapes)  # noqa: B023


axis = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(0, 9))


@settings(max_examples=6)
@given(st.tuples(axis, axis, axis), st.tuples(*[st.integers(1, 9)] * 2), st.integers(0, 3))
def test_any_geometry(axes, channels, batch):
    kernel, stride, padding, dilation, spare = zip(*axes, strict=True)
    size = [max(1, d * (k - 1) + 1 - 2 * p + s) for k, p, d, s in zip(kernel, padding, dilation, spare, strict=True)]
    cin, cout = channels
    rng = np.random.default_rng(2)
    x, weight, bias = features(rng, batch, cin, *size), features(rng, cout, cin, *kernel), features(rng, cout)
    shapes = [("b", cin, "d", "h", "w"), weight.shape, bias.shape]
    check(x, weight, bias, shapes=shapes, stride=stride, padding=padding, dilation=dilation)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_infinities_stay_where_they_belong(dtype):
    """Terms and voxels that only fill up a tile must not meet them: zero times infinity is not a number."""
    x = features(np.random.default_rng(3), 1, 37, 5, 6, 7, dtype=dtype)
    x[0, -1, -1, -1, -1] = np.inf
    out = check(x, features(np.random.default_rng(4), 6, 37, 3, 3, 3, dtype=dtype), padding=1)
    assert np.isinf(out.astype("float32")).sum() == 6 * 8  # the corner is in reach of eight voxels


def test_an_element_of_a_batch_does_not_depend_on_the_others():
    rng = np.random.default_rng(5)
    x, weight = features(rng, 3, 5, 6, 7, 8), features(rng, 6, 5, 3, 3, 3)
    shapes = [("b", *x.shape[1:]), weight.shape]
    both, one = (check(part, weight, shapes=shapes, padding=1) for part in (x, x[1:2]))
    assert np.array_equal(both[1:2], one)


def variables(shapes: dict[str, tuple], dtype: str = "float32") -> dict[str, relax.Var]:
    return {name: relax.Var(name, relax.TensorType(shape, dtype)) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"x": (2, 3, 8, 8)}, {}, r"x: expected \[any, any, any, any, any\] of float32 or bfloat16"),
        ({"weight": (5, 4, 3, 3, 3)}, {}, r"x: expected 4 channels, as weight \[5, 4, 3, 3, 3\] takes, given 3"),
        ({"bias": (6,)}, {}, r"bias: expected \[5\] of float32"),
        ({"residual": (2, 5, 6, 6, 7)}, {}, r"residual: expected \[2, 5, 6, 6, 6\] of float32"),
        ({"x": (2, 3, 8, 2, 8)}, {}, r"x: expected a size of at least \(3, 3, 3\), which the kernel covers"),
        ({}, {"dilation": (1, 1, 4)}, r"x: expected a size of at least \(3, 3, 9\), which the kernel covers"),
        ({}, {"stride": 0}, "stride: expected an int or three of at least 1, given 0"),
        ({}, {"padding": (1, 1)}, r"padding: expected an int or three of at least 0, given \(1, 1\)"),
        ({}, {"dilation": (1, 0, 1)}, "dilation: expected an int or three of at least 1"),
        ({}, {"padding_mode": "reflect"}, "padding_mode: expected one of 'zeros', 'replicate', given 'reflect'"),
        (
            {"x": (2, 3, 8, 0, 8)},
            {"padding": 2, "padding_mode": "replicate"},
            "x: expected a size of at least 1 along axis 3, whose edge is replicated, given 0",
        ),
        ({}, {"activation": "swish"}, "activation: expected one of 'none'"),
    ],
)
def test_wrong_input_is_named(change, options, message):
    shapes = {"x": (2, 3, 8, 8, 8), "weight": (5, 3, 3, 3, 3), "bias": (5,), **change}
    with pytest.raises(ValueError, match=rf"sparse_ops\.conv3d: {message}"):
        relax.BlockBuilder().normalize(op.conv3d(**variables(shapes), **options))


def test_a_kernel_that_does_not_fit_at_run_time_is_named():
    x, weight = np.zeros((1, 2, 4, 1, 4), "float32"), np.zeros((3, 2, 3, 3, 3), "float32")
    with pytest.raises(ValueError, match="x: expected a padded size of at least the 3 of the kernel along axis 3, given 1"):
        evaluate(op.conv3d, x, weight, shapes=[(1, 2, "d", "h", "w"), weight.shape])


def test_sizes_that_a_convolution_keeps_keep_their_names():
    x, weight = np.zeros((1, 2, 4, 4, 4), "float32"), np.zeros((3, 2, 3, 3, 3), "float32")
    call = module_of(lambda x, w: op.conv3d(x, w, padding=1), [x, weight], [("b", 2, "d", "h", "w"), weight.shape])
    (argument, _), result = call["main"].params, call["main"].ret_ty
    assert result.shape.values[2:] == argument.ty.shape.values[2:]


def test_without_input_channels():
    """The sum of nothing: the bias and the residual."""
    rng = np.random.default_rng(0)
    x, weight = features(rng, 2, 0, 3, 4, 5), features(rng, 6, 0, 3, 3, 3)
    bias, residual = features(rng, 6), features(rng, 2, 6, 3, 4, 5)
    out = evaluate(lambda x, w, b, r: op.conv3d(x, w, b, r, padding=1), x, weight, bias, residual)
    assert_close(out, naive(x, weight, bias, residual, padding=(1, 1, 1)), 2, dtype="float32")
