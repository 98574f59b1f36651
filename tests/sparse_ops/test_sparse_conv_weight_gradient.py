"""The gradient of a sparse convolution's weight: the oracle against torch, sizes at the cuts of the kernel, what is refused."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import relax

from sparse_ops import op
from sparse_ops.eager import functional as F
from sparse_ops.eager.call import MapArrays, run
from sparse_ops.testing.examples import features, voxels
from tests.sparse_ops.strategies import table_of
from tests.sparse_ops.test_sparse_conv import dense, sample
from tests.tolerance import assert_close
from tir_kernels.cpu.weight_gradient import PAIRS
from tir_kernels.dispatch import map_layout
from tir_kernels.spec.weight_gradient import naive

torch = pytest.importorskip("torch")
DTYPES = {"float32": np.dtype("float32"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("float16")}


def gradient_of(x, gradient, kernel_map, kernel=(3, 3, 3), groups=1):
    """The op, called on arrays."""
    arrays = {"x": x, "gradient": gradient, "kernel_map": kernel_map}
    options = {"kernel_size": kernel, "groups": groups}
    return run("sparse_conv_weight_gradient", op.sparse_conv_weight_gradient, "numpy", arrays, options)


@pytest.mark.parametrize(("cin", "cout", "groups"), [(5, 4, 1), (6, 9, 3), (4, 8, 4)])
def test_the_oracle_is_torchs_gradient(cin, cout, groups):
    rng = np.random.default_rng(0)
    coords, x, _ = sample(rng, 120, cin=cin)
    gradient = rng.standard_normal((120, cout))
    weight = torch.zeros(cout, cin // groups, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    full = torch.nn.functional.conv3d(dense(coords, x, 2, 7), weight, padding=1, groups=groups)
    full.backward(dense(coords, gradient, 2, 7))
    ours = naive(x, gradient, table_of(F.submanifold_map(coords)), groups)
    np.testing.assert_allclose(ours, weight.grad.permute(0, 2, 3, 4, 1).reshape(ours.shape).numpy(), atol=1e-12)


# One panel and several, whole and not; few and many output channels; one input channel.
@pytest.mark.parametrize(
    ("cin", "cout", "groups"),
    [(1, 1, 1), (4, 32, 1), (16, 5, 1), (65, 64, 1), (200, 130, 1), (140, 36, 2), (12, 24, 12), (70, 70, 70)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(cin, cout, groups, dtype):
    rng = np.random.default_rng(1)
    coords, x = voxels(rng, 300), features(rng, 300, cin, dtype=dtype)
    gradient, kernel_map = features(rng, 300, cout, dtype=dtype), F.submanifold_map(coords, (3, 1, 3))
    found = gradient_of(x, gradient, kernel_map, (3, 1, 3), groups)
    expected = naive(x, gradient, table_of(kernel_map), groups).reshape(cout, 3, 1, 3, cin // groups)
    assert found.dtype == np.float32
    assert_close(found, expected, 300, dtype="float32")


@pytest.mark.parametrize("rows", [0, 1, PAIRS - 1, PAIRS, PAIRS + 1, 63, 4096, 4097, 40000])
@pytest.mark.parametrize("kernel", [1, 3])
def test_rows(rows, kernel):
    """Around the cuts of pairs and of blocks, and blocks of most rows."""
    rng = np.random.default_rng(rows)
    coords, x, gradient = voxels(rng, rows), features(rng, rows, 3), features(rng, rows, 2)
    kernel_map = F.submanifold_map(coords, kernel)
    found = gradient_of(x, gradient, kernel_map, kernel)
    expected = naive(x, gradient, table_of(kernel_map)).reshape(2, *[kernel] * 3, 3)
    assert_close(found, expected, max(rows, 1), dtype="float32")


def test_the_identity_is_a_matrix_product():
    rng = np.random.default_rng(2)
    for rows in (0, 1, 64, 65, 5000):
        x, gradient = features(rng, rows, 20), features(rng, rows, 9)
        itself = map_layout().identity(rows)
        np.testing.assert_array_equal(map_layout().unpack(*itself), [np.arange(rows)])
        found = gradient_of(x, gradient, MapArrays(*itself), 1)
        assert_close(found[:, 0, 0, 0], gradient.T.astype("float64") @ x, max(rows, 1), dtype="float32")


def test_what_is_not_finite_stays_with_its_channels():
    rng = np.random.default_rng(3)
    coords, x, gradient = voxels(rng, 100), features(rng, 100, 20), features(rng, 100, 30)
    x[5, 7], gradient[9, 3] = np.nan, np.inf
    found = gradient_of(x, gradient, F.submanifold_map(coords))[:, 1, 1, 1]  # at this tap all rows meet themselves
    strange = np.zeros((30, 20), bool)
    strange[:, 7] = strange[3] = True
    np.testing.assert_array_equal(~np.isfinite(found), strange)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": np.zeros((19, 4), "float32")}, "gradient: expected 20 rows"),
        ({"x": np.zeros((21, 6), "float32")}, "x: expected 20 rows"),
        ({"gradient": np.zeros((20, 4), "float16")}, "gradient: expected float32"),
        ({"kernel_size": 2}, "kernel_map: expected a map of 8 taps, as the weight has, given one of 27"),
        ({"kernel_size": 0}, "kernel_size: expected an int or three of at least 1, given 0"),
        ({"groups": 4}, "groups: expected a divisor of 6 input and 4 output channels, given 4"),
        ({"groups": True}, "groups: expected an int of at least 1, given True"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    coords = voxels(np.random.default_rng(4), 20)
    given = {
        "x": np.zeros((20, 6), "float32"),
        "gradient": np.zeros((20, 4), "float32"),
        "kernel_size": 3,
        "groups": 1,
    } | change
    with pytest.raises(ValueError, match=message):
        gradient_of(given["x"], given["gradient"], F.submanifold_map(coords), given["kernel_size"], given["groups"])


def test_a_graph_knows_the_shape_of_the_weight():
    n, m = tvm.tirx.Var("n", "int64"), tvm.tirx.Var("m", "int64")
    x, gradient = relax.Var("x", relax.TensorType([n, 6], "bfloat16")), relax.Var("g", relax.TensorType([m, 4], "bfloat16"))
    sizes = [tvm.tirx.Var(name, "int64") for name in ("blocks", "slots", "columns")]
    types = [relax.TensorType(shape, "int32") for shape in (sizes[:2], sizes[:2], sizes[::2])]
    kernel_map = relax.Tuple([relax.Var("a", ty) for ty in (*types, relax.TensorType([2], "int64"))])
    call = relax.BlockBuilder().normalize(op.sparse_conv_weight_gradient(x, gradient, kernel_map, (1, 2, 3), 2))
    assert [int(size) for size in call.ty.shape.values] == [4, 1, 2, 3, 3] and str(call.ty.dtype) == "float32"
