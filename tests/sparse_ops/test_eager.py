"""The eager face: kinds of arrays, memory shared, layers and keys, the compile cache, bad input."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import tvm

import sparse_ops
from sparse_ops import SparseTensor, op
from sparse_ops.eager import cache, call
from sparse_ops.eager import functional as F
from sparse_ops.eager.arrays import as_kind, as_tensor
from sparse_ops.eager.cache import cache_folder
from tests import NO_TORCH
from tests.sparse_ops.walk import module_of
from tests.tolerance import assert_close

torch = pytest.importorskip("torch")
COORDS = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 3, 2, 1], [1, 0, 0, 0], [1, 1, 1, 1]], "int32")


def feats(channels=4, seed=0):
    return np.random.default_rng(seed).standard_normal((len(COORDS), channels)).astype("float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_arrays_cross_without_copies(dtype):
    """Whatever the kind, the tensor lies over the memory of the array, also where that is not aligned to 64 bytes."""
    whole = np.zeros((9, 3), ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for array in (whole, whole[1:]):
        tensor = as_tensor(array, "x", (dtype,), (None, 3))
        array[2, 1] = 5
        assert tensor.numpy()[2, 1] == 5
        back = as_kind(tensor, "numpy")
        assert np.shares_memory(back, array) and back.dtype == array.dtype
    slice_ = torch.zeros(9, 3, dtype=getattr(torch, dtype))[1:]
    tensor = as_tensor(slice_, "x", (dtype,), (None, 3))
    slice_[2, 1] = 7
    assert tensor.numpy()[2, 1] == 7
    assert as_kind(tensor, "torch").data_ptr() == slice_.data_ptr()


def test_a_tensor_inside_of_another():
    """Compiled functions do not look where in its memory a tensor begins: they get one that begins there."""
    whole = tvm.runtime.tensor(feats())
    view = whole._create_view((2, 4), "float32", relative_byte_offset=3 * 4 * 4)
    np.testing.assert_array_equal(F.linear(view, np.eye(4, dtype="float32")).numpy(), feats()[3:5])


def test_results_are_of_the_kind_of_the_input():
    weight = np.ones((2, 3, 3, 3, 4), "float32")
    kernel_map = F.submanifold_map(COORDS)
    expected = F.sparse_conv(feats(), weight, kernel_map)
    from_torch = F.sparse_conv(torch.from_numpy(feats()), torch.from_numpy(weight), kernel_map)
    from_tvm = F.sparse_conv(tvm.runtime.tensor(feats()), weight, kernel_map)
    assert isinstance(expected, np.ndarray) and isinstance(from_torch, torch.Tensor)
    assert isinstance(from_tvm, tvm.runtime.Tensor)
    np.testing.assert_array_equal(from_torch.numpy(), expected)
    np.testing.assert_array_equal(from_tvm.numpy(), expected)


def test_unaligned_rows_are_right():
    """A slice starts anywhere; vector loads that assumed an alignment would end the process."""
    x = np.random.default_rng(1).standard_normal((len(COORDS) + 1, 5)).astype("float32")[1:]
    weight = np.random.default_rng(2).standard_normal((7, 5)).astype("float32")
    assert_close(F.linear(x, weight), x.astype("float64") @ weight.T.astype("float64"), 5, dtype="float32")


def test_a_network_in_spconvs_names():
    """Down, a layer there, and back to the same voxels; compared with the same steps by hand."""
    x = SparseTensor(feats(), COORDS, spatial_shape=(4, 4, 4), batch_size=2)
    down = sparse_ops.SparseConv3d(4, 6, 3, 2, padding=1, indice_key="down")
    middle = sparse_ops.SubMConv3d(6, 6, 3, indice_key="middle")
    up = sparse_ops.SparseInverseConv3d(6, 3, 3, "down", bias=False)
    y = up(middle(down(x)))
    assert y.coordinates is x.coordinates and y.spatial_shape == (4, 4, 4)
    strided = F.strided_map(COORDS, 3, 2, 1, shape=(4, 4, 4))
    h = F.sparse_conv(x.feats, down.weight, strided, down.bias)
    h = F.sparse_conv(h, middle.weight, F.submanifold_map(strided.coords_out), middle.bias)
    np.testing.assert_array_equal(y.feats, F.sparse_conv(h, up.weight, F.inverse_map(strided)))


def test_maps_are_built_once_for_equal_geometry():
    x = SparseTensor(feats(), COORDS)
    first = sparse_ops.SubMConv3d(4, 4, 3)
    second = sparse_ops.SubMConv3d(4, 4, 3, indice_key="later")
    y = second(first(x))
    assert len(x.coordinates.maps) == 1
    assert y.indice_dict["later"].kernel_map is x.kernel_map((3, 3, 3), (1, 1, 1))


def test_a_key_of_another_layer_is_refused():
    x = SparseTensor(feats(), COORDS, (4, 4, 4))
    sparse_ops.SubMConv3d(4, 4, 3, indice_key="a")(x)
    with pytest.raises(ValueError, match="indice_key: 'a' belongs to a submanifold map"):
        sparse_ops.SubMConv3d(4, 4, 3, dilation=2, indice_key="a")(x)
    with pytest.raises(ValueError, match=r"indice_key: expected the key of a strided layer, one of .* given 'a'"):
        sparse_ops.SparseInverseConv3d(4, 4, 3, "a")(x)
    other = SparseTensor(feats(), COORDS[::-1].copy(), (4, 4, 4))
    other.indice_dict.update(x.indice_dict)
    with pytest.raises(ValueError, match="the map of 'a' was built for another coordinate set"):
        sparse_ops.SubMConv3d(4, 4, 3, indice_key="a")(other)


def test_pooling_dense_and_add():
    x = SparseTensor(feats(), COORDS, (4, 4, 4), 2)
    grid = np.zeros((2, 4, 4, 4, 4), "float32")
    grid[COORDS[:, 0], :, COORDS[:, 1], COORDS[:, 2], COORDS[:, 3]] = x.feats
    np.testing.assert_array_equal(x.dense(), grid)
    pooled = sparse_ops.SparseMaxPool3d(2)(x)
    filled = np.where(grid == 0, -np.inf, grid).reshape(2, 4, 2, 2, 2, 2, 2, 2).max(axis=(3, 5, 7))
    at = pooled.coords
    np.testing.assert_array_equal(pooled.feats, filled[at[:, 0], :, at[:, 1], at[:, 2], at[:, 3]])
    assert (sparse_ops.SparseMaxPool3d(2, from_zero=True)(x).feats >= 0).all()
    total = sparse_ops.sparse_add(x, x.replace_feature(2 * x.feats))
    np.testing.assert_array_equal(total.dense(), 3 * grid)


def test_one_dimension():
    coords = np.array([[0, 0], [0, 1], [0, 5]], "int32")
    x = SparseTensor(np.ones((3, 1), "float32"), coords, (6,))
    layer = sparse_ops.SubMConv1d(1, 1, 3, bias=False)
    layer.load_state_dict({"weight": np.array([1, 10, 100], "float32").reshape(1, 3, 1)})
    y = layer(x)
    np.testing.assert_array_equal(y.feats[:, 0], [110, 11, 10])
    np.testing.assert_array_equal(y.coords, coords)
    assert y.dense().shape == (1, 1, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseTensor(feats()[:-1], COORDS), "feats: expected 5 rows, one for each row of coords, given 4"),
        (lambda: SparseTensor(feats().astype("float64"), COORDS), "feats: expected float32 or bfloat16 .* given float64"),
        (lambda: SparseTensor(feats(), COORDS.astype("int64")), r"coords: expected int32 \[any, 4\], given int64 \[5, 4\]"),
        (lambda: SparseTensor(feats(), COORDS[:, :1].copy()), r"coords: expected int32 \[any, 4\], given int32 \[5, 1\]"),
        (lambda: SparseTensor(feats(), np.zeros((5, 5), "int32")), "coords: expected one to three axes .* given 4"),
        (lambda: SparseTensor(feats(), COORDS, (3, 4, 4)), "coords: row 2 has x 3, expected 0 to 2"),
        (lambda: SparseTensor(feats(), COORDS, (4, 4)), "spatial_shape: expected 3 extents"),
        (lambda: SparseTensor(feats(), COORDS, None, 1), "coords: row 3 has batch index 1, expected 0 to 0"),
        (lambda: SparseTensor(feats(), COORDS - 40000), "coords: row 0 has batch index -40000, expected 0 to 4095"),
        (lambda: SparseTensor(feats()[:, ::2], COORDS), "feats: .* not contiguous"),
        (lambda: SparseTensor([1.0], COORDS), "feats: .* neither a numpy array nor a torch or TVM tensor"),
        (lambda: sparse_ops.SubMConv3d(4, 4, 2), "kernel_size: expected odd sizes"),
        (lambda: sparse_ops.SubMConv3d(0, 4, 3), "in_channels: expected a positive int, given 0"),
        (
            lambda: sparse_ops.SubMConv3d(4, 6, 3, groups=4),
            "groups: expected a divisor of 4 input and 6 output channels, given 4",
        ),
        (lambda: sparse_ops.SparseConv3d(4, 4, 1, padding=1), "padding: expected 0 with kernel size 1"),
        (lambda: sparse_ops.SubMConv3d(4, 4, 3)(feats()), "input: expected a SparseTensor, given ndarray"),
        (lambda: sparse_ops.SubMConv2d(4, 4, 3)(SparseTensor(feats(), COORDS)), "expected coordinates of 2 axes, given 3"),
        (lambda: sparse_ops.SubMConv3d(3, 4, 3)(SparseTensor(feats(), COORDS)), "input: expected 3 channels, given 4"),
        (
            lambda: sparse_ops.SubMConv3d(4, 4, 3)(SparseTensor(feats(), COORDS[[0, 1, 2, 3, 3]])),
            "coords: row 4 repeats the coordinates of row 3",
        ),
        (
            lambda: sparse_ops.SubMConv3d(4, 4, 3).load_state_dict({"weight": feats()}),
            "state: expected the entries weight, bias; bias: missing",
        ),
        (
            lambda: F.sparse_conv(
                torch.ones(5, 4, requires_grad=True), np.ones((1, 3, 3, 3, 4), "f"), F.submanifold_map(COORDS)
            ),
            "x: .* records gradients",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SCRIPT = (
    NO_TORCH
    + """
import numpy as np
from sparse_ops import functional as F
print(F.unique(np.array([[0, 3, 2, 1], [0, 1, 2, 3], [0, 3, 2, 1]], "int32"))[1].tolist())
"""
)


def run(folder, **environment):
    environment = os.environ | {"SPARSE_OPS_CACHE": str(folder)} | environment
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_cache_is_shared_and_survives_damage(tmp_path):
    """Two processes fill one folder at once; a damaged file is built anew; nothing half-written stays."""
    for process in [run(tmp_path), run(tmp_path)]:
        out, error = process.communicate()
        assert (process.returncode, out) == (0, "[1, 0, 1]\n"), error
    folder = tmp_path / "sparse_ops"
    (file,) = folder.iterdir()
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:100])
    out, error = run(tmp_path).communicate()
    assert out == "[1, 0, 1]\n", error
    assert [f.stat().st_size for f in folder.iterdir()] == [size]


def test_what_killed_processes_left_in_the_cache_is_removed(tmp_path):
    """After a day: others may be writing theirs."""
    (tmp_path / "sparse_ops").mkdir()
    for name, age in (("tmpold.so", 2 * cache.STALE_SECONDS), ("tmpnew.so", 0), ("0old.so", 2 * cache.STALE_SECONDS)):
        (path := tmp_path / "sparse_ops" / name).write_bytes(b"half")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    cache._sweep(tmp_path / "sparse_ops")
    assert {path.name for path in (tmp_path / "sparse_ops").iterdir()} == {"tmpnew.so", "0old.so"}


@pytest.mark.parametrize("folder", ["off", "/dev/null/nowhere"])
def test_works_without_a_cache(folder):
    out, error = run(folder).communicate()
    assert out == "[1, 0, 1]\n", error


def test_works_without_a_c_compiler(tmp_path):
    """TVM needs one to link a library; without it functions are compiled in the process."""
    out, error = run(tmp_path, PATH=str(tmp_path), CXX="", CC="").communicate()
    assert out == "[1, 0, 1]\n", error
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("package", ["sparse_ops", "sam3d_tvm"])
def test_everything_stays_in_the_folder_that_is_named(monkeypatch, tmp_path, package):
    monkeypatch.setenv("SPARSE_OPS_CACHE", str(tmp_path))
    assert cache_folder(package) == tmp_path / package
    monkeypatch.setenv("SPARSE_OPS_CACHE", "off")
    assert cache_folder(package) is None
    monkeypatch.delenv("SPARSE_OPS_CACHE")
    assert cache_folder(package).parent == cache_folder("another").parent and cache_folder(package).name == package


def test_a_call_that_was_compiled_serialises_and_hashes_nothing(monkeypatch):
    """What a call costs in Python is lookups: no JSON, no hash of a configuration, no question to LLVM about the CPU."""
    x = SparseTensor(feats(), COORDS, (4, 4, 4))
    layer = sparse_ops.SubMConv3d(4, 4, 3)
    expected = layer(x).feats

    def refuse(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(cache.json, "dumps", refuse)
    monkeypatch.setattr(cache.hashlib, "sha256", refuse)
    monkeypatch.setattr(cache, "fingerprint", refuse)
    monkeypatch.setattr(cache, "_load_or_build", refuse)
    again = layer(SparseTensor(feats(), COORDS, (4, 4, 4)))  # with a map of its own
    np.testing.assert_array_equal(again.feats, expected)


def test_threads_compile_different_functions_at_once(monkeypatch):
    """Both are inside of a compilation at the same time, or neither would get past the barrier."""
    barrier, module_of = threading.Barrier(2, timeout=60), call.module

    def meet(*args):
        barrier.wait()
        return module_of(*args)

    monkeypatch.setattr(call, "module", meet)
    monkeypatch.setattr(cache, "_compiled", {})
    monkeypatch.setenv("SPARSE_OPS_CACHE", "off")  # where another run may have left them
    x = np.ones((3, 4), "float32")
    with ThreadPoolExecutor(2) as pool:
        outs = [pool.submit(F.linear, x, np.ones((width, 4), "float32")) for width in (5, 6)]
        assert [out.result().tolist() for out in outs] == [[[4.0] * 5] * 3, [[4.0] * 6] * 3]


def test_threads_that_want_the_same_function_compile_it_once(monkeypatch):
    built, load_or_build = [], cache._load_or_build

    def count(*args):
        built.append(args[0])
        return load_or_build(*args)

    monkeypatch.setattr(cache, "_load_or_build", count)
    monkeypatch.setattr(cache, "_compiled", {})
    module = module_of(lambda x: op.activation(x, "relu"), [np.zeros(0, "float32")], [("n", 4)])
    with ThreadPoolExecutor(2) as pool:
        functions = [pool.submit(cache.compiled, ("relu of 4",), lambda: module) for _ in range(2)]
        assert functions[0].result() is functions[1].result()
    assert len(built) == 1


@pytest.mark.parametrize("option", [["relu"], {"relu": 1}, np.zeros(2)])
def test_options_that_cannot_be_compared_are_refused(option):
    with pytest.raises(ValueError, match=r"activation|options"):
        F.linear(np.ones((3, 4), "float32"), np.ones((5, 4), "float32"), activation=option)
