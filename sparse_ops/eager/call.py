"""One eager call of an op: arrays are checked against its signature, and a function compiled for what is fixed of them runs.

What is fixed are dtypes, the dimensions that the signature calls known, which arguments there are, and the options; numbers of
rows are not. A function is compiled at the first call of its kind and kept, see `cache`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import tvm
from tvm import relax

from tir_kernels.dispatch import map_layout
from tir_kernels.layout import MapLayout
from tir_kernels.spec.geometry import Geometry

from ..devices import CPU, CUDA, HOST, eager_precision, place, using
from ..op.numbers import shown
from ..op.register import OPS, op_of
from ..op.signature import INDEX, MAP_DTYPES, RETURNS_INDEX, Kind, Signature, Table
from ..program import Function
from .arrays import Checked, Portable, Travelling, as_kind, as_tensor, describe, device_of, dtype_of
from .cache import compiled, scope
from .checksum import checksum

KERNEL = ("kx", "ky", "kz")  # a kernel's size in signatures
WORDS = {CPU: "a CPU", CUDA: "a CUDA device"}
PACKED = ("weight", "bias")  # what `Weights` holds


@dataclass(eq=False)
class KernelMap(Portable):
    """Which input row meets which output row at each tap: built once, used by every layer on the same coordinates.

    `coords_in` int32 [N, 4] and `coords_out` int32 [M, 4] (TVM tensors), the geometry, and the four arrays of the map.
    `made_for`: "cpu" or "cuda", whose kernels read these arrays, by default where they lie; calls for the other refuse the map.
    """

    coords_in: tvm.runtime.Tensor = field(repr=False)
    coords_out: tvm.runtime.Tensor = field(repr=False)
    geometry: Geometry
    arrays: tuple = field(repr=False)
    inverted: bool = False
    made_for: str = ""

    def __post_init__(self):
        self.made_for = self.made_for or (CPU if all(array.device == HOST for array in self.arrays) else CUDA)

    def check_place(self) -> None:
        """ValueError where code that runs here, see `place`, does not read the map."""
        if (here := place()[0]) != self.made_for:
            raise ValueError(
                f"kernel_map: expected one that was built for {WORDS[here]}, where this call runs, given one for "
                f"{WORDS[self.made_for]}: build another from its coords_in and coords_out"
            )

    @property
    def taps(self) -> int:
        return self.geometry.taps

    @property
    def num_pairs(self) -> int:
        """Pairs (input row, output row) over all taps: 2 * pairs * Cin * Cout is the work of a convolution."""
        with on_device_of(self.arrays):
            self.check_place()
            return map_layout().pairs(*(array.numpy() for array in self.arrays))


class MapArrays(NamedTuple):
    """The four arrays of a kernel map where nothing else is known of it: kernels find what does not go together."""

    pair_in: object
    pair_out: object
    segment: object
    rows: object

    @property
    def arrays(self) -> list[tvm.runtime.Tensor]:
        """As tensors. ValueError for other dtypes and ranks."""
        fields = zip(self, MAP_DTYPES.items(), MapLayout.RANKS, strict=True)
        return [
            array.tensor if type(array) is Checked else as_tensor(array, f"kernel_map.{name}", (dtype,), (None,) * rank)
            for array, (name, dtype), rank in fields
        ]


class Packing:
    """The packed copies of one weight and bias, by the function that takes them."""

    def __init__(self):
        self._packed: tuple[list | None, dict[Function, list]] = None, {}

    def packed(
        self, function: Function, parameters: list[tvm.runtime.Tensor], dtypes: list[str], fixed: bool
    ) -> list[tvm.runtime.Tensor]:
        """What a compiled function takes in place of the parameters, made anew when they hold something else.

        `fixed`: the first of them is not looked at again. Kernels on a device read parameters as they are: those that lie
        there are taken so, and what is written into them counts.
        """
        if all(tensor.device != HOST for tensor in parameters):
            return parameters
        looked_at = range(fixed, len(parameters))
        sums = [checksum(parameters[i], dtypes[i]) for i in looked_at]
        of, kept = self._packed
        packed = kept.get(function) if of == sums else None
        if packed is None:
            # Others may write meanwhile: what is packed and what is summed up are one copy.
            copies = [tensor.copyto(tvm.cpu()) for tensor in parameters]
            sums = [checksum(copies[i], dtypes[i]) for i in looked_at]
            packed = function.pack(copies.__getitem__)
            of, kept = self._packed
            if of != sums:
                self._packed = sums, kept = sums, {}
            packed = kept.setdefault(function, packed)
        return packed


@dataclass(eq=False)
class Weights:
    """A layer's weight and bias, packed for this machine's kernels on first use and again when they hold something else.

    Pass it in place of the `weight` array to `sparse_conv` or `linear` when a layer is called more than once, in any thread.
    Every call sums up what the arrays hold (`checksum`), so what is written into them counts, and so do other arrays in their
    place. `fixed`: a weight that nobody writes into, which is not looked at again.
    """

    weight: object
    bias: object = None
    fixed: bool = False
    packing: Packing = field(default_factory=Packing, repr=False)

    def __reduce__(self):
        """Copies and pickles hold the arrays, and pack anew."""
        return _weights, tuple(Travelling.of(value) for value in (self.weight, self.bias, self.fixed))


def _weights(*arrays) -> Weights:
    return Weights(*map(Travelling.back, arrays))


class CoordinateIndex:
    """Where the rows of a set of coordinates are found, kept by whoever keeps the coordinates, which must not change.

    The first call that needs the index builds it and leaves it here, those after it take it from here, in any thread. All of
    them must be on these coordinates: that their rows are as many is looked at, as no other index would lead to rows that there
    are not.
    """

    def __init__(self):
        self._built: dict[tuple, list[Checked]] = {}  # by method and `scope`: plan, slots, keys
        self._rows: int | None = None

    def __reduce__(self):
        """Copies and pickles build their own."""
        return CoordinateIndex, ()

    def arrays(self, method: str) -> dict[str, Checked]:
        """Arguments of a call that takes the index; none if it is not built."""
        built = self._built.get((method, scope()), ())
        return {argument.name: array for argument, array in zip(INDEX, built, strict=False)}

    def call(self, function: Function, inputs: list, method: str, built: bool):
        """What a compiled function returns that takes the index, `built`, or returns it behind its result: it stays here.

        ValueError where the coordinates, the first of the inputs, are not as many as those of the index.
        """
        rows = inputs[0].shape[0]
        if self._rows not in (None, rows):
            raise ValueError(f"index: expected that of {rows} coordinates, as given, given that of {self._rows}")
        if built:
            return function(*inputs)
        result, *arrays = function(*inputs)
        self._rows = rows
        self._built[method, scope()] = [
            Checked(array, argument.dtype[0]) for array, argument in zip(arrays, INDEX, strict=True)
        ]
        return result


def indexed(make: Callable[..., relax.Expr]) -> Callable[..., relax.Expr]:
    """The constructor of an op, to which the arrays of an index, or the option to return it, may be given too."""

    def call(**given) -> relax.Call:
        arrays = {argument.name: given.pop(argument.name) for argument in INDEX if argument.name in given}
        options = {RETURNS_INDEX: True} if given.pop(RETURNS_INDEX, False) else {}
        made = make(**given)
        return op_of(made).with_more(made, arrays, options)

    return call


def run(
    name: str,
    make: Callable[..., relax.Expr],
    kind: str,
    arrays: Mapping[str, Any],
    options: Mapping[str, Any],
    index: CoordinateIndex | None = None,
):
    """`make(**arguments, **options)`, the call of op `name`, on arrays; results are of `kind` "numpy", "torch" or "tvm".

    `arrays`: by the names of the signature; None for one that is not given, `Weights` in place of the weight, a `KernelMap` or
    `MapArrays` for a map. A map that the call returns stays four tensors. `index`: that of the coordinates whose rows the op
    looks up. Raises ValueError for the first argument or option that does not fit.
    """
    if index is None:
        function, inputs = prepared(name, make, arrays, options)
        out = function(*inputs)
    else:
        with on_device_of([array.tensor if type(array) is Checked else array for array in arrays.values()]):
            built = index.arrays(options["method"])
            wanted = {} if built else {RETURNS_INDEX: True}
            function, inputs = prepared(name, indexed(make), {**arrays, **built}, {**options, **wanted})
            out = index.call(function, inputs, options["method"], bool(built))
    return as_kind(out, kind) if isinstance(out, tvm.runtime.Tensor) else out


def prepared(
    name: str, make: Callable[..., relax.Expr], arrays: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Function, list]:
    """(the compiled function, what it takes) of a call as `run` makes it."""
    signature = OPS[name].signature
    options = {key: _option(signature, key, value) for key, value in options.items()}
    weights = arrays.get("weight")
    if "weight" in signature.by_name and signature.by_name["weight"].kind is Kind.WEIGHT:
        if not isinstance(weights, Weights):
            weights = Weights(weights, arrays.get("bias"))
        elif arrays.get("bias") is not None:
            raise ValueError(f"bias: expected None beside Weights, which hold one, given {describe(arrays['bias'])}")
        arrays = {**arrays, "weight": weights.weight, "bias": weights.bias}
    else:
        weights = None
    given = check(signature, arrays)
    identity = (
        name,
        tuple([(argument, fixed) for argument, (_, fixed) in given.items()]),
        tuple([(key, type(value).__name__, value) for key, value in options.items()]),
    )
    with on_device_of([tensor for tensors, _ in given.values() for tensor in tensors]):
        if isinstance(arrays.get("kernel_map"), KernelMap):
            arrays["kernel_map"].check_place()
        made = partial(module, signature, make, given, options, weights is not None)
        precision = eager_precision() if "products" in signature.options else "float32"
        function = compiled(identity, made, precision)["main"]
    inputs = []
    for argument, (tensors, _) in given.items():
        if weights is None or argument not in PACKED:
            inputs += tensors
    if weights is not None:
        parameters = [given[name] for name in PACKED if name in given]
        tensors, dtypes = [tensors[0] for tensors, _ in parameters], [fixed[0] for _, fixed in parameters]
        inputs += weights.packing.packed(function, tensors, dtypes, weights.fixed)
    return function, inputs


def on_device_of(arrays: Sequence) -> AbstractContextManager:
    """A scope in which code is compiled for the CUDA device that the first of the arrays lies on that lies on one; as it is
    outside if none does."""
    for array in arrays:
        if not isinstance(array, np.ndarray) and (device := device_of(array)) != HOST:
            return using(device)
    return nullcontext()


def _option(signature: Signature, name: str, value):
    """An option as what is part of a function's identity; ValueError for what can be none."""
    if value is None or isinstance(value, int | float | str | tuple):
        return value
    if getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        return value.item()
    raise ValueError(f"{signature.qualified}: {name}: expected a number or a string, given {shown(value)}")


@cache
def _plan(signature: Signature) -> list[tuple]:
    """For each argument: its name, kind, whether it is optional, dtypes or the argument that has the same, the name or size of
    each dimension, whether that is fixed, and whether `Table` decides one."""
    rows = []
    for argument in signature.with_index:
        shape = tuple(dim.name if isinstance(dim, Table) else dim for dim in argument.shape if dim is not ...)
        fixed = tuple(isinstance(dim, int) or dim in signature.known for dim in shape)
        table = next((dim for dim in argument.shape if isinstance(dim, Table)), None)
        rows.append((argument.name, argument.kind, argument.optional, argument.dtype or ("int32",), shape, fixed, table))
    return rows


def check(signature: Signature, arrays: Mapping[str, Any]) -> dict[str, tuple[list, tuple]]:
    """The arguments that are given, as tensors, each with what is fixed of it: its dtype, and its dimensions or None.

    Raises ValueError naming the first that does not fit, what is expected and what was given.
    """
    dims: dict[str, int] = {}
    of_map: dict[str, int] = {}  # dimensions that the map tells, of which there is more to say than that they differ
    kernel_map = arrays.get("kernel_map")
    if "kernel_map" in signature.by_name:
        of_map = _dims_of_map(signature, kernel_map)
    found = {}
    for name, kind, optional, dtypes, shape, fixed, table in _plan(signature):
        array = arrays.get(name)
        if array is None and optional:
            continue
        if kind is Kind.SHAPE:  # numbers that the op's constructor has checked
            found[name] = ([tvm.runtime.ShapeTuple(array)], ())
            continue
        if kind is Kind.MAP:
            found[name] = (list(array.arrays), ())
            continue
        if isinstance(dtypes, str):
            dtypes = found[dtypes][1][:1]
        if type(array) is Checked:
            tensor, dtype = array
        else:
            known = of_map | dims if optional or kind is Kind.INDEX else dims
            wanted = [known.get(dim) if isinstance(dim, str) else dim for dim in shape]
            if table is not None and arrays.get(table.index) is None:
                wanted[0] = 1
            if kind is Kind.WEIGHT:
                _check_channels(signature, name, array, shape, dims)
            tensor = as_tensor(array, name, dtypes, tuple(wanted))
            dtype = dtypes[0] if len(dtypes) == 1 else dtype_of(array)
        sizes = tensor.shape
        for dim, size in zip(shape, sizes, strict=False):  # of what is there for its rows, only these have a name
            if isinstance(dim, str):
                dims[dim] = size
                if of_map.get(dim, size) != size:
                    _refuse_map(name, kind, sizes, kernel_map, of_map[dim])
        found[name] = ([tensor], (dtype, *[n if is_fixed else None for n, is_fixed in zip_longest(sizes, fixed)]))
    return found


def _check_channels(signature: Signature, name: str, weight, shape: tuple, dims: Mapping[str, int]) -> None:
    """ValueError that names the features where they have other channels than the weight, of the right rank, takes."""
    given = getattr(weight, "shape", ())
    if len(given) == len(shape):
        for dim, size in zip(shape, given, strict=True):
            if dims.get(dim, size) != size and (features := signature.features_of(dim)):
                raise ValueError(f"{features}: expected {size} channels, as {name} {list(given)} takes, given {dims[dim]}")


def _dims_of_map(signature: Signature, kernel_map) -> dict[str, int]:
    """Rows and kernel size, by the names that the signature gives them; nothing of arrays alone."""
    if isinstance(kernel_map, MapArrays):
        return {}
    if not isinstance(kernel_map, KernelMap):
        raise ValueError(f"kernel_map: expected a KernelMap, given {describe(kernel_map)}")
    names, sides = signature.by_name["kernel_map"].shape, (kernel_map.coords_in.shape[0], kernel_map.coords_out.shape[0])
    dims = dict(zip(names, sides, strict=True))
    if len(dims) == 1 and sides[0] != sides[1]:  # only a submanifold map will do
        raise ValueError(
            f"kernel_map: expected a map from {sides[0]} input rows to {sides[0]} output rows, given one to {sides[1]}"
        )
    return dims | dict(zip(KERNEL, kernel_map.geometry.kernel, strict=True)) if KERNEL[0] in signature.known else dims


def _refuse_map(name: str, kind: Kind, sizes, kernel_map: KernelMap, expected: int) -> None:
    if kind is Kind.WEIGHT:
        kernel = list(kernel_map.geometry.kernel)
        raise ValueError(f"{name}: expected kernel size {kernel}, as the kernel map's, given {list(sizes[1:-1])}")
    raise ValueError(
        f"{name}: expected {expected} rows, as the coordinates that the kernel map was built for, given {sizes[0]}"
    )


def module(
    signature: Signature, make: Callable[..., relax.Expr], given: Mapping, options: Mapping[str, Any], packs: bool
) -> tvm.IRModule:
    """A module whose `main` takes the given arguments, whatever the sizes of what is not fixed; parameters that are packed come
    last."""
    names: dict[str, tvm.tirx.Var] = {}

    def size(dim):
        return names.setdefault(dim, tvm.tirx.Var(dim, "int64")) if isinstance(dim, str) else dim

    variables: dict[str, list[relax.Var]] = {}
    numbers: dict[str, relax.ShapeExpr] = {}
    for name, (_, fixed) in given.items():
        argument = signature.by_name[name]
        if argument.kind is Kind.MAP:
            variables[name] = [
                relax.Var(array, relax.TensorType([size(dim) for dim in dims], dtype))
                for (array, dtype), dims in zip(MAP_DTYPES.items(), map_layout().DIMS, strict=True)
            ]
            continue
        if argument.kind is Kind.SHAPE:
            numbers[name] = relax.ShapeExpr([size(dim) for dim in argument.shape])
            variables[name] = [relax.Var(name, relax.ShapeType(numbers[name].values))]
            continue
        dtype, *known = fixed
        dims = [n if n is not None else _dim_name(name, place, argument.shape) for place, n in enumerate(known)]
        variables[name] = [relax.Var(name, relax.TensorType([size(dim) for dim in dims], dtype))]
    order = [name for name in variables if not (packs and name in PACKED)]
    inputs = [variable for name in order for variable in variables[name]]
    parameters = [variables[name][0] for name in PACKED if packs and name in variables]
    arguments = {name: relax.Tuple(group) if len(group) > 1 else group[0] for name, group in variables.items()} | numbers
    result = relax.BlockBuilder().normalize(make(**arguments, **options))
    # Put together by hand: the scopes of a builder are one stack for all threads.
    variable = relax.Var("result", result.ty)
    body = relax.SeqExpr([relax.DataflowBlock([relax.VarBinding(variable, result)])], variable)
    attributes = tvm.ir.make_node("ir.DictAttrs", num_input=len(inputs), global_symbol="main")
    return tvm.IRModule({"main": relax.Function([*inputs, *parameters], body, result.ty, True, attributes)})


def _dim_name(argument: str, place: int, shape: tuple) -> str:
    """The name of a dimension that is not fixed."""
    dim = shape[place] if place < len(shape) else None
    dim = dim.name if isinstance(dim, Table) else dim
    return dim if isinstance(dim, str) else f"{argument}{place}"
