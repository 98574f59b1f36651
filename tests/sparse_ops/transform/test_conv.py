"""`RecognizeConv`, `RecognizeConvTranspose`: geometry, images and volumes, padding before them, what they take in."""

import pytest
from tvm import relax

from sparse_ops.transform import RecognizeConv, RecognizeConvTranspose
from tests.sparse_ops.transform.graphs import arguments, arrays, calls, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.tolerance import assert_close

R = relax.op
VOLUME, FILTERS = (2, 3, 5, 6, 7), (4, 3, 3, 2, 1)
IMAGE, PATCHES = (2, 3, 9, 6), (4, 3, 3, 3)


def check(call, *shapes, transform=RecognizeConv, name="conv3d"):
    """The one convolution after the pass; it computes the same."""
    before = graph(call, *shapes)
    after = transform()(before)
    assert set(ops(after)) <= {"reshape", f"sparse_ops.{name}"}
    given = arrays(*shapes)
    assert_close(interpret(after, *given), interpret(before, *given), depth=27, dtype="float32")
    (conv,) = calls(after, f"sparse_ops.{name}")
    return conv


def test_geometry():
    options = {"strides": [2, 1, 1], "padding": [1, 0, 2], "dilation": [1, 2, 1]}
    conv = check(lambda x, w: R.nn.conv3d(x, w, **options), VOLUME, FILTERS)
    assert [list(conv.attrs[key]) for key in ("stride", "padding", "dilation")] == list(options.values())


def test_images():
    conv = check(lambda x, w: R.nn.conv2d(x, w, strides=3, padding=[0, 1]), IMAGE, PATCHES)
    assert list(conv.attrs["stride"]) == [1, 3, 3] and list(conv.attrs["padding"]) == [0, 0, 1]


def test_what_follows():
    def call(x, w, b, r):
        return R.nn.relu(R.add(r, R.add(R.nn.conv2d(x, w, padding=1), b)))

    conv = check(call, IMAGE, PATCHES, (1, 4, 1, 1), (2, 4, 9, 6))
    assert arguments(conv) == {"bias", "residual"} and conv.attrs["activation"] == "relu"


def test_a_bias_of_a_volume():
    assert arguments(check(lambda x, w, b: R.add(b, R.nn.conv3d(x, w)), VOLUME, FILTERS, (4, 1, 1, 1))) == {"bias"}


def test_a_vector_along_the_last_axis_is_no_bias():
    before = graph(lambda x, w, b: R.add(R.nn.conv2d(x, w, padding=1), b), (2, 3, 9, 4), PATCHES, (4,))
    assert ops(RecognizeConv()(before))[-1] == "add"


@pytest.mark.parametrize("mode, expected", [("replicate", "replicate"), ("constant", "zeros")])
def test_padding_of_its_own(mode, expected):
    def call(x, w):
        return R.nn.relu(R.nn.conv2d(R.nn.pad(x, [0, 0, 0, 0, 1, 1, 2, 2], pad_mode=mode), w))

    conv = check(call, IMAGE, PATCHES)
    assert (list(conv.attrs["padding"]), conv.attrs["padding_mode"]) == ([0, 1, 2], expected)


PADDED = {
    "padded twice": lambda x, w: R.nn.conv2d(R.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], pad_mode="replicate"), w, padding=1),
    "by one": lambda x, w: R.nn.conv2d(R.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], pad_value=1.0), w),
    "more behind": lambda x, w: R.nn.conv2d(R.nn.pad(x, [0, 0, 0, 0, 1, 2, 1, 1], pad_mode="replicate"), w),
    "reflected": lambda x, w: R.nn.conv2d(R.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], pad_mode="reflect"), w),
}


@pytest.mark.parametrize("case", PADDED)
def test_padding_that_stays(case):
    before = graph(PADDED[case], IMAGE, PATCHES)
    after = RecognizeConv()(before)
    assert ops(after)[0] == "nn.pad" and len(calls(after, "sparse_ops.conv3d")) == 1
    given = arrays(IMAGE, PATCHES)
    assert_close(interpret(after, *given), interpret(before, *given), depth=27, dtype="float32")


TRANSPOSED = {
    "nn.conv1d_transpose": (R.nn.conv1d_transpose, (2, 3, 9), (3, 4, 3), {"strides": 2, "padding": 1, "output_padding": 1}),
    "nn.conv2d_transpose": (R.nn.conv2d_transpose, IMAGE, (3, 4, 2, 2), {"strides": 2}),
    "nn.conv3d_transpose": (R.nn.conv3d_transpose, VOLUME, (3, 4, 3, 2, 1), {"strides": (2, 1, 1), "padding": (1, 0, 0)}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed(name):
    function, x, weight, options = TRANSPOSED[name]
    bias = (1, 4, *[1] * (len(x) - 2))

    def call(x, w, b):
        return R.nn.relu(R.add(function(x, w, **options), b))

    conv = check(call, x, weight, bias, transform=RecognizeConvTranspose, name="conv_transpose3d")
    assert arguments(conv) == {"bias"} and conv.attrs["activation"] == "relu"
    grouped = graph(lambda x, w: function(x, w, groups=3), (2, 3, *x[2:]), (3, 4, *weight[2:]))
    assert ops(RecognizeConvTranspose()(grouped)) == [name]


KEPT = {
    "groups": (lambda x, w: R.nn.conv2d(x, w, groups=3), IMAGE, (3, 1, 3, 3)),
    "more padding behind": (lambda x, w: R.nn.conv2d(x, w, padding=[0, 0, 1, 1]), IMAGE, PATCHES),
    "channels last": (lambda x, w: R.nn.conv2d(x, w, data_layout="NHWC"), (2, 9, 6, 3), PATCHES),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case):
    assert ops(RecognizeConv()(graph(*KEPT[case]))) == ["nn.conv2d"]
