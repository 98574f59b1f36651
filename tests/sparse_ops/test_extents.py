"""Extents, batches and shifts are run-time arguments: one compiled function serves all, eager and in graphs; what does not fit
into memory is refused before it is allocated."""

import subprocess
import sys

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

import sparse_ops
from sparse_ops import nn, op
from sparse_ops.build import build
from sparse_ops.eager import cache
from sparse_ops.eager import functional as F
from sparse_ops.nn.carrier import emit
from sparse_ops.testing.examples import features, voxels
from sparse_ops.transform.memory import planned_memory
from tests.sparse_ops.walk import module_of, run
from tir_kernels import memory
from tir_kernels.memory import available_bytes
from tir_kernels.spec import batch_offsets, dense, segment_pool, serialize, sites, windows
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.pool import Reduction

COUNT = 50  # shapes, or numbers of batch elements
GIB = 1 << 30
RNG = np.random.default_rng(0)
COORDS = voxels(RNG, 60, batch=2, low=0)
X = features(RNG, 60, 4)
LEAST = int(COORDS[:, 1:].max()) + 1


def shape_of(i: int) -> tuple[int, int, int]:
    return LEAST + i, LEAST + i % 7, LEAST + i % 3


def tensor(i: int) -> sparse_ops.SparseTensor:
    return sparse_ops.SparseTensor(X, COORDS, shape_of(i), 2 + i)


def to_dense(i: int) -> None:
    out = F.to_dense(X, COORDS, 2 + i, shape_of(i), channels_last=True)
    np.testing.assert_array_equal(out, dense.naive_to_dense(X, COORDS, 2 + i, shape_of(i), True))


def from_dense(i: int) -> None:
    grid = RNG.standard_normal((2 + i % 5, 4, *shape_of(i)), "float32")
    np.testing.assert_array_equal(F.from_dense(grid, COORDS), dense.naive_from_dense(grid, COORDS))


def to_a_grid(i: int) -> None:
    np.testing.assert_array_equal(tensor(i).dense(), dense.naive_to_dense(X, COORDS, 2 + i, shape_of(i)))


CONV = sparse_ops.SparseConv3d(4, 8, 3, 2, 1)
TRANSPOSED = sparse_ops.SparseConvTranspose3d(4, 8, 2, 2)
POOL = sparse_ops.SparseMaxPool3d(2)


def through(layer, geometry: Geometry):
    def call(i: int) -> None:
        out = layer(tensor(i))
        extent = sites.out_extent(shape_of(i), geometry)
        assert tuple(out.spatial_shape) == extent
        np.testing.assert_array_equal(out.coords, sites.naive(COORDS, geometry, np.array(extent)))

    return call


def offsets(i: int) -> None:
    coords = COORDS[np.argsort(COORDS[:, 0], kind="stable")]
    np.testing.assert_array_equal(F.batch_offsets(coords, 2 + i), batch_offsets.naive(coords, 2 + i))


def over_the_batch(i: int) -> None:
    index = np.ascontiguousarray(COORDS[:, 0])
    out = F.segment_pool(X, index, 2 + i, "max")
    np.testing.assert_array_equal(out, segment_pool.naive(X, index, 2 + i, Reduction("max")))


def into_windows(i: int) -> None:
    for out, expected in zip(F.window_partition(COORDS, 4, i), windows.naive(COORDS, (4, 4, 4), (i, i, i)), strict=True):
        np.testing.assert_array_equal(out, expected)


def along_a_curve(i: int) -> None:
    shift = (i, 0, 2 * i)
    np.testing.assert_array_equal(F.serialize(COORDS, "hilbert", shift), serialize.naive(COORDS, "hilbert", shift))


def into_windows_of_a_curve(i: int) -> None:
    code = serialize.naive(COORDS, "z_order", (i, i, i))
    expected = serialize.naive_partition(COORDS, code, 1 + i, i)
    for out, part in zip(F.serialized_partition(COORDS, 1 + i, i, i), expected, strict=True):
        np.testing.assert_array_equal(out, part)


# What is called, and the functions that it takes.
CALLS = {
    "strided convolution": (through(CONV, Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1))), 2),
    "transposed convolution": (through(TRANSPOSED, Geometry((2, 2, 2), (2, 2, 2), transposed=True)), 2),
    "pooling": (through(POOL, Geometry((2, 2, 2), (2, 2, 2))), 2),
    "dense": (to_a_grid, 1),
    "to_dense": (to_dense, 1),
    "from_dense": (from_dense, 1),
    "batch_offsets": (offsets, 1),
    "pooling over a batch": (over_the_batch, 1),
    "window_partition": (into_windows, 1),
    "serialize": (along_a_curve, 1),
    "serialized_partition": (into_windows_of_a_curve, 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_are_compiled_once(name, monkeypatch):
    monkeypatch.setattr(cache, "_compiled", {})
    call, functions = CALLS[name]
    for i in range(COUNT):
        call(i)
        assert len(cache._compiled) == functions


class Network(nn.Module):
    """A strided convolution, its voxels on a grid and back, and the mean of each batch element."""

    def __init__(self):
        self.conv = nn.SparseConv3d(4, 8, 3, 2, 1)
        self.pool = nn.BatchPool()

    def forward(self, feats: nn.Tensor, coords: nn.Tensor, size_x, size_y, size_z, batch):
        self.conv.shape = (size_x, size_y, size_z)
        x = self.conv(nn.SymbolicSparseTensor.of(feats, coords, batch))
        half = [(size - 1) // 2 + 1 for size in (size_x, size_y, size_z)]
        grid = emit(op.to_dense(x.feats._expr, x.coords._expr, batch, half))
        rows = emit(op.from_dense(grid._expr, x.coords._expr))
        return x.coords, x.feats, grid, rows, self.pool(x)


def test_a_graph_serves_every_extent_and_batch():
    inputs = {"feats": spec.Tensor(["n", 4], "float32"), "coords": spec.Tensor(["n", 4], "int32")}
    numbers = dict.fromkeys(("size_x", "size_y", "size_z", "batch"), int)
    mod, parameters = Network().export_tvm({"forward": inputs | numbers})
    machine = relax.VirtualMachine(build(mod), tvm.cpu())
    given = [tvm.runtime.tensor(features(RNG, *(int(n) for n in p.shape))) for _, p in parameters]
    for i in (0, 1, 8, 30):
        extents = [tvm.runtime.ShapeTuple([n]) for n in (*shape_of(i), 2 + i)]
        out = machine["forward"](tvm.runtime.tensor(X), tvm.runtime.tensor(COORDS), *extents, *given)
        coords, feats, grid, rows, mean = (array.numpy() for array in out)
        half = tuple((n - 1) // 2 + 1 for n in shape_of(i))
        geometry = Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1))
        np.testing.assert_array_equal(coords, sites.naive(COORDS, geometry, np.array(half)))
        np.testing.assert_array_equal(grid, dense.naive_to_dense(feats, coords, 2 + i, half))
        np.testing.assert_array_equal(rows, feats)
        expected = segment_pool.naive(feats, coords[:, 0], 2 + i, Reduction("mean"))
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-5)


def test_extents_in_a_graph_may_be_dimensions_of_tensors():
    def call(x, coords, like):
        return op.to_dense(x, coords, like.ty.shape.values[0], like.ty.shape.values[1:])

    shapes = [("n", 4), ("n", 4), ("b", "i", "j", "k")]
    mod = module_of(call, [X, COORDS, np.empty((1, 1, 1, 1), "int32")], shapes)
    executable = build(mod)
    for i in (0, 5):
        (out,) = run(executable, [X, COORDS, np.empty((2, *shape_of(i)), "int32")])
        np.testing.assert_array_equal(out, dense.naive_to_dense(X, COORDS, 2, shape_of(i)))


def test_extents_in_a_graph_may_be_known_from_the_data_only():
    """Rows of distinct voxels, named twice, as a batch, an extent and a shift."""

    def call(x, coords):
        bb = relax.BlockBuilder.current()
        distinct = bb.emit(relax.TupleGetItem(bb.emit(op.unique(coords)), 0))
        for name in "pq":
            rows = tvm.tirx.Var(name, "int64")
            distinct = bb.match_cast(distinct, relax.TensorType([rows, 4], "int32"))
        grid = bb.emit(op.to_dense(x, coords, rows, (rows, LEAST, rows)))
        back = bb.emit(op.from_dense(grid, distinct))
        plan = bb.emit(op.strided_map(distinct, 2, 2, shape=(rows, rows, LEAST)))
        sites_ = bb.emit(relax.TupleGetItem(plan, 0))
        return relax.Tuple([grid, back, sites_, op.serialize(coords, shift=(rows, 0, rows)), op.batch_offsets(distinct, rows)])

    executable = build(module_of(call, [X, COORDS], [("n", 4), ("n", 4)]))
    for n in (60, 40):
        x, coords = X[:n], np.ascontiguousarray(COORDS[:n])
        grid, back, out, code, offsets = run(executable, [x, coords])
        expected, distinct = dense.naive_to_dense(x, coords, n, (n, LEAST, n)), np.unique(coords, axis=0)
        np.testing.assert_array_equal(grid, expected)
        np.testing.assert_array_equal(back, dense.naive_from_dense(expected, distinct))
        geometry = Geometry((2, 2, 2), (2, 2, 2))
        extent = np.array(sites.out_extent((n, n, LEAST), geometry))
        np.testing.assert_array_equal(out, sites.naive(distinct, geometry, extent))
        np.testing.assert_array_equal(code, serialize.naive(coords, shift=(n, 0, n)))
        np.testing.assert_array_equal(offsets, batch_offsets.naive(distinct, n))


def test_memory_is_planned_for_extents():
    mod = module_of(
        lambda x, c, like: op.to_dense(x, c, like.ty.shape.values[0], like.ty.shape.values[1:]),
        [X, COORDS, np.empty((1, 1, 1, 1), "int32")],
        [("n", 4), ("n", 4), ("b", "i", "j", "k")],
    )
    with planned_memory() as plan:
        build(mod)
    taken = plan.of("main", n=1000, b=2, i=30, j=20, k=10)
    assert 0 <= taken.activations - 4 * 2 * 4 * 30 * 20 * 10 <= 64
    assert taken.workspace == 12 * 1000  # rows in order and their cells; what is counted for each of 60 slabs lies on the stack


ONE = np.zeros((1, 4), "int32")
HUGE = {
    "to_dense": lambda: F.to_dense(X[:1], ONE, 1, (32768,) * 3),
    "to_dense, a product beyond 2^63": lambda: F.to_dense(X[:1], ONE, 1 << 40, (1 << 40,) * 3),
    "to_dense, channels last": lambda: F.to_dense(X[:1], ONE, 4096, (32768,) * 3, True),
    "batch_offsets": lambda: F.batch_offsets(ONE, 10**14),
    "segment_pool": lambda: F.segment_pool(X, np.ascontiguousarray(COORDS[:, 0]), 10**13),
    "subdivide": lambda: F.subdivide(np.repeat(COORDS, 100, 0), 1200),
    "strided_map": lambda: F.strided_map(COORDS, (1000, 1000, 1), 1, 0, 1, None, True),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_no_machine_holds_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name.partition(',')[0]}: expected what fits the [\d,.]+ GiB of memory .* given"):
        HUGE[name]()


LIMITED = {
    "to_dense": lambda: F.to_dense(X, COORDS, 2, (400, 400, 400)),
    "batch_offsets": lambda: F.batch_offsets(ONE, 1 << 29),
    "segment_pool": lambda: F.segment_pool(X, np.ascontiguousarray(COORDS[:, 0]), 1 << 26),
    "subdivide": lambda: F.subdivide(COORDS, (1 << 7, 1 << 7, 1 << 7)),
    "submanifold_map": lambda: F.submanifold_map(voxels(RNG, 200), 101),
    # 2^28 - 4 cells with the empty ones around, just as many as a grid may have
    "index of coordinates": lambda: F.lookup(np.array([[0, 0, 0, 0], [0, 5096, 250, 203]], "int32"), ONE, "grid"),
    "unique": lambda: F.unique(np.array([[0, 0, 0, 0], [0, 1023, 511, 511]], "int32"), "grid"),
}


@pytest.mark.parametrize("name", LIMITED)
def test_what_is_more_than_the_limit_is_refused(name, monkeypatch):
    monkeypatch.setenv(memory.VARIABLE, str(GIB))
    with pytest.raises(ValueError, match=rf"{name}: expected what fits the 1\.0 GiB of memory that are left, given"):
        LIMITED[name]()


def test_a_submanifold_map_asks_for_itself_alone(monkeypatch):
    """It takes two int32 for each tap and row, and no table beside them."""
    side, taps = 182, 4097  # rows along x and y, so that only the middle tap of a kernel along z meets any
    coords = np.array([(0, i, j, 0) for i in range(side) for j in range(side)], "int32")
    asked = 2 * 4 * taps * len(coords)
    assert asked > memory.ASK_BYTES
    monkeypatch.setenv(memory.VARIABLE, str(asked))
    assert F.submanifold_map(coords, (1, 1, taps)).num_pairs == len(coords)
    monkeypatch.setenv(memory.VARIABLE, str(asked - 1))
    with pytest.raises(ValueError, match="submanifold_map: expected what fits"):
        F.submanifold_map(coords, (1, 1, taps))


def test_a_graph_asks_before_it_allocates():
    mod = module_of(lambda x, c: op.to_dense(x, c, 1, (32768,) * 3), [X, COORDS], [("n", 4), ("n", 4)])
    executable = build(mod)
    with pytest.raises(ValueError, match=r"to_dense: .* given float32 \[1, 4, 32768, 32768, 32768\], which takes 524,288"):
        run(executable, [X, COORDS])
    with pytest.raises(ValueError, match=r"sparse_ops\.to_dense: expected a result of at most 2\^62 bytes"):
        build(module_of(lambda x, c: op.to_dense(x, c, 4096, (1 << 20,) * 3), [X, COORDS], [("n", 4), ("n", 4)]))


def test_too_many_sites_and_taps_are_refused():
    far = np.repeat(ONE, 4000, 0)
    with pytest.raises(ValueError, match=r"coords: input rows times taps give up to 4000000000 output sites"):
        F.strided_map(far, (1000, 1000, 1), 1, 0, 1, None, True, "hash")
    for call in (lambda: F.strided_map(ONE, 2000), lambda: F.submanifold_map(ONE, 2001)):
        with pytest.raises(ValueError, match=r"kernel_size: expected at most 1048576 taps"):
            call()


def test_dense_of_a_huge_grid_does_not_end_the_process():
    script = """
import numpy as np, resource, sparse_ops
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (1 << 36 if most == resource.RLIM_INFINITY else most, most))
x = sparse_ops.SparseTensor(np.ones((1, 8), "float32"), np.zeros((1, 4), "int32"), (32768,) * 3, 1)
try:
    x.dense()
except ValueError as error:
    print(error)
print(x.replace_feature(2 * x.feats).kernel_map((3, 3, 3), (1, 1, 1)).num_pairs)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    error, pairs = done.stdout.strip().splitlines()
    assert "given float32 [1, 8, 32768, 32768, 32768], which takes 1,048,576.0 GiB" in error and pairs == "1"


def test_what_is_left_is_the_least_of_machine_and_groups(tmp_path, monkeypatch):
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    information, membership = tmp_path / "meminfo", tmp_path / "membership"
    information.write_text("MemTotal: 9000000 kB\nMemAvailable:    4000000 kB\nSwapFree: 1000 kB\n")
    assert available_bytes(information, membership, tmp_path) == 4001000 * 1024
    membership.write_text("1:cpu:/x\n0::/outer/inner\n")
    group = tmp_path / "outer" / "inner"
    group.mkdir(parents=True)
    for folder, most, used in ((group, "max", 10), (group.parent, str(3 << 30), 1 << 30)):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 5\ninactive_file 4096\n")
    assert available_bytes(information, membership, tmp_path) == (2 << 30) + 4096
    monkeypatch.setenv(memory.VARIABLE, "12345")
    assert available_bytes(information, membership, tmp_path) == 12345
    monkeypatch.setenv(memory.VARIABLE, "2 GiB")
    with pytest.raises(ValueError, match="TIR_KERNELS_MEMORY: expected a number of bytes, given '2 GiB'"):
        available_bytes()
