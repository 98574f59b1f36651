"""One row an op: what the tests and the benchmarks walk.

A row makes an `Example` of any size: inputs, the call, and what the oracle says. Rows are listed in `OPS`; adding an op
means adding its row here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax


@dataclass
class Example:
    """One use of an op.

    `inputs`: arrays in the order of `call`'s arguments. `shapes`: their symbolic shapes, with a name for every dimension
    that may change from run to run, e.g. ("n", 64). `call(*vars)` makes the Relax call. `expected`: the oracle's outputs,
    float64 or integer. `depth`: length of the longest sum behind a value. `flops`: useful floating-point operations.
    """

    inputs: list[np.ndarray]
    shapes: list[tuple]
    call: Callable[..., relax.Expr]
    expected: list[np.ndarray]
    depth: float = 1.0
    flops: float = 0.0


@dataclass(frozen=True)
class OpRow:
    """`example(rng, rows, dtype) -> Example` with about `rows` rows of features of `dtype`; `dtypes`: those it knows."""

    name: str
    example: Callable[[np.random.Generator, int, str], Example]
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    sizes: tuple[int, ...] = field(default=(0, 1, 2, 97))


def features(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    """Normal random values, already rounded to `dtype`, so that an oracle sees what the kernel sees."""
    import ml_dtypes

    return rng.standard_normal(shape).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def voxels(rng: np.random.Generator, rows: int, batch: int = 3, low: int = -4) -> np.ndarray:
    """int32 [rows, 4]: distinct coordinates in random order, some of them neighbours, some negative if `low` is."""
    side = 2 + int((2 * rows) ** (1 / 3))
    cells = rng.permutation(batch * side**3)[:rows]
    return np.stack([cells // side**3, *(cells // side**axis % side + low for axis in (2, 1, 0))], 1).astype("int32")


def _emit(expr: relax.Expr) -> relax.Var:
    """A variable for a value that is used more than once."""
    return relax.BlockBuilder.current().emit(expr)


def _named_rows(coords: relax.Expr) -> relax.Var:
    """Give the rows of data-dependent coordinates a name."""
    rows = tvm.tirx.Var("m", "int64")
    return relax.BlockBuilder.current().match_cast(coords, relax.TensorType([rows, 4], "int32"))


def _lookup(rng, rows, dtype):
    from tir_kernels.spec.coordinate_index import naive

    from ..op import lookup

    coords = voxels(rng, rows)
    queries = np.concatenate([coords[::2], voxels(rng, rows) + 1]).astype("int32")
    return Example([coords, queries], [("n", 4), ("m", 4)], lookup, [naive(coords, queries)])


def _unique(rng, rows, dtype):
    from tir_kernels.spec.unique import naive

    from ..op import unique

    coords = rng.permutation(np.repeat(voxels(rng, (rows + 1) // 2), 2, axis=0)[:rows])
    return Example([coords], [("n", 4)], unique, list(naive(coords)))


def _downsample(rng, rows, dtype):
    from tir_kernels.spec.unique import naive

    from ..op import downsample

    coords = voxels(rng, rows)
    return Example([coords], [("n", 4)], lambda c: downsample(c, (2, 3, 1)), list(naive(coords, (2, 3, 1))))


def _subdivide(rng, rows, dtype):
    from tir_kernels.spec.subdivide import naive

    from ..op import subdivide

    coords = voxels(rng, rows)
    return Example([coords], [("n", 4)], lambda c: subdivide(c, (2, 1, 3)), [naive(coords, (2, 1, 3))])


def _window_partition(rng, rows, dtype):
    from tir_kernels.spec.windows import naive

    from ..op import window_partition

    coords, window, shift = voxels(rng, rows), (2, 3, 4), (1, 0, 3)
    return Example([coords], [("n", 4)], lambda c: window_partition(c, window, shift), list(naive(coords, window, shift)))


def _serialize(rng, rows, dtype):
    from tir_kernels.spec.serialize import naive

    from ..op import serialize

    coords, mode, shift = voxels(rng, rows), "hilbert_transposed", (4, 5, 600)
    return Example([coords], [("n", 4)], lambda c: serialize(c, mode, shift), [naive(coords, mode, shift)])


def _serialize_wide(rng, rows, dtype):
    from tir_kernels.spec.serialize import naive

    from ..op import serialize

    coords, mode, shift = 300 * voxels(rng, rows), "hilbert", (32768, 2000, 1200)
    coords[:, 0] //= 300
    return Example([coords], [("n", 4)], lambda c: serialize(c, mode, shift, bits=16), [naive(coords, mode, shift, bits=16)])


def _serialized_partition(rng, rows, dtype):
    from tir_kernels.spec.serialize import naive, naive_partition

    from ..op import serialized_partition

    coords = voxels(rng, rows)
    code = naive(coords, shift=(4, 4, 4))
    return Example(
        [coords],
        [("n", 4)],
        lambda c: serialized_partition(c, 13, shift_sequence=5, shift=4),
        list(naive_partition(coords, code, 13, 5)),
    )


def _conv_parameters(rng, taps, cin, cout, dtype):
    """weight [Cout, *taps, Cin], the same as [K, Cin, Cout] for the oracle, bias float32 [Cout]."""
    weight = features(rng, cout, *taps, cin, dtype=dtype)
    return weight, weight.reshape(cout, -1, cin).transpose(1, 2, 0), features(rng, cout)


def _submanifold_map(rng, rows, dtype):
    from tir_kernels.spec.geometry import Geometry
    from tir_kernels.spec.kernel_map import naive_table
    from tir_kernels.spec.sparse_conv import naive

    from ..op import sparse_conv, submanifold_map

    coords, x = voxels(rng, rows), features(rng, rows, 3, dtype=dtype)
    weight, taps, bias = _conv_parameters(rng, (1, 3, 5), 3, 7, dtype)
    table = naive_table(coords, coords, Geometry.submanifold((1, 3, 5), (1, 2, 3)))
    return Example(
        [coords, x, weight, bias],
        [("n", 4), ("n", 3), (7, 1, 3, 5, 3), (7,)],
        lambda c, x, w, b: sparse_conv(x, w, submanifold_map(c, (1, 3, 5), (1, 2, 3)), c, b),
        [naive(x, taps, table, bias)],
        depth=15 * 3,
        flops=2.0 * (table >= 0).sum() * 3 * 7,
    )


def _sparse_conv(rng, rows, dtype):
    from tir_kernels.spec.geometry import Geometry
    from tir_kernels.spec.kernel_map import naive_table
    from tir_kernels.spec.sparse_conv import naive

    from ..op import sparse_conv, submanifold_map

    coords, x = voxels(rng, rows), features(rng, rows, 33, dtype=dtype)
    residual = features(rng, rows, 40, dtype=dtype)
    weight, taps, bias = _conv_parameters(rng, (3, 3, 3), 33, 40, dtype)
    table = naive_table(coords, coords, Geometry.submanifold((3, 3, 3)))
    return Example(
        [coords, x, weight, bias, residual],
        [("n", 4), ("n", 33), (40, 3, 3, 3, 33), (40,), ("n", 40)],
        lambda c, x, w, b, r: sparse_conv(x, w, submanifold_map(c), c, b, r, activation="silu"),
        [naive(x, taps, table, bias, residual, "silu")],
        depth=27 * 33,
        flops=2.0 * (table >= 0).sum() * 33 * 40,
    )


def _grouped_example(rng, rows, dtype, layers):
    """Grouped convolutions side by side: for each (Cin, Cout, groups), the first with residual and activation."""
    from tir_kernels.spec.geometry import Geometry
    from tir_kernels.spec.kernel_map import naive_table
    from tir_kernels.spec.sparse_conv import naive

    from ..op import sparse_conv, submanifold_map

    coords = voxels(rng, rows)
    table = naive_table(coords, coords, Geometry.submanifold((3, 3, 3)))
    inputs, shapes, expected = [coords], [("n", 4)], []
    for cin, cout, groups in layers:
        x, (weight, taps, bias) = (
            features(rng, rows, cin, dtype=dtype),
            _conv_parameters(rng, (3, 3, 3), cin // groups, cout, dtype),
        )
        inputs += [x, weight, bias]
        shapes += [("n", cin), weight.shape, (cout,)]
        if expected:
            expected.append(naive(x, taps, table, bias, groups=groups))
            continue
        residual = features(rng, rows, cout, dtype=dtype)
        inputs.append(residual)
        shapes.append(("n", cout))
        expected.append(naive(x, taps, table, bias, residual, "silu", groups))

    def call(c, x, w, b, r, *others):
        kernel_map = _emit(submanifold_map(c))
        results = [_emit(sparse_conv(x, w, kernel_map, c, b, r, activation="silu", groups=layers[0][2]))]
        for place, (_, _, groups) in enumerate(layers[1:]):
            x, w, b = others[3 * place : 3 * place + 3]
            results.append(_emit(sparse_conv(x, w, kernel_map, c, b, groups=groups)))
        return relax.Tuple(results)

    depth = max(27 * cin // groups for cin, _, groups in layers)
    flops = sum(2.0 * (table >= 0).sum() * cin // groups * cout for cin, cout, groups in layers)
    return Example(inputs, shapes, call, expected, depth=depth, flops=flops)


def _grouped_conv(rng, rows, dtype):
    """Groups of odd widths, in register tiles, and several narrow ones side by side."""
    return _grouped_example(rng, rows, dtype, [(28, 40, 4), (36, 36, 9), (40, 80, 20)])


def _depthwise_conv(rng, rows, dtype):
    """With one, two and very many output channels to each input channel."""
    return _grouped_example(rng, rows, dtype, [(70, 70, 70), (21, 42, 21), (17, 17 * 18, 17)])


def _weight_gradient(rng, rows, dtype):
    """Of a strided convolution, of one whose groups are odd, and of a depthwise one."""
    from tir_kernels.spec import sites
    from tir_kernels.spec.geometry import Geometry
    from tir_kernels.spec.kernel_map import naive_table
    from tir_kernels.spec.weight_gradient import naive

    from ..op import sparse_conv_weight_gradient, strided_map

    geometry = Geometry((3, 2, 3), (2, 1, 2), (1, 0, 1))
    layers = [(33, 40, 1), (14, 70, 2), (9, 18, 9)]  # (Cin, Cout, groups)
    coords = voxels(rng, rows)
    out_coords = sites.naive(coords, geometry)
    table = naive_table(coords, out_coords, geometry)
    inputs, shapes, expected = [coords], [("n", 4)], []
    for cin, cout, groups in layers:
        x, gradient = features(rng, rows, cin, dtype=dtype), features(rng, len(out_coords), cout, dtype=dtype)
        inputs += [x, gradient]
        shapes += [("n", cin), ("m", cout)]
        expected.append(naive(x, gradient, table, groups).reshape(cout, *geometry.kernel, cin // groups))

    def call(c, *pairs):
        found = _emit(strided_map(c, geometry.kernel, geometry.stride, geometry.padding, shape=None))
        kernel_map = _emit(relax.TupleGetItem(found, 1))
        return relax.Tuple(
            [
                _emit(sparse_conv_weight_gradient(x, gradient, kernel_map, geometry.kernel, groups))
                for x, gradient, (_, _, groups) in zip(pairs[::2], pairs[1::2], layers, strict=True)
            ]
        )

    flops = sum(2.0 * (table >= 0).sum() * cin // groups * cout for cin, cout, groups in layers)
    return Example(inputs, shapes, call, expected, depth=max(rows, 1), flops=flops)


def _upsampled_conv(rng, rows, dtype):
    from tir_kernels.spec.geometry import Geometry
    from tir_kernels.spec.kernel_map import naive_table
    from tir_kernels.spec.unique import naive as downsample
    from tir_kernels.spec.upsampled_conv import naive

    from ..op import submanifold_map, upsampled_conv

    coords = voxels(rng, rows)
    coarse, parent = downsample(coords, (2, 2, 2))
    x, residual = features(rng, len(coarse) + 1, 33, dtype=dtype), features(rng, rows, 40, dtype=dtype)
    weight, taps, bias = _conv_parameters(rng, (3, 3, 3), 33, 40, dtype)
    table = naive_table(coords, coords, Geometry.submanifold((3, 3, 3)))
    return Example(
        [coords, x, parent, weight, bias, residual],
        [("n", 4), ("m", 33), ("n",), (40, 3, 3, 3, 33), (40,), ("n", 40)],
        lambda c, x, p, w, b, r: upsampled_conv(x, w, submanifold_map(c), p, b, r, activation="silu"),
        [naive(x, taps, table, parent, bias, residual, "silu")],
        depth=27 * 33,
        flops=2.0 * len(coarse) * 27 * 33 * 40,
    )


def _strided_example(rng, rows, dtype, transposed):
    """Sites, the convolution onto them, and the inverse convolution back."""
    from tir_kernels.spec import sites
    from tir_kernels.spec.geometry import Geometry
    from tir_kernels.spec.kernel_map import naive_inverse, naive_table
    from tir_kernels.spec.sparse_conv import naive

    from ..op import inverse_map, sparse_conv, strided_map

    geometry = Geometry((3, 2, 3), (2, 1, 2), (1, 0, 1), (1, 2, 1), transposed)
    coords, x = voxels(rng, rows), features(rng, rows, 5, dtype=dtype)
    weight, taps, bias = _conv_parameters(rng, geometry.kernel, 5, 9, dtype)
    out_coords = sites.naive(coords, geometry)
    table = naive_table(coords, out_coords, geometry)
    inverse = naive_inverse(table, rows)
    y = features(rng, len(out_coords), 5, dtype=dtype)

    def call(c, x, w, b, y):
        pair = _emit(strided_map(c, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, None, transposed))
        kernel_map = _emit(relax.TupleGetItem(pair, 1))
        sites = _named_rows(_emit(relax.TupleGetItem(pair, 0)))
        down = _emit(sparse_conv(x, w, kernel_map, sites, b))
        up = _emit(sparse_conv(y, w, _emit(inverse_map(kernel_map, c)), c, b))
        return relax.Tuple([sites, down, up])

    return Example(
        [coords, x, weight, bias, y],
        [("n", 4), ("n", 5), (9, *geometry.kernel, 5), (9,), ("k", 5)],
        call,
        [out_coords, naive(x, taps, table, bias), naive(y, taps, inverse, bias)],
        depth=geometry.taps * 5,
        flops=4.0 * (table >= 0).sum() * 5 * 9,
    )


def _strided_map(rng, rows, dtype):
    return _strided_example(rng, rows, dtype, transposed=False)


def _transposed_map(rng, rows, dtype):
    return _strided_example(rng, rows, dtype, transposed=True)


def _kernel_map(rng, rows, dtype):
    """The convolution between two sets of coordinates, strided, and the inverse convolution back."""
    from tir_kernels.spec.geometry import Geometry
    from tir_kernels.spec.kernel_map import naive_inverse, naive_table
    from tir_kernels.spec.sparse_conv import naive

    from ..op import inverse_map, kernel_map, sparse_conv

    geometry = Geometry((3, 2, 3), (2, 1, 2), (1, 0, 1), (1, 2, 1))
    coords, out_coords = voxels(rng, rows), voxels(rng, rows // 2 + 1, low=-3)
    x, y = features(rng, rows, 5, dtype=dtype), features(rng, len(out_coords), 5, dtype=dtype)
    weight, taps, bias = _conv_parameters(rng, geometry.kernel, 5, 9, dtype)
    table = naive_table(coords, out_coords, geometry)

    def call(c, out, x, w, b, y):
        options = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
        chosen = _emit(kernel_map(c, out, *options))
        return relax.Tuple(
            [_emit(sparse_conv(x, w, chosen, out, b)), _emit(sparse_conv(y, w, _emit(inverse_map(chosen, c)), c, b))]
        )

    return Example(
        [coords, out_coords, x, weight, bias, y],
        [("n", 4), ("m", 4), ("n", 5), (9, *geometry.kernel, 5), (9,), ("m", 5)],
        call,
        [naive(x, taps, table, bias), naive(y, taps, naive_inverse(table, rows), bias)],
        depth=geometry.taps * 5,
        flops=4.0 * (table >= 0).sum() * 5 * 9,
    )


def _borders(rng, rows, dtype):
    """A pool in ceil mode, and a transposed convolution with output padding, each with the sites that it adds."""
    from tir_kernels.spec import sites
    from tir_kernels.spec.geometry import Geometry
    from tir_kernels.spec.kernel_map import naive_table
    from tir_kernels.spec.pool import Reduction
    from tir_kernels.spec.pool import naive as pooled
    from tir_kernels.spec.sparse_conv import naive

    from ..op import pool, sparse_conv, strided_map

    coords, x = voxels(rng, rows, low=0), features(rng, rows, 5, dtype=dtype)
    shape = coords[:, 1:].max(0, initial=0) + 1
    window = Geometry((2, 3, 2), (3, 2, 2), ceil_mode=True)
    spread = Geometry((2, 2, 2), (3, 2, 2), (1, 0, 1), transposed=True, output_padding=(2, 0, 1))
    weight, taps, bias = _conv_parameters(rng, spread.kernel, 5, 9, dtype)
    out = [sites.naive(coords, g, sites.out_extent(shape, g)) for g in (window, spread)]
    tables = [naive_table(coords, of_one, g) for of_one, g in zip(out, (window, spread), strict=True)]

    def call(c, x, w, b):
        results = []
        for g in (window, spread):
            options = {"output_padding": g.output_padding, "ceil_mode": g.ceil_mode}
            pair = _emit(strided_map(c, g.kernel, g.stride, g.padding, g.dilation, "infer", g.transposed, **options))
            kernel_map, at = _emit(relax.TupleGetItem(pair, 1)), _named_rows(_emit(relax.TupleGetItem(pair, 0)))
            results += [at, _emit(sparse_conv(x, w, kernel_map, at, b) if g.transposed else pool(x, kernel_map, at, "max"))]
        return relax.Tuple(results)

    return Example(
        [coords, x, weight, bias],
        [("n", 4), ("n", 5), (9, *spread.kernel, 5), (9,)],
        call,
        [out[0], pooled(x, tables[0], Reduction("max")), out[1], naive(x, taps, tables[1], bias)],
        depth=spread.taps * 5,
        flops=2.0 * (tables[1] >= 0).sum() * 5 * 9,
    )


def _conv3d(rng, rows, dtype):
    """A strided and dilated convolution, and two that go by Winograd's algorithm in float32: of voxels, of images."""
    from tir_kernels.spec.conv3d import naive

    from ..op import conv3d

    batch, depth, few = min(rows, 2), max(1, rows // 2), rows // 16 + 1
    x, weight = features(rng, batch, 33, depth, 3, 5, dtype=dtype), features(rng, 40, 33, 3, 3, 3, dtype=dtype)
    residual, bias = features(rng, batch, 40, (depth + 1) // 2, 3, 5, dtype=dtype), features(rng, 40)
    options = {"stride": (2, 1, 1), "padding": (1, 1, 2), "dilation": (1, 1, 2), "activation": "silu"}
    y, tiled = features(rng, batch, 17, few, 5, 21, dtype=dtype), features(rng, 20, 17, 3, 3, 3, dtype=dtype)
    image, flat = features(rng, batch, 17, 1, few, 21, dtype=dtype), features(rng, 20, 17, 1, 3, 3, dtype=dtype)
    return Example(
        [x, weight, bias, residual, y, tiled, image, flat],
        [
            *[("b", 33, "d", 3, 5), (40, 33, 3, 3, 3), (40,), ("b", 40, "half", 3, 5)],
            *[("b", 17, "few", 5, 21), (20, 17, 3, 3, 3), ("b", 17, 1, "few", 21), (20, 17, 1, 3, 3)],
        ],
        lambda x, w, b, r, y, tiled, image, flat: relax.Tuple(
            [
                _emit(conv3d(x, w, b, r, **options)),
                _emit(conv3d(y, tiled, padding=1)),
                _emit(conv3d(image, flat, padding=(0, 1, 1))),
            ]
        ),
        [
            naive(x, weight, bias, residual, **options),
            naive(y, tiled, padding=(1, 1, 1)),
            naive(image, flat, padding=(0, 1, 1)),
        ],
        depth=27 * 33,
        flops=2.0 * 27 * (residual.size * 33 + y.size * 20) + 2.0 * 9 * image.size * 20,
    )


def _linear(rng, rows, dtype):
    from tir_kernels.spec.linear import naive

    from ..op import linear

    x, w = features(rng, rows, 433, dtype=dtype), features(rng, 70, 433, dtype=dtype)  # two blocks of the depth
    bias, gate, index = features(rng, 70), features(rng, 3, 70), rng.integers(0, 3, rows).astype("int32")
    residual = features(rng, rows, 70, dtype=dtype)
    return Example(
        [x, w, bias, residual, gate, index],
        [("n", 433), (70, 433), (70,), ("n", 70), ("b", 70), ("n",)],
        lambda x, w, b, r, gate, index: linear(x, w, b, r, "silu", gate, index),
        [naive(x, w, bias, residual, "silu", gate, index)],
        depth=433,
        flops=2.0 * rows * 433 * 70,
    )


def _int8_linear(rng, rows, dtype):
    """With integer products where the target has them: what they round is known exactly, so that no sum adds to the error."""
    from tir_kernels.dispatch import kernel_for
    from tir_kernels.spec import int8_linear
    from tir_kernels.spec.linear import Linear, naive

    from ..op import linear

    x, w = features(rng, rows, 433, dtype=dtype), features(rng, 70, 433, dtype=dtype)
    bias, gate, index = features(rng, 70), features(rng, 3, 70), rng.integers(0, 3, rows).astype("int32")
    residual = features(rng, rows, 70, dtype=dtype)
    bits = kernel_for(Linear(433, 70, dtype, products="int8")).bits
    values = x, w, bias, residual, "silu", gate, index
    return Example(
        [x, w, bias, residual, gate, index],
        [("n", 433), (70, 433), (70,), ("n", 70), ("b", 70), ("n",)],
        lambda x, w, b, r, gate, index: linear(x, w, b, r, "silu", gate, index, products="int8"),
        [naive(*values) if bits is None else int8_linear.naive(*values, bits=bits)],
        depth=433 if bits is None else 5,
        flops=2.0 * rows * 433 * 70,
    )


def _int8_sparse_conv(rng, rows, dtype):
    """As `_int8_linear`."""
    from tir_kernels.dispatch import kernel_for
    from tir_kernels.spec import int8_sparse_conv
    from tir_kernels.spec.geometry import Geometry
    from tir_kernels.spec.kernel_map import naive_table
    from tir_kernels.spec.sparse_conv import SparseConv, naive

    from ..op import sparse_conv, submanifold_map

    coords, x = voxels(rng, rows), features(rng, rows, 100, dtype=dtype)
    residual = features(rng, rows, 70, dtype=dtype)
    weight, taps, bias = _conv_parameters(rng, (3, 3, 3), 100, 70, dtype)
    table = naive_table(coords, coords, Geometry.submanifold((3, 3, 3)))
    bits = kernel_for(SparseConv(100, 70, (3, 3, 3), dtype, products="int8")).bits
    values = x, taps, table, bias, residual, "silu"
    return Example(
        [coords, x, weight, bias, residual],
        [("n", 4), ("n", 100), (70, 3, 3, 3, 100), (70,), ("n", 70)],
        lambda c, x, w, b, r: sparse_conv(x, w, submanifold_map(c), c, b, r, activation="silu", products="int8"),
        [naive(*values) if bits is None else int8_sparse_conv.naive(*values, bits=bits)],
        depth=27 * 100 if bits is None else 27 * 2 + 3,  # of each tap its scales and a sum
        flops=2.0 * (table >= 0).sum() * 100 * 70,
    )


def _gather_rows(rng, rows, dtype):
    from tir_kernels.spec.gather_rows import naive

    from ..op import gather_rows

    x, index = features(rng, rows, 33, dtype=dtype), rng.integers(-1, rows, 2 * rows + 1).astype("int32")
    return Example([x, index], [("n", 33), ("m",)], gather_rows, [naive(x, index)])


def _flatnonzero(rng, rows, dtype):
    """Rows that a mask keeps, made in the graph."""
    from tir_kernels.spec.flatnonzero import naive

    from ..op import flatnonzero

    x = rng.integers(-3, 4, 3 * rows).astype("int32")
    return Example([x], [("n",)], lambda x: flatnonzero(_emit(relax.op.greater(x, relax.const(0, "int32")))), [naive(x > 0)])


def _union(rng, rows, dtype):
    """Two sets and an empty one, which overlap, with the sum over their union."""
    from tir_kernels.spec.pool import Reduction
    from tir_kernels.spec.segment_pool import naive as segment_pooled
    from tir_kernels.spec.union import naive

    from ..op import segment_pool, union

    sets = [voxels(rng, rows), np.zeros((0, 4), "int32"), voxels(rng, rows // 2 + 1, low=-3)]
    offsets = np.cumsum([0, *map(len, sets)]).astype("int32")
    coords, inverse, table = naive(sets)
    x = features(rng, offsets[-1], 33, dtype=dtype)

    def call(c, o, x):
        joined = _emit(union(c, o))
        out = _named_rows(_emit(relax.TupleGetItem(joined, 0)))
        index, rows_of_sets = (_emit(relax.TupleGetItem(joined, i)) for i in (1, 2))
        return relax.Tuple([out, index, rows_of_sets, _emit(segment_pool(x, index, out, "sum"))])

    return Example(
        [np.concatenate(sets), offsets, x],
        [("n", 4), (4,), ("n", 33)],
        call,
        [coords, inverse, table, segment_pooled(x, inverse, len(coords), Reduction("sum"))],
        depth=2,
    )


def _pool(rng, rows, dtype):
    from tir_kernels.spec import sites
    from tir_kernels.spec.geometry import Geometry
    from tir_kernels.spec.kernel_map import naive_table
    from tir_kernels.spec.pool import Reduction, naive

    from ..op import pool, strided_map

    geometry = Geometry((3, 2, 3), (2, 1, 2), (1, 0, 1))
    coords, x = voxels(rng, rows), features(rng, rows, 33, dtype=dtype)
    table = naive_table(coords, sites.naive(coords, geometry), geometry)

    def call(c, x):
        pair = _emit(strided_map(c, geometry.kernel, geometry.stride, geometry.padding, shape=None))
        return pool(x, _emit(relax.TupleGetItem(pair, 1)), _named_rows(_emit(relax.TupleGetItem(pair, 0))))

    out = naive(x, table, Reduction("mean"))
    return Example([coords, x], [("n", 4), ("n", 33)], call, [out], depth=geometry.taps)


def _segment_pool(rng, rows, dtype):
    from tir_kernels.spec.pool import Reduction
    from tir_kernels.spec.segment_pool import naive

    from ..op import segment_pool

    x, like = features(rng, rows, 67, dtype=dtype), np.zeros((rows // 3 + 2, 4), "int32")
    index = rng.integers(-1, len(like), rows).astype("int32")
    return Example(
        [x, index, like],
        [("n", 67), ("n",), ("m", 4)],
        lambda x, index, like: segment_pool(x, index, like, "mean", count_bias=1),
        [naive(x, index, len(like), Reduction("mean", 1))],
        depth=max(np.bincount(index + 1)[1:], default=1),
    )


def _first_of_segment(rng, rows, dtype):
    from tir_kernels.spec.pool import Reduction
    from tir_kernels.spec.segment_pool import naive

    from ..op import segment_pool

    x, like = features(rng, rows, 67, dtype=dtype), np.zeros((rows // 3 + 2, 4), "int32")
    index = rng.integers(-1, len(like), rows).astype("int32")
    return Example(
        [x, index, like],
        [("n", 67), ("n",), ("m", 4)],
        lambda x, index, like: segment_pool(x, index, like, "first"),
        [naive(x, index, len(like), Reduction("first"))],
    )


def _cloud(rng, points):
    """Points float32 [points, 3] of any sign, some of them on borders of voxels, batch index, voxel size and origin."""
    cloud = rng.standard_normal((points, 3)).astype("float32")
    cloud[::4] = np.round(cloud[::4] * 2) / 2
    batch = rng.integers(0, 3, points).astype("int32")
    return cloud, batch, np.array([0.25, 0.1, 0.5], "float32"), np.array([0.5, -0.3, 0], "float32")


def _quantize(rng, rows, dtype):
    from tir_kernels.spec.quantize import naive

    from ..op import quantize

    points, batch, size, origin = _cloud(rng, rows)
    return Example(
        [points, size, batch, origin],
        [("p", 3), (3,), ("p",), (3,)],
        lambda p, size, b, o: quantize(p, size, b, o, (1, 2, 3)),
        [naive(points, size, batch, origin, (1, 2, 3))],
    )


def _trilinear(rng, rows, dtype):
    """Around each point there are voxels with a chance of a half."""
    from tir_kernels.spec import quantize
    from tir_kernels.spec.trilinear import naive

    from ..op import trilinear

    points, batch, size, origin = _cloud(rng, rows)
    stride = (2, 4, 1)
    near = quantize.naive(points, size, batch, origin, stride)[:, None] + [[0, *corner] for corner in np.ndindex(2, 2, 2)]
    coords = np.unique(near.reshape(-1, 4), axis=0).astype("int32")
    coords = coords[rng.permutation(len(coords))[: len(coords) // 2]]
    return Example(
        [coords, points, size, batch, origin],
        [("n", 4), ("p", 3), (3,), ("p",), (3,)],
        lambda c, p, size, b, o: trilinear(c, p, size, b, o, stride),
        list(naive(coords, points, size, batch, origin, stride)),
        depth=3 + 8,  # products, and the sum that they are divided by
    )


def _interpolate(rng, rows, dtype):
    from tir_kernels.spec.interpolate import naive

    from ..op import interpolate

    x, weight = features(rng, rows, 67, dtype=dtype), features(rng, 2 * rows + 1, 8)
    index = rng.integers(-1, rows, weight.shape).astype("int32")
    return Example(
        [x, index, weight],
        [("n", 67), ("m", 8), ("m", 8)],
        interpolate,
        [naive(x, index, weight)],
        depth=8,
        flops=2.0 * (index >= 0).sum() * 67,
    )


def _batches(rng, rows, batch):
    """Ascending batch index int32 [rows] and its offsets int32 [batch + 1]; the second element has no rows."""
    index = np.sort(rng.choice([b for b in range(batch) if b != 1], rows)).astype("int32")
    return index, np.searchsorted(index, np.arange(batch + 1)).astype("int32")


def _batch_offsets(rng, rows, dtype):
    from ..op import batch_offsets

    index, offsets = _batches(rng, rows, 4)
    coords = np.concatenate([index[:, None], voxels(rng, rows)[:, 1:]], 1)
    return Example([coords], [("n", 4)], lambda c: batch_offsets(c, 4), [offsets])


def _group_norm(rng, rows, dtype):
    from tir_kernels.spec.group_norm import naive

    from ..op import group_norm

    x, weight, bias = features(rng, rows, 33, dtype=dtype), features(rng, 33), features(rng, 33)
    _, offsets = _batches(rng, rows, 4)
    return Example(
        [x, offsets, weight, bias],
        [("n", 33), ("b",), (33,), (33,)],
        lambda x, offsets, w, b: group_norm(x, offsets, w, b, 11, activation="silu"),
        [naive(x, offsets, weight, bias, 11, activation="silu")],
        depth=3 * rows,
    )


def _layer_norm(rng, rows, dtype):
    from tir_kernels.spec.layer_norm import naive

    from ..op import layer_norm

    x = features(rng, rows, 67, dtype=dtype)
    weight, bias, scale, shift = (features(rng, *shape) for shape in ((67,), (67,), (3, 67), (3, 67)))
    index = rng.integers(0, 3, rows).astype("int32")
    return Example(
        [x, weight, bias, scale, shift, index],
        [("n", 67), (67,), (67,), ("b", 67), ("b", 67), ("n",)],
        lambda x, w, b, scale, shift, index: layer_norm(x, w, b, scale, shift, activation="silu", batch_index=index),
        [naive(x, weight, bias, scale, shift, index, activation="silu")],
        depth=67,
    )


def _conv_transpose3d(rng, rows, dtype):
    """One tap for a voxel, as many as the stride; and overlapping taps in several groups of phases."""
    from tir_kernels.spec.conv_transpose3d import naive

    from ..op import conv_transpose3d

    batch, height = min(rows, 2), rows // 4 + 1
    x, spread = features(rng, batch, 19, 1, height, 37, dtype=dtype), features(rng, 19, 21, 1, 2, 2, dtype=dtype)
    residual, bias = features(rng, batch, 21, 1, 2 * height, 74, dtype=dtype), features(rng, 21)
    y, weight = features(rng, batch, 5, 2, height, 9, dtype=dtype), features(rng, 5, 7, 2, 3, 4, dtype=dtype)
    options = {"stride": (1, 2, 3), "padding": (1, 1, 2), "output_padding": (0, 1, 2), "dilation": (2, 1, 2)}
    size = [("b", 19, 1, "n", 37), spread.shape, bias.shape, ("b", 21, 1, "twice", 74), ("b", 5, 2, "n", 9), weight.shape]
    return Example(
        [x, spread, bias, residual, y, weight],
        size,
        lambda x, spread, b, r, y, w: relax.Tuple(
            [
                _emit(conv_transpose3d(x, spread, b, r, stride=(1, 2, 2), activation="silu")),
                _emit(conv_transpose3d(y, w, **options)),
            ]
        ),
        [naive(x, spread, bias, residual, stride=(1, 2, 2), activation="silu"), naive(y, weight, **options)],
        depth=5 * 24,
        flops=2.0 * 4 * x.size * 21,
    )


def _resize_bilinear(rng, rows, dtype):
    from tir_kernels.spec.resize_bilinear import naive

    from ..op import resize_bilinear

    x = features(rng, 2, min(rows, 3), rows // 2 + 1, 19, dtype=dtype)
    return Example(
        [x],
        [("b", "c", "h", 19)],
        lambda x: relax.Tuple([_emit(resize_bilinear(x, (7, 33))), _emit(resize_bilinear(x, (20, 11), True))]),
        [naive(x, (7, 33)), naive(x, (20, 11), True)],
        depth=4,
    )


def _dense_group_norm(rng, rows, dtype):
    from tir_kernels.spec.dense_group_norm import naive

    from ..op import dense_group_norm

    x, weight, bias = features(rng, 2, 6, rows, 3, 5, dtype=dtype), features(rng, 6), features(rng, 6)
    return Example(
        [x, weight, bias],
        [("b", 6, "n", 3, 5), (6,), (6,)],
        lambda x, w, b: dense_group_norm(x, w, b, 3, activation="silu"),
        [naive(x, weight, bias, 3, activation="silu")],
        depth=2 * rows * 15,
    )


def _channel_affine(rng, rows, dtype):
    from tir_kernels.spec.channel_affine import naive

    from ..op import channel_affine

    x, scale, shift = features(rng, rows, 67, dtype=dtype), features(rng, 67), features(rng, 67)
    return Example(
        [x, scale, shift],
        [("n", 67), (67,), (67,)],
        lambda x, scale, shift: channel_affine(x, scale, shift, activation="silu"),
        [naive(x, scale, shift, "silu")],
        depth=2,
    )


def _channel_layer_norm(rng, rows, dtype):
    from tir_kernels.spec.channel_layer_norm import naive

    from ..op import channel_layer_norm

    x, weight, bias = features(rng, 2, 67, rows, 5, dtype=dtype), features(rng, 67), features(rng, 67)
    return Example(
        [x, weight, bias],
        [("b", 67, "n", 5), (67,), (67,)],
        lambda x, w, b: channel_layer_norm(x, w, b, activation="silu"),
        [naive(x, weight, bias, activation="silu")],
        depth=67,
    )


def _softmax(rng, rows, dtype):
    from tir_kernels.spec.softmax import naive

    from ..op import softmax

    x = features(rng, rows, 3, 67, dtype=dtype)
    return Example([x], [("n", 3, 67)], softmax, [naive(x)], depth=67)


def _rms_norm_heads(rng, rows, dtype):
    from tir_kernels.spec.rms_norm_heads import naive

    from ..op import rms_norm_heads

    x, gamma = features(rng, rows, 3, 35, dtype=dtype), features(rng, 3, 35)
    return Example([x, gamma], [("n", 3, 35), (3, 35)], rms_norm_heads, [naive(x, gamma)], depth=35)


def _attention(rng, rows, dtype):
    from tir_kernels.spec.attention import naive

    from ..op import attention

    (_, q_offsets), (_, k_offsets) = _batches(rng, rows, 4), _batches(rng, 8 * rows, 4)
    q = features(rng, rows, 3, 21, dtype=dtype)
    k, v = (features(rng, 8 * rows, 3, 21, dtype=dtype) for _ in range(2))
    return Example(
        [q, k, v, q_offsets, k_offsets],
        [("n", 3, 21), ("k", 3, 21), ("k", 3, 21), ("b",), ("b",)],
        attention,
        [naive(q, k, v, q_offsets, k_offsets)],
        depth=max(8 * rows, 21),
        flops=4.0 * (np.diff(q_offsets) * np.diff(k_offsets)).sum() * 3 * 21,
    )


def _attention_of_orders(rng, rows, dtype):
    """Windows: rows in any order, keys in several of them."""
    from tir_kernels.spec.attention import naive

    from ..op import attention

    (_, q_offsets), (_, k_offsets) = _batches(rng, rows, 9), _batches(rng, 2 * rows, 9)
    q, k, v = (features(rng, rows, 2, 64, dtype=dtype) for _ in range(3))
    q_order, k_order = rng.permutation(rows).astype("int32"), rng.integers(0, rows, 2 * rows).astype("int32")
    return Example(
        [q, k, v, q_offsets, k_offsets, q_order, k_order],
        [*[("n", 2, 64)] * 3, ("b",), ("b",), ("n",), ("m",)],
        lambda q, k, v, q_offsets, k_offsets, *orders: attention(q, k, v, q_offsets, k_offsets, None, *orders),
        [naive(q, k, v, q_offsets, k_offsets, None, q_order, k_order)],
        depth=max(2 * rows, 64),
        flops=4.0 * (np.diff(q_offsets) * np.diff(k_offsets)).sum() * 2 * 64,
    )


def _activation(rng, rows, dtype):
    from tir_kernels.spec.activation import naive

    from ..op import activation

    x = features(rng, rows, 3, 35, dtype=dtype)
    return Example([x], [("n", 3, 35)], lambda x: activation(x, "silu"), [naive(x, "silu")], depth=2)


def _modulated_add(rng, rows, dtype):
    from tir_kernels.spec.modulated_add import naive

    from ..op import modulated_add

    x, y, gate = features(rng, rows, 33, dtype=dtype), features(rng, rows, 33, dtype=dtype), features(rng, 1, 33)
    return Example([x, y, gate], [("n", 33), ("n", 33), (1, 33)], modulated_add, [naive(x, y, gate)], depth=2)


def _dense_coords(rng, rows):
    """Distinct coordinates int32 [rows, 4] in a grid of 3 x (11, 12, 13)."""
    cells = rng.permutation(3 * 11 * 12 * 13)[:rows]
    return np.stack(np.unravel_index(cells, (3, 11, 12, 13)), 1).astype("int32")


def _to_dense(rng, rows, dtype):
    from tir_kernels.spec.dense import naive_to_dense

    from ..op import to_dense

    x, coords = features(rng, rows, 33, dtype=dtype), _dense_coords(rng, rows)
    return Example(
        [x, coords],
        [("n", 33), ("n", 4)],
        lambda x, c: to_dense(x, c, 3, (11, 12, 13)),
        [naive_to_dense(x, coords, 3, (11, 12, 13))],
    )


def _from_dense(rng, rows, dtype):
    from tir_kernels.spec.dense import naive_from_dense

    from ..op import from_dense

    dense, coords = features(rng, 3, 33, 11, 12, 13, dtype=dtype), _dense_coords(rng, rows)
    return Example([dense, coords], [(3, 33, 11, 12, 13), ("n", 4)], from_dense, [naive_from_dense(dense, coords)])


COORDINATES = ("int32",)

OPS = [
    OpRow("lookup", _lookup, COORDINATES),
    OpRow("unique", _unique, COORDINATES),
    OpRow("downsample", _downsample, COORDINATES),
    OpRow("subdivide", _subdivide, COORDINATES),
    OpRow("window_partition", _window_partition, COORDINATES),
    OpRow("serialize", _serialize, COORDINATES),
    OpRow("serialize_wide", _serialize_wide, COORDINATES),
    OpRow("serialized_partition", _serialized_partition, COORDINATES),
    OpRow("submanifold_map", _submanifold_map),
    OpRow("strided_map", _strided_map),
    OpRow("transposed_map", _transposed_map),
    OpRow("kernel_map", _kernel_map),
    OpRow("borders", _borders),
    OpRow("sparse_conv", _sparse_conv),
    OpRow("grouped_conv", _grouped_conv),
    OpRow("depthwise_conv", _depthwise_conv),
    OpRow("sparse_conv_weight_gradient", _weight_gradient),
    OpRow("upsampled_conv", _upsampled_conv),
    OpRow("conv3d", _conv3d),
    OpRow("conv_transpose3d", _conv_transpose3d),
    OpRow("resize_bilinear", _resize_bilinear),
    OpRow("linear", _linear),
    OpRow("int8_linear", _int8_linear),
    OpRow("int8_sparse_conv", _int8_sparse_conv),
    OpRow("gather_rows", _gather_rows),
    OpRow("flatnonzero", _flatnonzero, COORDINATES),
    OpRow("union", _union),
    OpRow("pool", _pool),
    OpRow("segment_pool", _segment_pool),
    OpRow("first_of_segment", _first_of_segment),
    OpRow("quantize", _quantize, COORDINATES),
    OpRow("trilinear", _trilinear, COORDINATES),
    OpRow("interpolate", _interpolate),
    OpRow("batch_offsets", _batch_offsets, COORDINATES),
    OpRow("group_norm", _group_norm),
    OpRow("layer_norm", _layer_norm),
    OpRow("dense_group_norm", _dense_group_norm),
    OpRow("channel_affine", _channel_affine),
    OpRow("channel_layer_norm", _channel_layer_norm),
    OpRow("softmax", _softmax),
    OpRow("rms_norm_heads", _rms_norm_heads),
    OpRow("attention", _attention),
    OpRow("attention_of_orders", _attention_of_orders),
    OpRow("activation", _activation),
    OpRow("modulated_add", _modulated_add),
    OpRow("to_dense", _to_dense),
    OpRow("from_dense", _from_dense),
]
