"""Our ops as ops of torch, `torch.ops.sparse_ops.*`, for eager calls and for torch.export.

What an op takes follows from its constructor in `sparse_ops.op` and its `Signature`: a tensor for each argument, four for a
kernel map, `SymInt`s for extents, numbers and strings for options. What it computes is the eager call. What it returns without
computing, for torch.export, is asked of the op's own type inference, so that the same words refuse what does not fit; only
sizes that the data decide are listed here, in `TORCH_OPS`.

A tensor of the arguments may be a view; results are contiguous. All ops work on a CPU and change nothing in place.
"""

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import tvm
import tvm_ffi
from tvm import relax

from tir_kernels.dispatch import PAIRS, map_layout
from tir_kernels.layout import MapLayout

from .. import op
from ..devices import CPU, CUDA, HOST, place
from ..eager.arrays import Checked, as_kind, describe, dtype_of
from ..eager.cache import scope
from ..eager.call import PACKED, WORDS, CoordinateIndex, MapArrays, Packing, Weights, indexed, prepared
from ..op.register import OPS, flat_types
from ..op.signature import MAP_DTYPES, RETURNS_INDEX, Argument, Kind, Signature
from ..program import Function, tensors_of
from .kept import KeptWithMemory
from .threads import let_idle_workers_sleep

NAMESPACE = "sparse_ops"
MAP = "map"  # a result of four tensors
AXES = ("kernel_size", "stride", "padding", "dilation", "output_padding", "factor", "window")  # options: an int or three
LIBRARY = torch.library.Library(NAMESPACE, "DEF")

Result = tuple | str  # sizes of a tensor, by the names of the signature or new ones that the data decide, or MAP


@dataclass(frozen=True)
class TorchOp:
    """An op of ours as torch knows it.

    `make`: its constructor, whose name it has. `results`: of each result its sizes, or MAP; None for a single tensor whose type
    inference tells them all.
    """

    make: Callable[..., relax.Expr]
    signature: Signature
    results: tuple[Result, ...] | None = None

    @property
    def name(self) -> str:
        return self.make.__name__

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.make).parameters)

    @cached_property
    def options(self) -> tuple[str, ...]:
        """Names of what is no argument of the signature."""
        return tuple(name for name in self.parameters if name not in self.signature.by_name)

    def is_map(self, name: str) -> bool:
        """Whether an argument is a kernel map, which torch passes as four tensors."""
        return _is_map(self.signature.by_name[name])

    @property
    def flat_results(self) -> tuple[tuple, ...]:
        """Sizes of every tensor that torch sees; `...` where type inference knows them."""
        if self.results is None:
            return ((...,),)
        return tuple(dims for result in self.results for dims in (PAIRS.DIMS if result == MAP else (result,)))

    @cached_property
    def schema(self) -> str:
        """As torch writes it."""
        taken, keywords = [], False
        for name, parameter in self.parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keywords:
                taken.append("*")
                keywords = True
            argument = self.signature.by_name.get(name)
            taken += _taken(argument) if argument else [_option(name, parameter)]
        count = len(self.flat_results)
        returned = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
        return f"{self.name}({', '.join(taken)}) -> {returned}"

    @cached_property
    def names(self) -> list[str]:
        """Of what torch passes, in its order."""
        return [
            name
            for own in self.parameters
            for name in (MAP_DTYPES if own in self.signature.by_name and _is_map(self.signature.by_name[own]) else (own,))
        ]

    @cached_property
    def defaults(self) -> tuple:
        """Of all that torch passes, which leaves out what equals the default."""
        return tuple(self.parameters[name].default if name in self.options else None for name in self.names)

    @cached_property
    def _places(self) -> tuple[list[tuple[str, int | slice]], list[tuple[str, int]]]:
        """Where arguments, in the order of the signature, and options stand in what torch passes."""
        place = {name: i for i, name in enumerate(self.names)}
        first = place.get(next(iter(MAP_DTYPES)))
        arguments = [
            (argument.name, slice(first, first + len(MAP_DTYPES)) if _is_map(argument) else place[argument.name])
            for argument in self.signature.arguments
            if argument.name in self.parameters
        ]
        return arguments, [(name, place[name]) for name in self.options]

    def gathered(self, given: tuple, named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(arguments, options) by the names of the constructor, of what torch passed; a map as a tuple of its four tensors."""
        values = (*given, *self.defaults[len(given) :])
        if named:
            values = tuple(named.get(name, value) for name, value in zip(self.names, values, strict=True))
        places, of_options = self._places
        arguments = {name: value for name, place in places if (value := values[place]) is not None}
        options = {name: _plain(values[place]) for name, place in of_options}
        if self._bounds_nothing and "shape" not in arguments:
            options["shape"] = None  # the constructor's default is another, it infers bounds
        return arguments, options

    @cached_property
    def _bounds_nothing(self) -> bool:
        """Whether torch's None for the shape of a grid means that there is none."""
        return "shape" in self.signature.optional


def _is_map(argument: Argument) -> bool:
    return argument.kind is Kind.MAP


def _taken(argument: Argument) -> list[str]:
    """An argument in torch's words."""
    if _is_map(argument):
        return [f"Tensor {name}" for name in MAP_DTYPES]
    if argument.kind is not Kind.SHAPE:
        return [f"Tensor? {argument.name}=None" if argument.optional else f"Tensor {argument.name}"]
    count = len(argument.shape)
    kind = "SymInt" if count == 1 else f"SymInt[{count}]"
    return [f"{kind}? {argument.name}=None" if argument.optional else f"{kind} {argument.name}"]


def _option(name: str, parameter: inspect.Parameter) -> str:
    """An option in torch's words."""
    default = parameter.default
    if name in AXES:
        return f"int[3] {name}" + ("" if default is parameter.empty else f"={default}")
    kinds = {bool: "bool", int: "int", float: "float", str: "str"}
    if default is parameter.empty:
        return f"{kinds[parameter.annotation]} {name}"
    if default is None:
        return f"{kinds[next(kind for kind in kinds if kind in parameter.annotation.__args__)]}? {name}=None"
    shown = f'"{default}"' if isinstance(default, str) else default
    return f"{kinds[type(default)]} {name}={shown}"


def _plain(option):
    """An option as constructors take it."""
    return tuple(option) if isinstance(option, list | tuple) else option


TORCH_OPS: dict[str, TorchOp] = {
    made.name: made
    for made in (
        TorchOp(op.submanifold_map, OPS["submanifold_map"].signature, (MAP,)),
        TorchOp(op.strided_map, OPS["strided_map"].signature, (("m", 4), MAP)),
        TorchOp(op.kernel_map, OPS["kernel_map"].signature, (MAP,)),
        TorchOp(op.inverse_map, OPS["inverse_map"].signature, (MAP,)),
        TorchOp(op.sparse_conv, OPS["sparse_conv"].signature),
        TorchOp(op.sparse_conv_weight_gradient, OPS["sparse_conv_weight_gradient"].signature),
        TorchOp(op.upsampled_conv, OPS["upsampled_conv"].signature),
        TorchOp(op.linear, OPS["linear"].signature),
        TorchOp(op.pool, OPS["pool"].signature),
        TorchOp(op.segment_pool, OPS["segment_pool"].signature),
        TorchOp(op.downsample, OPS["unique"].signature, (("m", 4), ("n",))),
        TorchOp(op.union, OPS["union"].signature, (("m", 4), ("n",), ("sets", "m"))),
        TorchOp(op.lookup, OPS["lookup"].signature),
        TorchOp(op.flatnonzero, OPS["flatnonzero"].signature, (("m",),)),
        TorchOp(op.gather_rows, OPS["gather_rows"].signature),
        TorchOp(op.subdivide, OPS["subdivide"].signature),
        TorchOp(op.to_dense, OPS["to_dense"].signature),
        TorchOp(op.from_dense, OPS["from_dense"].signature),
        TorchOp(op.batch_offsets, OPS["batch_offsets"].signature),
        TorchOp(op.window_partition, OPS["window_partition"].signature, (("n",), ("offsets",))),
        TorchOp(op.serialize, OPS["serialize"].signature),
        TorchOp(
            op.serialized_partition,
            OPS["serialized_partition"].signature,
            (("n",), ("offsets",), ("picked",), ("offsets",)),
        ),
        TorchOp(op.attention, OPS["attention"].signature),
        TorchOp(op.group_norm, OPS["group_norm"].signature),
        TorchOp(op.layer_norm, OPS["layer_norm"].signature),
        TorchOp(op.rms_norm_heads, OPS["rms_norm_heads"].signature),
        TorchOp(op.channel_affine, OPS["channel_affine"].signature),
        TorchOp(op.quantize, OPS["quantize"].signature),
        TorchOp(op.trilinear, OPS["trilinear"].signature, (("p", 8), ("p", 8))),
        TorchOp(op.interpolate, OPS["interpolate"].signature),
    )
}


# --- computed ------------------------------------------------------------------------------------------------------------


def _implementation(made: TorchOp) -> Callable:
    """The eager call. What was found of the first call of a kind serves all that differ from it by numbers of rows alone.

    `index`: that of the coordinates whose rows the op looks up, of its caller, as torch knows of none.
    """
    signature = made.signature
    with_index = indexed(made.make)
    kinds = {argument.name: argument.kind for argument in signature.arguments}
    holds_weight = kinds.get("weight") is Kind.WEIGHT
    returns_map = made.results is not None and MAP in made.results
    known: dict[tuple, Function] = {}
    dims = {argument.name: _dims(signature, argument) for argument in signature.arguments}

    def call(*given, index: CoordinateIndex | None = None, **named):
        let_idle_workers_sleep()
        arguments, options = made.gathered(given, named)
        arrays: dict[str, Any] = {}
        built = {} if index is None else index.arrays(options["method"])
        if index is not None and not built:
            options[RETURNS_INDEX] = True
        kind_of_call, rows, alike, on_device = [scope(), *options.values(), *built], {}, True, False
        for name, value in arguments.items():
            kind = kinds[name]
            if kind is Kind.MAP:
                arrays[name] = _map_of(value, on_device)  # behind the features
                continue
            if kind is Kind.SHAPE:
                arrays[name] = tuple(value) if isinstance(value, list | tuple) else (value,)
                continue
            shape = value.shape
            if kind is Kind.ROWS:  # of any dtype and rank
                arrays[name], shape = Checked(tvm.runtime.empty((len(value), 0), "int32"), "int32"), shape[:1]
            else:
                arrays[name] = _compact(value)
            on_device = on_device or value.is_cuda
            kind_of_call += (name, value.dtype, len(shape))
            for size, dim in zip(shape, dims[name], strict=False):
                if dim is None:
                    kind_of_call.append(size)
                elif rows.setdefault(dim, size) != size:
                    alike = False
            alike = alike and 0 not in shape and value.is_cpu  # empty tensors have strides of their own
        arrays |= built
        packing = _packing_of(arrays["weight"]) if holds_weight else None
        key = tuple(kind_of_call)
        function = known.get(key) if alike else None
        if function is None:
            if holds_weight:
                arrays |= {"weight": Weights(arrays["weight"], arrays.get("bias"), packing=packing), "bias": None}
            make = made.make if index is None else with_index
            function, inputs = prepared(signature.name, make, arrays, options)
            if alike:
                known[key] = function
        else:
            inputs = _inputs(arrays, holds_weight)
            if holds_weight:
                parameters = [name for name in PACKED if name in arrays]
                tensors = [tvm_ffi.from_dlpack(arrays[name]) for name in parameters]
                inputs += packing.packed(function, tensors, [dtype_of(arrays[name]) for name in parameters], fixed=False)
        out = function(*inputs) if index is None else index.call(function, inputs, options["method"], bool(built))
        kind = "torch_cuda" if on_device else "torch"
        if isinstance(out, tvm.runtime.Tensor):
            return as_kind(out, kind)
        made_here = tensors_of(out)
        tensors = [as_kind(tensor, kind) for tensor in made_here]
        if returns_map:
            for tensor, same in zip(tensors[-len(MAP_DTYPES) :], made_here[-len(MAP_DTYPES) :], strict=True):
                _remember(tensor, same)
        return tuple(tensors)

    return call


def _dims(signature: Signature, argument: Argument) -> tuple:
    """Of each dimension of an argument the name, if calls of one kind may differ in it, else None."""
    dims = [dim for dim in argument.shape if dim is not ...]
    return tuple(dim if isinstance(dim, str) and dim not in signature.known else None for dim in dims)


def _inputs(arrays: Mapping[str, Any], packs: bool) -> list:
    """Arguments that are known to fit, as a compiled function takes them; without those that it takes packed."""
    inputs = []
    for name, array in arrays.items():
        if isinstance(array, MapArrays):
            inputs += array.arrays
        elif type(array) is tuple:
            inputs.append(tvm.runtime.ShapeTuple(array))
        elif type(array) is Checked:
            inputs.append(array.tensor)
        elif not (packs and name in PACKED):
            inputs.append(tvm_ffi.from_dlpack(array))
    return inputs


# By the identity of a map's tensors: what they were made of, and for which kind of device.
_fields: dict[int, tuple[weakref.ref, int | None, Checked, str]] = {}


def _remember(tensor: torch.Tensor, same: tvm.runtime.Tensor) -> None:
    """Every layer on a map takes its four tensors, and crossing from torch to TVM would cost more than all else of a call."""
    key = id(tensor)
    _fields[key] = (
        weakref.ref(tensor, lambda _: _fields.pop(key, None)),
        _version(tensor),
        Checked(same, str(same.dtype)),
        CPU if same.device == HOST else CUDA,
    )


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _map_of(given: tuple[torch.Tensor, ...], on_device: bool) -> MapArrays:
    """A map as its ops made it, or from elsewhere: then it is looked at first, as kernels trust it.

    `on_device`: whether an argument lies on one, where the call then runs. ValueError for a map of another kind of device.
    """
    fields = []
    for tensor in given:
        found = _fields.get(id(tensor))
        if found is None or found[0]() is not tensor or found[1] != _version(tensor):
            return MapArrays(*map(_compact, _looked_at(given)))
        if (here := CUDA if on_device else place()[0]) != found[3]:
            raise ValueError(
                f"kernel_map: expected one that was built for {WORDS[here]}, where this call runs, given one for "
                f"{WORDS[found[3]]}: build another there"
            )
        fields.append(found[2])
    return MapArrays(*fields)


def _looked_at(given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The tensors of a map. ValueError if they are none: of other dtypes and ranks, or with rows that there are not."""
    for tensor, (name, dtype), rank in zip(given, MAP_DTYPES.items(), MapLayout.RANKS, strict=True):
        if dtype_of(tensor) != dtype or tensor.ndim != rank:
            raise ValueError(f"kernel_map.{name}: expected {dtype} of {rank} dimensions, given {describe(tensor)}")
    if problem := map_layout().problem(*(tensor.detach().numpy() for tensor in given)):
        raise ValueError(f"kernel_map.{problem}, as the ops that make maps return it")
    return given


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.detach() if tensor.requires_grad else tensor).contiguous()


_packings = KeptWithMemory()


def _packing_of(weight: torch.Tensor) -> Packing:
    """Where the packed copies of a weight are kept, as long as its memory is there. What it holds is compared at each call."""
    return _packings.of(weight, (weight.storage_offset(), tuple(weight.shape), weight.dtype), Packing)


# --- not computed, for torch.export ----------------------------------------------------------------------------------------


def _fake(made: TorchOp) -> Callable:
    """What an op returns for tensors that have sizes and no numbers."""

    def call(*given, **named):
        arguments, options = made.gathered(given, named)
        sizes: dict[str, Any] = {}  # by the name of their variable
        taken = {name: _symbolic(made.signature.by_name[name], value, sizes) for name, value in arguments.items()}
        call = relax.BlockBuilder().normalize(made.make(**taken, **options))
        found: dict[str, Any] = {}
        device = next(value for value in given if isinstance(value, torch.Tensor)).device
        tensors = []
        for ty, dims in zip(flat_types(call.ty), made.flat_results, strict=True):
            if ty.shape is not None:
                shape = [_evaluated(size, sizes) for size in ty.shape.values]
            else:
                shape = [dim if isinstance(dim, int) else found.setdefault(dim, None) for dim in dims]
                for place, dim in enumerate(dims):
                    if shape[place] is None:
                        # At least 2, or torch asks whether it is 0 or 1; deploy drops what it assumes of that.
                        shape[place] = found[dim] = torch.library.get_ctx().new_dynamic_size(min=2)
            found |= {
                dim: size for dim, size in zip(dims, shape, strict=False) if isinstance(dim, str) and found.get(dim) is None
            }
            tensors.append(torch.empty(shape, dtype=getattr(torch, str(ty.dtype)), device=device))
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    return call


def _symbolic(argument: Argument, value, sizes: dict[str, Any]):
    """An argument as type inference takes it; `sizes` learns what its variables stand for."""

    def size(given):
        if isinstance(given, int):
            return given
        name = f"s{given}"
        sizes.setdefault(name, (tvm.tirx.Var(name, "int64"), given))
        return sizes[name][0]

    if argument.kind is Kind.SHAPE:
        return [size(n) for n in value] if isinstance(value, list | tuple) else size(value)
    tensors = value if _is_map(argument) else [value]
    variables = [
        relax.Var(argument.name, relax.TensorType([size(n) for n in tensor.shape], str(tensor.dtype).removeprefix("torch.")))
        for tensor in tensors
    ]
    return relax.Tuple(variables) if _is_map(argument) else variables[0]


def _evaluated(expr, sizes: dict[str, Any]):
    """A size of TVM's as one of torch's."""
    if isinstance(expr, int | tvm.tirx.IntImm):
        return int(expr)
    if isinstance(expr, tvm.tirx.Var):
        return sizes[expr.name][1]
    a, b = _evaluated(expr.a, sizes), _evaluated(expr.b, sizes)
    for kind, combine in (
        (tvm.tirx.Add, lambda: a + b),
        (tvm.tirx.Sub, lambda: a - b),
        (tvm.tirx.Mul, lambda: a * b),
        (tvm.tirx.FloorDiv, lambda: a // b),
    ):
        if isinstance(expr, kind):
            return combine()
    raise ValueError(f"size: expected sums, products and quotients, given {expr}")


# --- registered ------------------------------------------------------------------------------------------------------------


def _past_the_dispatcher(op: torch._ops.OpOverload, signature: Signature, implementation: Callable) -> Callable:
    """The op of torch; where nobody could tell the difference, its implementation at once.

    With no gradients to record torch's dispatcher does nothing but call it, and takes a third of the time that a call takes
    beside its kernel. Export, modes, function transforms and the profiler get to see the op. Ops on coordinates alone have no
    gradients, and may be called with their `index`: where torch sees the op it builds its own, as an exported graph does once.
    """
    differentiable = any(argument.kind in (Kind.FEATURES, Kind.WEIGHT, Kind.PARAMETER) for argument in signature.arguments)

    def call(*given, index: CoordinateIndex | None = None, **named):
        recorded = differentiable and torch.is_grad_enabled()
        watched = recorded or torch.compiler.is_compiling() or torch.autograd._profiler_enabled()
        if watched or torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
            return op(*given, **named)
        if type(given[0]) is not torch.Tensor:
            return op(*given, **named)
        return implementation(*given, **named) if index is None else implementation(*given, index=index, **named)

    return call


CALLS: dict[str, Callable] = {}  # by name, for layers
for _made in TORCH_OPS.values():
    _call = _implementation(_made)
    LIBRARY.define(_made.schema)
    LIBRARY.impl(_made.name, _call, "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{_made.name}", _fake(_made), lib=LIBRARY)
    _op = getattr(getattr(torch.ops, NAMESPACE), _made.name).default
    CALLS[_made.name] = _past_the_dispatcher(_op, _made.signature, _call)

from . import gradients  # noqa: E402, F401  registered behind the ops, whoever imports them
