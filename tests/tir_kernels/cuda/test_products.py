"""Kernels that multiply, on the emulated device: tensor cores, sums over kernel maps, and what follows them."""

import ctypes
import re

import ml_dtypes
import numpy as np
import pytest
import tvm
import tvm_ffi

from tests.cuda_device import cuda_target, device
from tests.cuda_emulator import clear_statistics, same_bits, statistics
from tests.tir_kernels.cuda.maps import neighbour_table, random_table
from tests.tir_kernels.cuda.on_device import run
from tests.tolerance import assert_close
from tir_kernels.cuda.partial_sums import LEAST_STEPS
from tir_kernels.dispatch import host_target, kernel_for
from tir_kernels.spec import conv3d, conv_transpose3d, linear, resize_bilinear, sparse_conv, weight_gradient
from tir_kernels.spec.conv3d import Conv3d
from tir_kernels.spec.conv_transpose3d import ConvTranspose3d
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.linear import Linear
from tir_kernels.spec.resize_bilinear import ResizeBilinear
from tir_kernels.spec.sparse_conv import SparseConv
from tir_kernels.spec.upsampled_conv import AddTaps
from tir_kernels.spec.weight_gradient import SparseConvWeightGradient

TAPS = 6
KERNEL = (1, 3, 2)


def array(rng, shape, dtype="float32", scale=1.0) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def depth_of(terms: int, dtype: str) -> int:
    """Behind a narrow result lies the one rounding of a sum of float32."""
    return terms if dtype == "float32" else 1


@pytest.fixture(autouse=True)
def _device():
    device()


def convolution(rng, spec: SparseConv, rows_in: int, rows: int, groups: int = 1):
    """Inputs of a convolution of TAPS taps, and its result by the oracle."""
    x = array(rng, (rows_in, spec.cin), spec.dtype)
    weight = array(rng, (spec.cout, *KERNEL, spec.group_cin), spec.dtype, 0.2)
    bias, residual = array(rng, spec.cout), array(rng, (rows, spec.cout), spec.dtype)
    table = random_table(rng, TAPS, rows_in, rows)
    by_tap = weight.reshape(spec.cout, TAPS, spec.group_cin).transpose(1, 2, 0)
    given = residual if spec.has_residual else None
    expected = sparse_conv.naive(x, by_tap, table, bias, given, spec.activation, spec.groups).astype(x.dtype)
    inputs = [x, weight, bias, *([residual] if spec.has_residual else []), *neighbour_table(table, rows_in, groups)]
    return inputs, expected


CONVOLUTIONS = [
    SparseConv(32, 32, KERNEL, "float16"),  # whole steps
    SparseConv(40, 76, KERNEL, "float16", True, "silu"),  # chunks but no whole steps; two tiles of columns, the last one cut
    SparseConv(33, 17, KERNEL, "bfloat16", True),  # no chunks
    SparseConv(20, 24, KERNEL, "float32", True, "gelu"),
    SparseConv(48, 32, KERNEL, "float16", groups=2),
    SparseConv(16, 16, KERNEL, "float16", True, "relu", groups=16),
    SparseConv(6, 15, KERNEL, "float32", groups=3),
]


@pytest.mark.parametrize("spec", CONVOLUTIONS, ids=lambda s: f"{s.cin}-{s.cout}-{s.groups}-{s.dtype}")
def test_convolution(spec):
    """Rows around a tile and over several, in one and in three groups of taps."""
    rng = np.random.default_rng(spec.cin)
    for rows, groups in ((0, 1), (1, 1), (128, 3), (129, 1), (300, 3)):
        inputs, expected = convolution(rng, spec, 150, rows, groups)
        (out,) = same_bits(lambda: run(spec, inputs, [((rows, spec.cout), spec.dtype)]), (1, 2))  # noqa: B023
        assert_close(out, expected, depth_of(TAPS * spec.group_cin, spec.dtype), dtype=expected.dtype, name=f"{rows} rows")


def test_convolution_without_inputs():
    rng = np.random.default_rng(0)
    spec = CONVOLUTIONS[0]
    inputs, expected = convolution(rng, spec, 0, 5)
    assert_close(run(spec, inputs, [((5, spec.cout), spec.dtype)])[0], expected, dtype=expected.dtype)


def test_order_of_rows_does_not_matter():
    """Maps that hold the same pairs in another order give the same result, up to rounding."""
    rng = np.random.default_rng(1)
    spec = CONVOLUTIONS[1]
    table = random_table(rng, TAPS, 90, 260)
    (x, weight, bias, residual, *_), _ = convolution(rng, spec, 90, 260)
    outs = [
        run(spec, [x, weight, bias, residual, *neighbour_table(table, 90, 1, seed)], [((260, spec.cout), spec.dtype)])[0]
        for seed in (1, 2)
    ]
    # where the steps of a tile are cut into parts depends on the taps that it meets: only the rounding may differ
    assert_close(outs[0], outs[1], dtype=outs[0].dtype)


@pytest.mark.parametrize("spec", [CONVOLUTIONS[0], CONVOLUTIONS[5], CONVOLUTIONS[6]], ids=str)
@pytest.mark.parametrize("what", ["rows_in", "rows_out", "taps"])
def test_map_of_other_rows(spec, what):
    rng = np.random.default_rng(2)
    (x, weight, bias, *rest), _ = convolution(rng, spec, 20, 140)
    residual = rest[:-4]
    taps, rows_in, rows = TAPS + 1 if what == "taps" else TAPS, 20 + (what == "rows_in"), 140 + 100 * (what == "rows_out")
    arrays = neighbour_table(random_table(rng, taps, rows_in, rows), rows_in, 1)
    words = (
        "kernel_map: expected a map of 6 taps, as the weight has, given one of 7"
        if what == "taps"
        else "kernel_map: expected a map from 20 input rows to 140 output rows, as the features have, "
        f"given one from {rows_in} to {rows}: it was built for other coordinates"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        run(spec, [x, weight, bias, *residual, *arrays], [((140, spec.cout), spec.dtype)])


def multiplied(x, weight):
    """x @ weight.T in float32, as infinities and NaN give it."""
    with np.errstate(all="ignore"):
        return x.astype("float32") @ weight.astype("float32").T


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_linear(dtype):
    """Everything that may follow, for rows around a tile; a deep sum of few rows is cut into parts."""
    rng = np.random.default_rng(3)
    cin, cout = 328, 36
    spec = Linear(cin, cout, dtype, True, "gelu_tanh", True, True, "float32")
    assert cin // 32 >= 2 * LEAST_STEPS, "no sum is cut"
    weight, bias, gate = array(rng, (cout, cin), dtype, 0.1), array(rng, cout), array(rng, (3, cout))
    for rows in (0, 1, 127, 257):
        x, residual, index = array(rng, (rows, cin), dtype), array(rng, (rows, cout), dtype), rng.integers(0, 3, rows, "int32")
        inputs = [x, weight, bias, residual, gate, index]
        (out,) = same_bits(lambda: run(spec, inputs, [((rows, cout), "float32")]), (1, 2))  # noqa: B023
        expected = linear.naive(x, weight, bias, residual, "gelu_tanh", gate, index).astype("float32")
        assert_close(out, expected, cin, name=f"{rows} rows")


def test_linear_without_channels():
    bias = np.arange(8, dtype="float32")
    (out,) = run(Linear(0, 8), [np.zeros((3, 0), "float32"), np.zeros((8, 0), "float32"), bias], [((3, 8), "float32")])
    np.testing.assert_array_equal(out, np.tile(bias, (3, 1)))


@pytest.mark.parametrize("value", [-1, 3])
def test_batch_index_that_is_not_there(value):
    spec = Linear(8, 8, has_gate=True, has_index=True)
    rng = np.random.default_rng(4)
    index = np.array([0, 2, value, 1, value], "int32")
    inputs = [array(rng, (5, 8)), array(rng, (8, 8)), array(rng, 8), array(rng, (3, 8)), index]
    with pytest.raises(ValueError, match=f"^batch_index: row 2 is {value}, expected 0 to 2$"):
        run(spec, inputs, [((5, 8), "float32")])


def test_float32_is_as_accurate_as_float32():
    """One product of TF32, or two, would be a hundred times off; numbers of 24 bits, of which no sum cancels."""
    rng = np.random.default_rng(5)
    cin, cout, rows = 200, 8, 16
    x, weight = (1 + rng.random(shape).astype("float32") for shape in ((rows, cin), (cout, cin)))
    (out,) = run(Linear(cin, cout), [x, weight, np.zeros(cout, "float32")], [((rows, cout), "float32")])
    expected = (x.astype(np.float64) @ weight.astype(np.float64).T).astype("float32")
    assert_close(out, expected, cin)
    high = (x.view("uint32") + 0x1000 & 0xFFFFE000).view("float32")
    with pytest.raises(AssertionError):
        assert_close(high @ weight.T, expected, cin)


def rounded(values: np.ndarray) -> np.ndarray:
    """To the nearest numbers of 11 bits, ties away from zero."""
    return (values.view("uint32") + np.uint32(0x1000) & np.uint32(0xFFFFE000)).view("float32")


TF32 = [
    Linear(200, 72, products="tf32"),
    Linear(33, 24, products="tf32"),
    SparseConv(20, 36, KERNEL, products="tf32"),
    SparseConv(32, 64, KERNEL, products="tf32", groups=2),
    SparseConv(6, 15, KERNEL, products="tf32", groups=3),  # of channels too few for tensor cores
    Conv3d(9, 12, Geometry((3, 1, 2), (2, 1, 2), (1, 0, 1), (1, 1, 2)), products="tf32"),
    ConvTranspose3d(9, 12, Geometry((1, 2, 3), (1, 2, 2), transposed=True), products="tf32"),
]


def tf32_example(rng, spec, exact: bool):
    """Inputs, and the result of the oracle: of factors as they are, or of 11 bits."""
    factor = (lambda values: values) if exact else rounded
    bias = array(rng, spec.cout)
    if isinstance(spec, Linear):
        x, weight = array(rng, (130, spec.cin)), array(rng, (spec.cout, spec.cin))
        return [x, weight, bias], linear.naive(factor(x), factor(weight), bias)
    if isinstance(spec, Conv3d):
        geometry = spec.geometry
        x, weight = array(rng, (2, spec.cin, 5, 9, 8)), array(rng, (spec.cout, spec.cin, *geometry.kernel))
        options = {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation}
        return [x, weight, bias], conv3d.naive(factor(x), factor(weight), bias, **options)
    if isinstance(spec, ConvTranspose3d):
        x, weight = array(rng, (2, spec.cin, 2, 5, 4)), array(rng, spec.weight_shape)
        return [x, weight, bias], conv_transpose3d.naive(factor(x), factor(weight), bias, stride=spec.geometry.stride)
    x, weight = array(rng, (150, spec.cin)), array(rng, (spec.cout, *KERNEL, spec.group_cin))
    by_tap = factor(weight).reshape(spec.cout, TAPS, spec.group_cin).transpose(1, 2, 0)
    pairs = random_table(rng, TAPS, 150, 129)
    expected = sparse_conv.naive(factor(x), by_tap, pairs, bias, groups=spec.groups)
    return [x, weight, bias, *neighbour_table(pairs, 150, 1)], expected


@pytest.mark.parametrize("spec", TF32, ids=lambda s: f"{type(s).__name__}-{s.cin}-{s.cout}")
def test_tf32(spec):
    """Exactly what float32 gives of factors of 11 bits, which is within the rounding of 10 bits of what was asked for."""
    narrow = getattr(spec, "groups", 1) == 3
    inputs, expected = tf32_example(np.random.default_rng(15), spec, exact=narrow)
    _, asked = tf32_example(np.random.default_rng(15), spec, exact=True)
    clear_statistics()
    (out,) = same_bits(lambda: run(spec, inputs, [(expected.shape, "float32")]), (1, 2))
    assert (sum(figures["mma"] for figures in statistics().values()) > 0) != narrow
    terms = spec.cin * (spec.geometry.taps if hasattr(spec, "geometry") else TAPS if isinstance(spec, SparseConv) else 1)
    assert_close(out, expected.astype("float32"), terms)
    assert_close(out, asked.astype("float32"), dtype="float16")  # which has as many bits
    if not narrow:
        with pytest.raises(AssertionError):
            assert_close(out, asked.astype("float32"), terms)


def test_tf32_takes_a_third_of_the_products():
    rng, counts = np.random.default_rng(16), {}
    inputs = [array(rng, (40, 48)), array(rng, (24, 48)), array(rng, 24)]
    for products in ("float", "tf32"):
        clear_statistics()
        run(Linear(48, 24, products=products), inputs, [((40, 24), "float32")])
        counts[products] = sum(figures["mma"] for figures in statistics().values())
    assert counts["float"] == 3 * counts["tf32"] > 0


def test_tf32_is_of_float32_and_of_devices():
    plain, asked = (kernel_for(Linear(16, 16, "float16", products=p), cuda_target()).function for p in ("float", "tf32"))
    assert tvm_ffi.structural_equal(plain, asked)
    words = "products: expected 'float' or integers, as a CPU multiplies float32 as it is, given 'tf32'"
    with pytest.raises(ValueError, match=words):
        kernel_for(Linear(16, 16, products="tf32"), host_target())


@pytest.mark.parametrize(("dtype", "products"), [("float16", "float"), ("float32", "float"), ("float32", "tf32")])
def test_infinities_and_nan(dtype, products):
    """As of plain sums: no NaN where there is none, and infinities of the right sign."""
    rng = np.random.default_rng(6)
    cin, cout, rows = 20, 12, 40
    x, weight = array(rng, (rows, cin), dtype), array(rng, (cout, cin), dtype)
    x[3, 2], x[4, 5], x[5, 0], x[5, 1] = np.inf, np.nan, np.inf, -np.inf
    weight[2, 7], weight[3, 1] = -np.inf, np.nan
    if dtype == "float32" and products == "float":
        x[7, 3] = np.finfo("float32").max  # which TF32 would round to infinity
        weight[:, 3] = 0.25
    spec = Linear(cin, cout, dtype, out_dtype="float32", products=products)
    (out,) = run(spec, [x, weight, np.zeros(cout, "float32")], [((rows, cout), "float32")])
    expected = multiplied(x, weight)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(out[infinite], expected[infinite])
    finite = np.isfinite(expected)
    factors = [rounded(values) if products == "tf32" else values for values in (x, weight)]
    assert_close(out[finite], multiplied(*factors)[finite], cin)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_infinite_weights_of_taps_that_a_row_has_not(dtype):
    rng = np.random.default_rng(7)
    spec = SparseConv(32, 32, KERNEL, dtype)
    inputs, _ = convolution(rng, spec, 30, 40)
    inputs[1][5, 0, 1, 1] = np.inf  # tap 3 of channel 5
    (out,) = run(spec, inputs, [((40, 32), dtype)])
    neighbours, order = inputs[-4:-2]
    has = np.zeros(40, bool)
    has[order[0, :40]] = neighbours[3, :40] >= 0
    assert has.any() and not has.all()
    np.testing.assert_array_equal(np.isfinite(out[:, 5]), ~has)
    assert np.isfinite(np.delete(out, 5, 1)).all()


class DLTensor(ctypes.Structure):
    """What DLPack says of a tensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


def shifted(values: np.ndarray) -> tvm.runtime.Tensor:
    """`values` on the device, one element behind an aligned place: as a view of another library comes, without an offset."""
    tensor = tvm.runtime.tensor(np.concatenate([values.ravel()[:1], values.ravel()]), device())
    capsule = tensor._create_view(values.shape, str(values.dtype), values.itemsize).__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    inside = DLTensor.from_address(pointer(capsule, b"dltensor"))
    inside.data, inside.byte_offset = inside.data + inside.byte_offset, 0
    return tvm_ffi.from_dlpack(capsule, require_alignment=values.itemsize)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_data_that_is_not_aligned(dtype):
    """Views that begin at any element give the bits of aligned data."""
    rng = np.random.default_rng(8)
    spec = Linear(40, 36, dtype, has_residual=True)
    arrays = [array(rng, (9, 40), dtype), array(rng, (36, 40), dtype), array(rng, 36), array(rng, (9, 36), dtype)]

    (expected,) = run(spec, arrays, [((9, 36), dtype)])
    for which in range(4):
        inputs = [shifted(values) if i == which else values for i, values in enumerate(arrays)]
        np.testing.assert_array_equal(run(spec, inputs, [((9, 36), dtype)])[0], expected)


@pytest.mark.parametrize("spec", [CONVOLUTIONS[0], CONVOLUTIONS[3]], ids=str)
def test_banks(spec):
    """No two rows that tensor cores read at once lie in one bank of shared memory."""
    inputs, _ = convolution(np.random.default_rng(9), spec, 150, 130)
    clear_statistics()
    run(spec, inputs, [((130, spec.cout), spec.dtype)])
    (figures,) = (f for f in statistics().values() if f.get("ldmatrix"))
    assert figures["mma"] > 0
    assert figures["ldmatrix_conflicts"] == 0, figures


@pytest.mark.parametrize(
    "spec",
    [
        SparseConvWeightGradient(20, 70, "float16"),
        SparseConvWeightGradient(34, 32, "float32", 2),
        SparseConvWeightGradient(6, 12, "bfloat16", 6),
    ],
    ids=str,
)
def test_weight_gradient(spec):
    """Of no rows, of some, and of enough that they are cut into parts."""
    rng = np.random.default_rng(10)
    for rows, groups in ((0, 1), (129, 3), (4200 if spec.groups == 6 else 300, 1)):
        x, gradient = array(rng, (50, spec.cin), spec.dtype), array(rng, (rows, spec.cout), spec.dtype)
        table = random_table(rng, TAPS, 50, rows)
        shape = (spec.cout, *KERNEL, spec.group_cin)
        inputs = [x, gradient, *neighbour_table(table, 50, groups)]
        (out,) = same_bits(lambda: run(spec, inputs, [(shape, "float32")]), (1, 2))  # noqa: B023
        expected = weight_gradient.naive(x, gradient, table, spec.groups).reshape(shape).astype("float32")
        assert_close(out, expected, max(rows, 1), name=f"{rows} rows")


@pytest.mark.parametrize("groups", [1, 3])
def test_taps_of_a_parent(groups):
    """The taps of a group, in one and in three groups of the map."""
    rng = np.random.default_rng(11)
    cout, group = 12, range(1, 5)
    spec = AddTaps(cout, TAPS, group, "float32", "float16", "relu")
    for rows in (0, 1, 200):
        y, bias = array(rng, (9, len(group) * cout)), array(rng, cout)
        residual, parent = array(rng, (rows, cout)), rng.integers(-1, 9, rows, "int32")
        table = random_table(rng, TAPS, rows, rows)
        inputs = [y, bias, residual, parent, *neighbour_table(table, rows, groups)]
        (out,) = same_bits(lambda: run(spec, inputs, [((rows, cout), "float16")]), (1, 2))  # noqa: B023
        of_tap = y.reshape(9, len(group), cout)
        expected = bias + residual.astype(np.float64)
        for tap in group:
            for row in range(rows):
                source = table[tap, row]
                if source >= 0 and parent[source] >= 0:
                    expected[row] += of_tap[parent[source], tap - group.start]
        assert_close(out, np.maximum(expected, 0).astype("float16"))


def test_parent_that_is_not_there():
    rng = np.random.default_rng(12)
    parent = np.array([0, 9, -1], "int32")
    inputs = [array(rng, (9, 4)), array(rng, 4), parent, *neighbour_table(random_table(rng, 1, 3, 3), 3, 1)]
    with pytest.raises(ValueError, match="parent"):
        run(AddTaps(4, 1, range(1)), inputs, [((3, 4), "float32")])


GEOMETRIES = [
    (3, 40, "float16", (5, 6, 7), Geometry((3, 3, 3), padding=(1, 1, 1))),
    (9, 12, "float32", (5, 9, 8), Geometry((3, 1, 2), (2, 1, 2), (1, 0, 1), (1, 1, 2))),
]


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
@pytest.mark.parametrize(("cin", "cout", "dtype", "size", "geometry"), GEOMETRIES, ids=["float16", "float32"])
def test_dense_convolution(cin, cout, dtype, size, geometry, padding_mode):
    """Of several batch elements, none, and one smaller than the kernel."""
    rng = np.random.default_rng(13)
    spec = Conv3d(cin, cout, geometry, dtype=dtype, has_residual=True, activation="relu", padding_mode=padding_mode)
    options = {
        "stride": geometry.stride,
        "padding": geometry.padding,
        "dilation": geometry.dilation,
        "padding_mode": padding_mode,
    }
    weight, bias = array(rng, (cout, cin, *geometry.kernel), dtype, 0.2), array(rng, cout)
    for batch in (2, 0):
        x = array(rng, (batch, cin, *size), dtype)
        shape = (batch, cout, *conv3d.out_size(size, geometry))
        residual = array(rng, shape, dtype)
        (out,) = same_bits(lambda: run(spec, [x, weight, bias, residual], [(shape, dtype)]), (1, 2))  # noqa: B023
        expected = conv3d.naive(x, weight, bias, residual, activation="relu", **options).astype(dtype)
        assert_close(out, expected, depth_of(cin * geometry.taps, dtype), dtype=expected.dtype)
    small = array(rng, (1, cin, 0, 6, 7), dtype)
    with pytest.raises(ValueError, match="of at least the 3 of the kernel along axis 2, given 2"):
        run(spec, [small, weight, bias, array(rng, (1, cout, 0, 6, 7), dtype)], [((1, cout, 0, 6, 7), dtype)])


@pytest.mark.parametrize("transposed", [False, True])
def test_dense_convolution_of_more_voxels_than_are_numbered(transposed):
    geometry = Geometry((1, 1, 1), transposed=transposed)
    spec = (ConvTranspose3d if transposed else Conv3d)(1, 1, geometry, dtype="float16")
    shape = (0, 1, 2048, 2048, 512)
    x, weight, bias = np.zeros(shape, "float16"), np.zeros((1, 1, 1, 1, 1), "float16"), np.zeros(1, "float32")
    with pytest.raises(ValueError, match=r"x: expected at most 2147483519 voxels in a batch element, .* given 2147483648"):
        run(spec, [x, weight, bias], [(shape, "float16")])


def test_an_edge_that_is_not_there():
    spec = Conv3d(3, 4, Geometry((1, 1, 1), padding=(0, 1, 0)), padding_mode="replicate")
    rng = np.random.default_rng(14)
    inputs = [array(rng, (1, 3, 2, 0, 2)), array(rng, (4, 3, 1, 1, 1)), array(rng, 4)]
    with pytest.raises(ValueError, match="of at least 1 along axis 3, whose edge is replicated, given 0"):
        run(spec, inputs, [((1, 4, 2, 2, 2), "float32")])


TRANSPOSED = [
    (19, 40, "float16", (1, 5, 9), Geometry((1, 2, 2), (1, 2, 2), transposed=True)),  # one tap, of one group
    (9, 12, "float32", (2, 5, 4), Geometry((2, 3, 4), (1, 2, 3), (1, 1, 2), (2, 1, 2), True, (0, 1, 2))),
    (5, 6, "float16", (1, 3, 4), Geometry((1, 2, 1), (1, 3, 2), transposed=True, output_padding=(0, 1, 1))),
]


@pytest.mark.parametrize(("cin", "cout", "dtype", "size", "geometry"), TRANSPOSED, ids=["one-tap", "several", "none"])
def test_transposed_dense_convolution(cin, cout, dtype, size, geometry):
    """Of several batch elements, none, and one without an output."""
    rng = np.random.default_rng(15)
    spec = ConvTranspose3d(cin, cout, geometry, dtype, True, "relu")
    names = ("stride", "padding", "output_padding", "dilation")
    options = {name: getattr(geometry, name) for name in names}
    weight, bias = array(rng, spec.weight_shape, dtype, 0.2), array(rng, cout)
    for batch in (2, 0):
        x = array(rng, (batch, cin, *size), dtype)
        shape = (batch, cout, *conv_transpose3d.out_size(size, geometry))
        residual = array(rng, shape, dtype)
        (out,) = same_bits(lambda: run(spec, [x, weight, bias, residual], [(shape, dtype)]), (1, 2))  # noqa: B023
        expected = conv_transpose3d.naive(x, weight, bias, residual, activation="relu", **options).astype(dtype)
        assert_close(out, expected, depth_of(cin * geometry.taps, dtype), dtype=expected.dtype)
    empty = (1, cout, *conv_transpose3d.out_size((2, 1, 0), geometry)[:2], 0)
    with pytest.raises(ValueError, match="at least 1 output along axis 4, given 0"):
        run(spec, [array(rng, (1, cin, 2, 1, 0), dtype), weight, bias, array(rng, empty, dtype)], [(empty, dtype)])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resized_images(dtype, align_corners):
    rng = np.random.default_rng(16)
    spec = ResizeBilinear(dtype, align_corners)
    for batch, size, size_out in ((2, (5, 9), (11, 4)), (1, (1, 1), (3, 2)), (0, (3, 4), (5, 6))):
        x = array(rng, (batch, 3, *size), dtype)
        (out,) = same_bits(lambda: run(spec, [x], [((batch, 3, *size_out), dtype)]), (1, 2))  # noqa: B023
        expected = resize_bilinear.naive(x, size_out, align_corners).astype(x.dtype)
        assert_close(out, expected, depth_of(4, dtype), dtype=expected.dtype)
    with pytest.raises(ValueError, match="at least 1 row and 1 column to resize to 2 x 3, given 0 x 4"):
        run(spec, [array(rng, (1, 3, 0, 4), dtype)], [((1, 3, 2, 3), dtype)])
