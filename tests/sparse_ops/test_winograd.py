"""`conv3d` by Winograd's algorithm: sizes that fill no tile, accuracy, infinities, when it is chosen, wrong input.

The registry's row of `conv3d` walks it under every instruction set, with poisoned outputs and any number of threads.
"""

import functools

import numpy as np
import pytest
import tvm
from tvm import relax

from sparse_ops import op
from sparse_ops.build import build
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate, module_of, run
from tests.tolerance import assert_close, compare
from tir_kernels.cpu.isa import Isa, forced_isa
from tir_kernels.cpu.winograd import BLOCK, CHANNELS, DEPTH, STEP, TASKS, VECTOR, pays
from tir_kernels.dispatch import host_target
from tir_kernels.spec.conv3d import naive

CIN, COUT, PADDING = DEPTH + 6, CHANNELS + 7, (1, 0, 2)  # two blocks of channels, two tasks of outputs, neither of them full


def check(out, x, weight, bias=None, residual=None, **options):
    """Compare with the oracle.

    A product of places is a sum over the channels; one addition along each axis transforms x, two the weights and two the
    outputs. Of the rows of B^T, the squares add up to 2; of G, to 1, 3/4, 3/4 and 1. An output along an axis is so the sum of
    terms with variances 2, 3/2 and 3/2, if x and the weights have 1, where the definition has three of 1: what is rounded is
    sqrt(5 / 3) times as large for each axis as the result.
    """
    cin = x.shape[1]
    blocks = -(-cin // DEPTH)
    expected = naive(x, weight, bias, residual, **options)
    scale = np.abs(expected).max(initial=0) * (5 / 3) ** 1.5
    assert_close(out, expected, cin + blocks + 3 * (1 + 2 + 2), dtype="float32", scale=scale)


@functools.cache
def parameters(cin: int = CIN, cout: int = COUT) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return features(rng, cout, cin, 3, 3, 3), features(rng, cout)


@functools.cache
def compiled(isa: Isa) -> tvm.runtime.Executable:
    """A convolution of any batch and size."""
    weight, bias = parameters()
    arrays, shapes = (
        [np.zeros((0, CIN, 1, 1, 1), "float32"), weight, bias],
        [("b", CIN, "d", "h", "w"), weight.shape, bias.shape],
    )
    with forced_isa(isa):
        return build(module_of(lambda x, w, b: op.conv3d(x, w, b, padding=PADDING), arrays, shapes))


def convolve(x: np.ndarray) -> np.ndarray:
    (out,) = run(compiled(Isa.of()), [x, *parameters()])
    return out


def inputs(batch: int, *size: int) -> np.ndarray:
    return features(np.random.default_rng(sum(size)), batch, CIN, *size)


@pytest.mark.parametrize(
    "batch, size",
    [
        (0, (4, 4, 16)),
        (1, (1, 3, 1)),  # one output along an axis, three along another
        (2, (3, 5, 2 * VECTOR - 2)),  # the outputs are as long as one vector of tiles ...
        (1, (4, 6, 2 * VECTOR - 1)),  # ... and one longer
        (3, (2, 4, 5)),
        (1, (2, 2 * STEP + 4, 4)),  # a step more than one
        (1, (2 * BLOCK - 2, 4, 28)),  # several tasks; the last one is not full
    ],
)
def test_sizes(batch, size, isa_of_float32):
    x = inputs(batch, *size)
    check(convolve(x), x, *parameters(), padding=PADDING)


@pytest.mark.parametrize(
    "kernel, size, padding",
    [
        ((3, 3, 3), (3, 5, 2 * VECTOR - 1), (1, 1, 1)),
        ((1, 3, 3), (1, 4, 33), (0, 1, 1)),
        ((1, 3, 3), (1, 1, 1), (0, 6, 9)),  # all is edge
    ],
)
def test_replicated_edges(kernel, size, padding):
    """The padded copy is made alike for every instruction set."""
    rng = np.random.default_rng(3)
    x, weight, bias = features(rng, 2, 16, *size), features(rng, 18, 16, *kernel), features(rng, 18)
    shapes = [("b", 16, "d", "h", "w"), weight.shape, bias.shape]
    options = {"padding": padding, "padding_mode": "replicate"}
    out = evaluate(lambda *args: op.conv3d(*args, **options), x, weight, bias, shapes=shapes)
    check(out, x, weight, bias, **options)


def test_residual_and_activation():
    rng = np.random.default_rng(1)
    x, residual, (weight, bias) = features(rng, 2, 16, 3, 6, 30), features(rng, 2, 18, 3, 6, 30), parameters(16, 18)
    out = evaluate(lambda *args: op.conv3d(*args, padding=1, activation="silu"), x, weight, bias, residual)
    check(out, x, weight, bias, residual, padding=(1, 1, 1), activation="silu")


def test_an_element_of_a_batch_does_not_depend_on_the_others():
    x = inputs(3, 4, 5, 9)
    alone, together = convolve(x[1:2]), convolve(x)
    assert np.array_equal(together[1:2], alone)
    x[0, 0, 0, 0, 0] = np.nan
    assert np.array_equal(convolve(x)[1:2], alone)


@pytest.mark.parametrize("channel", [30, CIN - 1])  # in the first block it lies where the second one has no channels
def test_an_infinity_stays_within_its_tiles(channel):
    x = inputs(1, 8, 8, 20)
    before = convolve(x)
    x[0, channel, 4, 4, 5] = np.inf  # with padding at 5, 4, 7: in the patches of tiles 1 and 2, 1 and 2, 2 and 3
    after = convolve(x)
    assert not np.isfinite(after[0, :, 3:6, 2:5, 5:8]).any()  # all that read it
    after[0, :, 2:6, 2:6, 4:8] = before[0, :, 2:6, 2:6, 4:8]
    assert np.array_equal(after, before)


def test_accuracy_at_512_channels():
    rng = np.random.default_rng(2)
    x, weight = features(rng, 1, 512, 4, 4, 16), features(rng, 16, 512, 3, 3, 3)
    out = evaluate(lambda x, w: op.conv3d(x, w, padding=1), x, weight)
    check(out, x, weight, padding=(1, 1, 1))
    expected = naive(x, weight, padding=(1, 1, 1))
    found = compare(out, expected)
    assert found.max_error < 1e-5 * np.abs(expected).max()
    assert found.l2_error < 1e-6


@pytest.mark.parametrize(
    "cin, cout, size, dtype, options, expected",
    [
        (512, 512, (16, 16, 16), "float32", {"padding": 1}, True),
        (16, 16, (8, 8, 8), "float32", {"padding": 1}, True),
        (16, 16, (8, 8, 16), "float32", {"padding": (0, 1, 3)}, True),
        (32, 32, ("d", "h", "w"), "float32", {"padding": 1}, True),
        (8, 512, (16, 16, 16), "float32", {"padding": 1}, False),
        (512, 8, (16, 16, 16), "float32", {"padding": 1}, False),
        (32, 32, (6, 6, 6), "float32", {"padding": 1}, False),
        (32, 32, ("d", 5, "w"), "float32", {}, True),
        (32, 32, ("d", 3, 7), "float32", {}, False),
        (32, 32, (16, 16, 16), "bfloat16", {"padding": 1}, False),
        (32, 32, (16, 16, 16), "float32", {"padding": 1, "stride": (1, 1, 2)}, False),
        (32, 32, (16, 16, 16), "float32", {"padding": 1, "dilation": 2}, False),
    ],
)
def test_when_it_is_chosen(cin, cout, size, dtype, options, expected):
    arrays = [features(np.random.default_rng(0), *shape, dtype=dtype) for shape in ((1, 1), (1, 1))]
    shapes = [(2, cin, *size), (cout, cin, 3, 3, 3)]
    with host_target():
        mod = relax.transform.LegalizeOps()(module_of(lambda x, w: op.conv3d(x, w, **options), arrays, shapes))
    names = [gv.name_hint for gv in mod.get_global_vars()]
    assert any(name.startswith("conv3d_winograd_") for name in names) == expected


@functools.cache
def parameters_for_images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return features(rng, COUT, CIN, 1, 3, 3), features(rng, COUT)


@functools.cache
def compiled_for_images(isa: Isa) -> tvm.runtime.Executable:
    """A convolution of 1 x 3^2 of any batch and size, padded along all axes."""
    weight, bias = parameters_for_images()
    arrays, shapes = (
        [np.zeros((0, CIN, 1, 1, 1), "float32"), weight, bias],
        [("b", CIN, "d", "h", "w"), weight.shape, bias.shape],
    )
    with forced_isa(isa):
        return build(module_of(lambda x, w, b: op.conv3d(x, w, b, padding=PADDING), arrays, shapes))


def convolve_images(x: np.ndarray) -> np.ndarray:
    (out,) = run(compiled_for_images(Isa.of()), [x, *parameters_for_images()])
    return out


@pytest.mark.parametrize(
    "batch, size",
    [
        (0, (1, 4, 16)),
        (1, (1, 4, 1)),
        (2, (1, 5, 2 * VECTOR - 2)),
        (1, (3, 7, 2 * VECTOR - 1)),  # a stack of images, odd in number
        (1, (1, 4 * BLOCK + 6, 28)),  # several tasks; the last one is not full
    ],
)
def test_sizes_of_images(batch, size, isa_of_float32):
    """Two axes are transformed, see `check`."""
    x = inputs(batch, *size)
    expected = naive(x, *parameters_for_images(), padding=PADDING)
    scale = np.abs(expected).max(initial=0) * 5 / 3
    assert_close(convolve_images(x), expected, CIN + 2 + 2 * (1 + 2 + 2), dtype="float32", scale=scale)


def test_bits_of_images_do_not_depend_on_the_block():
    """A call with many tiles takes larger blocks than one with few."""
    x = inputs(1, 8, 32, 62)
    few, many = convolve_images(x[:, :, :1]), convolve_images(x)
    assert 10 * 15 * 4 * 2 >= TASKS * 2 * BLOCK > 3 * 15 * 4 * 2  # vectors of tiles, twice for the channels of the output
    np.testing.assert_array_equal(many[:, :, 1], few[:, :, 1])


def test_an_infinity_stays_within_its_tiles_of_an_image():
    x = inputs(1, 3, 8, 20)
    before = convolve_images(x)
    x[0, 30, 1, 4, 5] = np.inf  # with padding at 2, 4, 7: of one image, in the patches of tiles 1 and 2, 2 and 3
    after = convolve_images(x)
    assert not np.isfinite(after[0, :, 2, 2:5, 5:8]).any()
    after[0, :, 2, 2:6, 4:8] = before[0, :, 2, 2:6, 4:8]
    np.testing.assert_array_equal(after, before)


def test_a_kernel_of_another_size_is_not_for_it():
    x, weight = np.zeros((1, 32, 16, 16, 16), "float32"), np.zeros((32, 32, 3, 3, 1), "float32")
    with host_target():
        mod = relax.transform.LegalizeOps()(module_of(op.conv3d, [x, weight], [x.shape, weight.shape]))
    assert not any("winograd" in gv.name_hint for gv in mod.get_global_vars())


def test_half_of_what_the_tiles_cover_has_to_exist():
    assert pays(32, 32, (16, 16, 16))
    assert pays(32, 32, (16, 16, 8))
    assert not pays(32, 32, (16, 16, 7))
    assert not pays(32, 32, (15, 16, 8))
    assert pays(32, 32, (None, None, 8))
    assert not pays(32, 32, (None, None, 7))


def test_a_kernel_that_does_not_fit_at_run_time_is_named():
    with pytest.raises(ValueError, match="x: expected a padded size of at least the 3 of the kernel along axis 3, given 2"):
        convolve(inputs(1, 4, 2, 8))
