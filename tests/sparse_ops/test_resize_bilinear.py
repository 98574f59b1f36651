"""`resize_bilinear`: its oracle, sizes, wrong input. The registry's row walks it."""

import numpy as np
import pytest
import torch
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close
from tir_kernels.spec.resize_bilinear import naive


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size, size_out", [((5, 7), (11, 13)), ((9, 30), (4, 1)), ((1, 1), (3, 2)), ((6, 8), (6, 8))])
def test_oracle_is_torch_interpolate(size, size_out, align_corners):
    x = features(np.random.default_rng(0), 2, 3, *size)
    tensor = torch.from_numpy(x).double()
    expected = torch.nn.functional.interpolate(tensor, size_out, mode="bilinear", align_corners=align_corners)
    np.testing.assert_allclose(naive(x, size_out, align_corners), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("align_corners", [False, True])
def test_any_sizes(align_corners):
    """One module for all; both sizes come with an input."""
    rng = np.random.default_rng(1)
    for size, size_out in (((5, 7), (40, 13)), ((9, 301), (4, 1)), ((1, 1), (3, 17)), ((6, 8), (0, 5))):
        x, like = features(rng, 2, 3, *size), np.zeros(size_out, "float32")
        out = evaluate(
            lambda x, like: op.resize_bilinear(x, list(like.ty.shape.values), align_corners),
            *(x, like),
            shapes=[("b", "c", "h", "w"), ("h_out", "w_out")],
        )
        assert_close(out, naive(x, size_out, align_corners), 4, dtype="float32")


@pytest.mark.parametrize(
    "shape, size, message",
    [
        ((2, 3, 4), (5, 6), r"x: expected \[any, any, any, any\] of float32 or bfloat16"),
        ((2, 3, 4, 5), (5, 0), r"size: expected an int or two of at least 1, given \(5, 0\)"),
        ((2, 3, 4, 5), (5, 6, 7), r"size: expected an int or two of at least 1, given \(5, 6, 7\)"),
        ((2, 3, 4, 0), (5, 6), "x: expected at least 1 row and 1 column to resize to 5 x 6, given 4 x 0"),
    ],
)
def test_wrong_input_is_named(shape, size, message):
    with pytest.raises(ValueError, match=rf"sparse_ops\.resize_bilinear: {message}"):
        relax.BlockBuilder().normalize(op.resize_bilinear(relax.Var("x", relax.TensorType(shape, "float32")), size))


def test_images_without_pixels_at_run_time_are_named():
    x = np.zeros((1, 2, 3, 0), "float32")
    with pytest.raises(ValueError, match="x: expected at least 1 row and 1 column to resize to 5 x 6, given 3 x 0"):
        evaluate(lambda x: op.resize_bilinear(x, (5, 6)), x, shapes=[(1, 2, "h", "w")])
