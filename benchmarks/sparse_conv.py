"""Sparse convolution, kernel maps and unique coordinates on real occupancies, against spconv and torch.

    python -m benchmarks.sparse_conv [--quick] [--json FILE] [--only SUBSTRING]

    subm3_<occupancy>_c<channels>        submanifold 3^3, map ready, fp32, bf16 and int8 products of fp32
    depthwise3_<occupancy>_c<channels>   the same of as many groups as channels, against the memory's bandwidth
    grouped3_<occupancy>_c64_g<groups>   and of fewer groups, against our own without groups
    map3_<occupancy>_<grid|hash>         its kernel map
    unique_, downsample2_<occupancy>     distinct voxels with the inverse, of all and of all halved
    cold_subm3_<occupancy>_c<channels>   map and convolution, from coordinates and features
    strided_, transposed_..._<cold|warm> output sites, map and convolution, and the convolution alone
    growth_<occupancy>_c32               map and convolution from 2,000 to 300,000 voxels

The peers are spconv with its default threads, where its result is wrong (see `benchmarks.peers`), and with one thread.
Ours runs on all cores throughout, called through TVM's virtual machine; packing of constant weights is not part of a
call, as it happens once while compiling.
"""

import functools
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import tvm
from rich.table import Table
from tvm import relax

from sparse_ops.build import build
from sparse_ops.op.kernel_map import strided_map, submanifold_map
from sparse_ops.op.sparse_conv import sparse_conv
from sparse_ops.op.unique import downsample
from sparse_ops.transform import FoldConstants
from tests.tolerance import compare
from tir_kernels.cpu.bandwidth import Triad
from tir_kernels.dispatch import host_target, kernel_for
from tir_kernels.spec import int8_sparse_conv
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.sparse_conv import SparseConv

from . import oracle
from .harness import Benchmark, Case, Peer, arrays, parse_options
from .peers import SpconvLayer, spconv, spconv_peers, torch, torch_unique, use_threads

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = 256  # output rows whose values are compared with fp64
SUBM3 = Geometry.submanifold((3, 3, 3))
STRIDED = Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1))
TRANSPOSED = Geometry((2, 2, 2), (2, 2, 2), transposed=True)
NUMPY = {"float32": np.dtype("float32"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("float16")}


@functools.cache
def coords_of(occupancy: str) -> np.ndarray:
    """int32 [N, 4] of an occupancy such as `nut_64`, in one batch element."""
    folder = ROOT / "sam3d_tvm/data" if occupancy == "nut_64" else ROOT / "tests/data/occupancy"
    with np.load(folder / f"{occupancy}.npz") as file:
        coords = file["coords"].astype(np.int32)
    return np.concatenate([np.zeros((len(coords), 1), np.int32), coords], axis=1)


def extent_of(occupancy: str) -> int:
    """Cells of an occupancy's grid along each axis."""
    return int(occupancy.split("_")[1])


@functools.lru_cache(maxsize=8)
def table_of(occupancy: str) -> np.ndarray:
    """The neighbour table of a submanifold 3^3 convolution."""
    return oracle.table_of(coords_of(occupancy), coords_of(occupancy), SUBM3)


def features(rows: int, channels: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(rows + channels).standard_normal((rows, channels), "float32").astype(NUMPY[dtype])


@functools.lru_cache(maxsize=4)
def weight_of(geometry: Geometry, cin: int, cout: int, dtype: str) -> np.ndarray:
    """A weight [Cout, kx, ky, kz, Cin] under which values keep their size; Cin of one group."""
    rng = np.random.default_rng(cin * cout)
    weight = rng.standard_normal((cout, *geometry.kernel, cin), "float32") / np.float32(np.sqrt(geometry.taps * cin))
    return weight.astype(NUMPY[dtype])


# Our functions, compiled: one module serves every occupancy.


def symbols(*names: str) -> list[tvm.tirx.Var]:
    return [tvm.tirx.Var(name, "int64") for name in names]


def coords_var(rows) -> relax.Var:
    return relax.Var("coords", relax.TensorType([rows, 4], "int32"))


def emit_map(bb: relax.BlockBuilder, coords: relax.Expr, geometry: Geometry, extent: int, method: str = "auto"):
    """(output coordinates, kernel map) of a convolution on `coords` in a grid of `extent` cells along each axis."""
    if geometry == SUBM3:
        return coords, bb.emit(submanifold_map(coords, 3, method=method))
    shape = (extent,) * 3
    given = (coords, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, shape, geometry.transposed)
    found = bb.emit(strided_map(*given))
    (rows,) = symbols("m")
    out = bb.match_cast(bb.emit(relax.TupleGetItem(found, 0)), relax.TensorType([rows, 4], "int32"))
    return out, bb.emit(relax.TupleGetItem(found, 1))


def compiled(bb: relax.BlockBuilder):
    """The function `main` of a module, its weights packed."""
    with host_target():
        # weights are packed for the host: TVM's own folding compiles for any CPU, where other roundings make other integers
        mod = FoldConstants()(relax.transform.LegalizeOps()(bb.get()))
    return build(mod)["main"]


@functools.cache
def map_function(geometry: Geometry, extent: int = 0, method: str = "auto"):
    """coords -> (output coordinates, kernel map)"""
    bb = relax.BlockBuilder()
    coords = coords_var(*symbols("n"))
    with bb.function("main", [coords]):
        with bb.dataflow():
            result = bb.emit_output(relax.Tuple(emit_map(bb, coords, geometry, extent, method)))
        bb.emit_func_output(result)
    return compiled(bb)


@functools.cache
def conv_function(geometry: Geometry, cin: int, cout: int, dtype: str, groups: int = 1, products: str = "float"):
    """(x, output coordinates, pair_in, pair_out, segment, rows) -> features"""
    bb = relax.BlockBuilder()
    n, m, blocks, slots, columns = symbols("n", "m", "blocks", "slots", "columns")
    x = relax.Var("x", relax.TensorType([n, cin], dtype))
    coords = coords_var(m)
    shapes = {"pair_in": [blocks, slots], "pair_out": [blocks, slots], "segment": [blocks, columns]}
    kernel_map = [relax.Var(name, relax.TensorType(shape, "int32")) for name, shape in shapes.items()]
    kernel_map.append(relax.Var("rows", relax.TensorType([2], "int64")))
    weight = relax.const(tvm.runtime.tensor(weight_of(geometry, cin // groups, cout, dtype)), dtype)
    with bb.function("main", [x, coords, *kernel_map]):
        with bb.dataflow():
            result = bb.emit_output(sparse_conv(x, weight, relax.Tuple(kernel_map), coords, groups=groups, products=products))
        bb.emit_func_output(result)
    return compiled(bb)


@functools.cache
def cold_function(geometry: Geometry, extent: int, cin: int, cout: int, dtype: str):
    """(coords, x) -> (output coordinates, features)"""
    bb = relax.BlockBuilder()
    (n,) = symbols("n")
    coords, x = coords_var(n), relax.Var("x", relax.TensorType([n, cin], dtype))
    weight = relax.const(tvm.runtime.tensor(weight_of(geometry, cin, cout, dtype)), dtype)
    with bb.function("main", [coords, x]):
        with bb.dataflow():
            out, kernel_map = emit_map(bb, coords, geometry, extent)
            result = bb.emit_output(relax.Tuple([out, bb.emit(sparse_conv(x, weight, kernel_map, out))]))
        bb.emit_func_output(result)
    return compiled(bb)


@functools.cache
def unique_function(factor: int):
    """coords -> (distinct coordinates, inverse)"""
    bb = relax.BlockBuilder()
    coords = coords_var(*symbols("n"))
    with bb.function("main", [coords]):
        with bb.dataflow():
            result = bb.emit_output(downsample(coords, factor))
        bb.emit_func_output(result)
    return compiled(bb)


# Checks: fp64 for sampled rows, spconv with one thread for all of them.


def check_values(feats, weight, table: np.ndarray, right: Callable[[], np.ndarray] | None, groups: int = 1) -> Callable:
    """check(features): SAMPLE rows against fp64, and all rows against `right()` where it is given.

    A narrower result is a float32 sum rounded once; in float32 the depth of the sum counts.
    """
    sample = np.sort(np.random.default_rng(0).choice(table.shape[1], min(SAMPLE, table.shape[1]), replace=False))
    depth = 1 if weight.dtype.itemsize == 2 else weight.shape[1] ** 3 * weight.shape[-1]

    @functools.cache
    def expected():
        return oracle.convolve(feats, weight, table[:, sample], groups)

    all_rows = functools.cache(right) if right else None

    def check(values: np.ndarray):
        found = [compare(values[sample], expected(), depth, dtype=weight.dtype, name=f"{len(sample)} rows against fp64")]
        if all_rows:
            found.append(compare(values, all_rows(), depth, name="all rows against spconv with one thread"))
        return found

    return check


def single_threaded(call: Callable[[], object]) -> np.ndarray:
    """The features that a call of spconv returns last, computed on one thread."""
    use_threads(1)()
    return arrays(call())[-1].copy()


# Cases.


def subm_warm(occupancy: str, cin: int, cout: int, dtype: str) -> Case:
    """Submanifold 3^3 with the map ready. Narrow types are paired with our own fp32 on the same values."""
    coords, table = coords_of(occupancy), table_of(occupancy)
    feats = features(len(coords), cin, dtype)
    given = tvm.runtime.tensor(coords)
    _, kernel_map = map_function(SUBM3)(given)

    def ours(dtype: str, feats: np.ndarray) -> Callable[[], object]:
        function, x = conv_function(SUBM3, cin, cout, dtype), tvm.runtime.tensor(feats)
        return lambda: function(x, given, *kernel_map)

    weight = weight_of(SUBM3, cin, cout, dtype)
    right, peers = None, {}
    if dtype == "float32" and spconv:
        theirs = SpconvLayer("SubMConv3d", weight, coords, extent_of(occupancy)).warm(feats)
        right = functools.partial(single_threaded, theirs)
    values = check_values(feats, weight, table, right)

    def check(result):
        return values(arrays(result)[-1])

    if right:
        peers = spconv_peers(theirs, check)
    if dtype != "float32":
        wide = feats.astype("float32")
        wide_values = check_values(wide, weight_of(SUBM3, cin, cout, "float32"), table, None)
        peers["ours_float32"] = Peer(ours("float32", wide), lambda y: wide_values(arrays(y)[-1]), own_pool=True)
    pairs = int((table >= 0).sum())
    facts = {"voxels": len(coords), "pairs": pairs, "cin": cin, "cout": cout}
    return Case(dtype, ours(dtype, feats), check, peers, 2.0 * pairs * cin * cout, facts)


def subm_integers(occupancy: str, cin: int, cout: int) -> Case:
    """The same with integer products between float32 features, paired with floats; checked by the integers' own oracle."""
    coords, table = coords_of(occupancy), table_of(occupancy)
    feats, weight = features(len(coords), cin, "float32"), weight_of(SUBM3, cin, cout, "float32")
    x, given = tvm.runtime.tensor(feats), tvm.runtime.tensor(coords)
    _, kernel_map = map_function(SUBM3)(given)
    integers, floats = (conv_function(SUBM3, cin, cout, "float32", products=products) for products in ("int8", "float"))
    kernel = kernel_for(SparseConv(cin, cout, SUBM3.kernel, products="int8"), host_target())
    sample = np.sort(np.random.default_rng(0).choice(len(coords), min(SAMPLE, len(coords)), replace=False))
    taps, exact = weight.reshape(cout, -1, cin).transpose(1, 2, 0), check_values(feats, weight, table, None)

    def check(result):
        values = arrays(result)[-1]
        if kernel.bits is None:
            return exact(values)
        expected = int8_sparse_conv.naive(feats, taps, table[:, sample], bits=kernel.bits)
        return [
            compare(
                values[sample], expected, 2 * SUBM3.taps, dtype="float32", name=f"{len(sample)} rows against exact integers"
            )
        ]

    peer = Peer(lambda: floats(x, given, *kernel_map), lambda y: exact(arrays(y)[-1]), own_pool=True)
    pairs = int((table >= 0).sum())
    facts = {"voxels": len(coords), "pairs": pairs, "cin": cin, "cout": cout}
    return Case(
        "int8",
        lambda: integers(x, given, *kernel_map),
        check,
        {"ours_float32": peer},
        2.0 * pairs * cin * cout,
        facts,
    )


@functools.cache
def memory() -> Peer:
    """The bandwidth that all threads see, as a peer: its arrays are made once."""
    stream = Triad()
    expected = np.full(stream.arrays[2].shape, stream.RESULT, "float32")
    return Peer(stream, lambda out: [compare(out.numpy(), expected, name="triad")], own_pool=True)


def grouped_warm(occupancy: str, channels: int, groups: int, dtype: str, peers: Callable[[], dict[str, Peer]]) -> Case:
    """Submanifold 3^3 in groups, with the map ready. `bytes`: x, the pairs of the map and the result, each once."""
    coords, table = coords_of(occupancy), table_of(occupancy)
    feats = features(len(coords), channels, dtype)
    given, x = tvm.runtime.tensor(coords), tvm.runtime.tensor(feats)
    _, kernel_map = map_function(SUBM3)(given)
    function = conv_function(SUBM3, channels, channels, dtype, groups)
    values = check_values(feats, weight_of(SUBM3, channels // groups, channels, dtype), table, None, groups)
    pairs = int((table >= 0).sum())
    facts = {"voxels": len(coords), "pairs": pairs, "cin": channels, "cout": channels, "groups": groups}
    facts["bytes"] = 2 * feats.nbytes + 8 * pairs

    def check(result):
        return values(arrays(result)[-1])

    flops = 2.0 * pairs * channels * channels // groups
    return Case(dtype, lambda: function(x, given, *kernel_map), check, peers(), flops, facts)


def ungrouped(occupancy: str, channels: int, dtype: str) -> dict[str, Peer]:
    """Our own convolution of as many channels in one group."""
    case = grouped_warm(occupancy, channels, 1, dtype, dict)
    return {"ours_ungrouped": Peer(case.ours, case.check, own_pool=True)}


def run_grouped(bench: Benchmark, quick: bool) -> None:
    """Depthwise convolutions, which the memory bounds, and those of fewer groups."""
    for occupancy, channels in itertools.product(("nut_64",) if quick else ("nut_64", "nut_128"), (64, 128, 256)):
        for dtype in ("float32",) if quick else ("float32", "bfloat16"):
            name = f"depthwise3_{occupancy.replace('_', '')}_c{channels}"
            make = functools.partial(grouped_warm, occupancy, channels, channels, dtype, lambda: {"triad": memory()})
            if row := bench.run(name, make):
                moved = memory().call.moved
                row["bandwidth_gbs"] = moved / row["peers"]["triad"] / 1e6
                row["gbs"] = row["bytes"] / row["ours_ms"] / 1e6
                row["bandwidth_fraction"] = row["ratios"]["triad"] * row["bytes"] / moved  # of paired times
    for groups, dtype in itertools.product((8,) if quick else (4, 8, 16), ("float32",) if quick else ("float32", "bfloat16")):
        peers = functools.partial(ungrouped, "nut_64", 64, dtype)
        bench.run(f"grouped3_nut64_c64_g{groups}", functools.partial(grouped_warm, "nut_64", 64, groups, dtype, peers))


def map_case(occupancy: str, method: str) -> Case:
    """The kernel map of a submanifold 3^3 convolution against get_indice_pairs."""
    coords, table = coords_of(occupancy), table_of(occupancy)
    function, given = map_function(SUBM3, method=method), tvm.runtime.tensor(coords)

    def check(result):
        return [compare(oracle.table_of_map(*arrays(result)[1:]), table, name="neighbour table")]

    peers = {}
    if spconv:
        layer = SpconvLayer("SubMConv3d", weight_of(SUBM3, 1, 1, "float32"), coords, extent_of(occupancy))
        half = SUBM3.taps // 2  # spconv counts the pairs of one half only, the other is their mirror image

        def check_spconv(result):
            number = result[2].numpy()
            return [compare(number[:half], (table[:half] >= 0).sum(1).astype(number.dtype), name="pairs of each tap")]

        peers = spconv_peers(layer.pairs, check_spconv, race=False)
    return Case("int32", lambda: function(given), check, peers, facts={"voxels": len(coords), "method": method})


def unique_case(occupancy: str, factor: int) -> Case:
    """Distinct coordinates with the inverse against torch.unique(dim=0)."""
    coords = coords_of(occupancy)
    function, given = unique_function(factor), tvm.runtime.tensor(coords)
    cells = coords // np.array([1, factor, factor, factor], np.int32)
    distinct, inverse = np.unique(cells, axis=0, return_inverse=True)

    def check(result):
        found, back = arrays(result)
        return [
            compare(found, distinct, name="distinct coordinates"),
            compare(back, inverse.reshape(-1).astype(back.dtype), name="inverse"),
        ]

    peers = {}
    if torch:
        peers["torch"] = Peer(torch_unique(coords, factor), check, use_threads(torch.get_num_threads()), memory=True)
    return Case("int32", lambda: function(given), check, peers, facts={"voxels": len(coords)})


def cold_case(geometry: Geometry, occupancy: str, channels: int, warm: bool = False, peers: bool = True) -> Case:
    """Output sites, map and convolution from coordinates and features, fp32; `warm`: the convolution alone."""
    coords, extent = coords_of(occupancy), extent_of(occupancy)
    feats, weight = features(len(coords), channels, "float32"), weight_of(geometry, channels, channels, "float32")
    given, x = tvm.runtime.tensor(coords), tvm.runtime.tensor(feats)
    bounds = 0 if geometry == SUBM3 else extent  # a submanifold map needs none: one module serves all grids
    if warm:
        out, kernel_map = map_function(geometry, bounds)(given)
        conv = conv_function(geometry, channels, channels, "float32")

        def ours():
            return out, conv(x, out, *kernel_map)
    else:
        cold = cold_function(geometry, bounds, channels, channels, "float32")

        def ours():
            return cold(given, x)

    right, their_sites = None, None
    if peers and spconv:
        kind = {SUBM3: "SubMConv3d", STRIDED: "SparseConv3d", TRANSPOSED: "SparseConvTranspose3d"}[geometry]
        stride, padding = geometry.stride[0], geometry.padding[0]
        layer = SpconvLayer(kind, weight, coords, extent, stride, padding)
        their_cold = layer.cold(feats)
        their_sites = their_cold()[0].numpy()
        right = functools.partial(single_threaded, their_cold)
    # our output rows come in spconv's order (there is one batch element), so that features can be compared row by row
    sites = arrays(ours())[0]
    table = table_of(occupancy) if geometry == SUBM3 else oracle.table_of(coords, sites, geometry)
    values = check_values(feats, weight, table, right)
    expected_sites = coords if geometry == SUBM3 else oracle.sites_of(coords, geometry, extent)

    def check(result):
        *found_sites, found = arrays(result)
        if found_sites:
            found_sites = found_sites[0]
            yield compare(found_sites, sites, name="order of output sites")
            if geometry != SUBM3:
                found_sites = found_sites[np.lexsort(found_sites.T[::-1])]
            yield compare(found_sites, expected_sites, name="output sites")
            if their_sites is not None:
                yield compare(sites, their_sites, name="output sites in spconv's order")
        yield from values(found)

    theirs = {}
    if right:
        theirs = spconv_peers(layer.warm(feats) if warm else their_cold, check)
    pairs = int((table >= 0).sum())
    facts = {"voxels": len(coords), "rows_out": len(sites), "pairs": pairs, "cin": channels, "cout": channels}
    return Case("float32", ours, check, theirs, 2.0 * pairs * channels * channels, facts)


def run_cases(bench: Benchmark, quick: bool) -> None:
    """All cases, or with `quick` those that need few compiled modules."""
    occupancies = ["nut_64"] if quick else ["nut_64", "ant_64", "nut_128", "ant_128"]

    def name_of(occupancy: str) -> str:
        return occupancy.replace("_", "")

    for occupancy, method in itertools.product(occupancies, ("grid", "hash")):
        bench.run(f"map3_{name_of(occupancy)}_{method}", functools.partial(map_case, occupancy, method))
    for occupancy, (kind, factor) in itertools.product(occupancies, {"unique": 1, "downsample2": 2}.items()):
        if not quick or factor == 2:
            bench.run(f"{kind}_{name_of(occupancy)}", functools.partial(unique_case, occupancy, factor))

    layers = [(o, c, c) for o in occupancies for c in ((32, 64, 128) if quick else (16, 32, 64, 128, 256))]
    if not quick:
        layers += [("nut_128", 768, 192), ("nut_128", 192, 96), ("nut_64", 2048, 128)]  # of SAM-3D-Objects
    for occupancy, cin, cout in layers:
        channels = f"c{cin}" if cin == cout else f"c{cin}to{cout}"
        for dtype in ("float32", "bfloat16", *(["float16"] if cin == 64 else [])):
            if quick and dtype != "float32" and cin < 128:
                continue
            bench.run(f"subm3_{name_of(occupancy)}_{channels}", functools.partial(subm_warm, occupancy, cin, cout, dtype))
        if min(cin, cout) >= (128 if quick else 64):
            bench.run(f"subm3_{name_of(occupancy)}_{channels}_int8", functools.partial(subm_integers, occupancy, cin, cout))

    run_grouped(bench, quick)
    for occupancy, channels in itertools.product(occupancies, (32,) if quick else (32, 128)):
        bench.run(f"cold_subm3_{name_of(occupancy)}_c{channels}", functools.partial(cold_case, SUBM3, occupancy, channels))
    for kind, geometry in {"strided_k3s2p1": STRIDED, "transposed_k2s2": TRANSPOSED}.items():
        if quick and geometry == TRANSPOSED:
            continue
        for occupancy in occupancies if geometry == STRIDED else occupancies[:2]:
            channels = 32 if quick else 64
            for state in ("cold",) if quick else ("cold", "warm"):
                make = functools.partial(cold_case, geometry, occupancy, channels, state == "warm")
                bench.run(f"{kind}_{name_of(occupancy)}_c{channels}_{state}", make)
    grown = ("airplane_64", "nut_128") if quick else ("airplane_64", "ant_64", "nut_64", "nut_128", "nut_256")
    for occupancy in grown:
        row = bench.run(f"growth_{name_of(occupancy)}_c32", functools.partial(cold_case, SUBM3, occupancy, 32, peers=False))
        if row:
            row["ns_per_voxel"] = row["ours_ms"] * 1e6 / row["voxels"]
            row["ns_per_pair"] = row["ours_ms"] * 1e6 / row["pairs"]


# The marks that these figures are held against.


@dataclass(frozen=True)
class Mark:
    """A goal for all rows that `covers` picks: at least `target` times as fast as `peer`, or a fraction: that of the peak, or
    the row's entry `fraction`."""

    text: str
    target: float
    covers: Callable[[dict], bool]
    peer: str = ""
    fraction: str = "peak_fraction"

    def value(self, row: dict) -> float | None:
        """What a row reached; None where it was not measured."""
        return row["ratios"].get(self.peer) if self.peer else row.get(self.fraction)

    def needs(self, row: dict) -> float:
        """The fraction of the machine's peak that the mark asks for on this row; 0 where it is not arithmetic."""
        if not self.peer:
            return self.target
        if row["gflops"] is None:
            return 0.0
        return row["peak_fraction"] * self.target / row["ratios"][self.peer]


def is_subm(row: dict, dtype: str, least: int, most: int = 256) -> bool:
    square = row["case"].startswith("subm3_") and row["cin"] == row["cout"]
    return square and row["dtype"] == dtype and least <= row["cin"] <= most


MARKS = [
    Mark("subm3 fp32, 32-256 channels, against spconv", 3.2, lambda r: is_subm(r, "float32", 32), "spconv"),
    Mark("the same against spconv with 1 thread", 5.5, lambda r: is_subm(r, "float32", 32), "spconv_1thread"),
    Mark("subm3 fp32, 16 channels, against spconv", 2.5, lambda r: is_subm(r, "float32", 16, 16), "spconv"),
    Mark("subm3 fp32, 64+ channels, of the peak", 0.85, lambda r: is_subm(r, "float32", 64)),
    Mark("subm3 fp32, 32 channels, of the peak", 0.55, lambda r: is_subm(r, "float32", 32, 32)),
    Mark("subm3 bf16, 128+ channels, against our fp32", 1.8, lambda r: is_subm(r, "bfloat16", 128), "ours_float32"),
    Mark(
        "depthwise 3^3, 64-256 channels, of the memory's bandwidth",
        0.6,
        lambda r: "bandwidth_fraction" in r,
        fraction="bandwidth_fraction",
    ),
    Mark("kernel map by grid, against spconv", 20, lambda r: r.get("method") == "grid", "spconv"),
    Mark("kernel map by hash, against spconv", 4, lambda r: r.get("method") == "hash", "spconv"),
    Mark(
        "unique and downsample, against torch",
        25,
        lambda r: r["case"].startswith(("unique_", "downsample2_")),
        "torch",
    ),
]


def print_marks(bench: Benchmark) -> None:
    """Each mark with what was reached; whoever misses one, and whether the machine could reach it at all."""
    table = Table(title="marks", title_justify="left")
    for column in ("mark", "target", "lowest", "median", "rows", "verdict"):
        table.add_column(column, justify="left" if column in ("mark", "verdict") else "right")
    print_line = functools.partial(bench.console.print, highlight=False, soft_wrap=True)
    misses = []
    for mark in MARKS:
        rows = [(mark.value(row), row) for row in bench.rows if mark.covers(row) and mark.value(row) is not None]
        if not rows:
            continue

        def show(value: float, mark=mark) -> str:
            return f"{value:.1f}x" if mark.peer else f"{100 * value:.0f} %"

        values = [value for value, _ in rows]
        missed = [(value, row) for value, row in rows if value < mark.target]
        impossible = [row for _, row in missed if mark.needs(row) > 1]
        verdict = "reached" if not missed else f"not reached in {len(missed)}"
        if impossible:
            verdict += f", {len(impossible)} of them beyond the machine's peak"
        table.add_row(mark.text, show(mark.target), show(min(values)), show(float(np.median(values))), str(len(rows)), verdict)
        for value, row in missed:
            text = f"{row['case']} {row['dtype']}: {show(value)} of {show(mark.target)}"
            if mark.peer and row["gflops"]:
                text += f" {mark.peer}; the mark needs {100 * mark.needs(row):.0f} % of the measured peak"
                text += f", {100 * row['peak_fraction']:.0f} % were reached"
            misses.append(text)
    if table.row_count:
        bench.console.print(table, highlight=False)
    for miss in misses:
        print_line(f"  not reached: {miss}")
    growth = [row for row in bench.rows if "ns_per_voxel" in row]
    if growth:
        steps = ", ".join(f"{row['voxels']:,}: {row['ns_per_voxel']:.0f}" for row in growth)
        print_line(f"growth, ns per voxel at each number of voxels: {steps}")
    if spconv is None:
        print_line("spconv is not installed: no figures against it")
    elif any("spconv" in row["peers"] for row in bench.rows):
        print_line("spconv with several threads computes wrong convolutions: of those only the time is used")


def main(arguments: list[str] | None = None) -> int:
    options = parse_options("Sparse convolution against spconv, on real occupancies.", arguments)
    bench = Benchmark("sparse_conv", options)
    run_cases(bench, options.quick)
    code = bench.finish()
    print_marks(bench)
    return code


if __name__ == "__main__":
    sys.exit(main())
