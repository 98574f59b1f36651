"""What an op takes, said once: its arguments by name and kind, and what follows from that.

From an op's `Signature` derive where arguments stand in a call, the checks of type inference, which of them `precision`
narrows, what an `Absorber` may fill in, and the checks of eager calls. A dimension of a shape is an int, or a name that stands
for the same size wherever it occurs; `Table` is the number of rows of a table that batch elements may share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import tvm
from tvm import relax

from tir_kernels.layout import MapLayout, PairsByBlock
from tir_kernels.spec.coordinate_index import PLAN_SIZE

FLOATS = ("float32", "bfloat16", "float16")  # what features may be
GIVEN = "given"  # the attribute of a call that lists the optional arguments it has
MAP_DTYPES = dict(zip(PairsByBlock.NAMES, MapLayout.DTYPES, strict=True))  # of a kernel map's arrays


class Kind(Enum):
    """What an argument is to an op."""

    FEATURES = "features"  # what flows from op to op, float32, bfloat16 or float16
    WEIGHT = "weight"  # the matrices that features are multiplied by, of the dtype of the features
    PARAMETER = "parameter"  # float32 whatever the features are: biases, weights of norms, modulation
    COORDINATES = "coordinates"  # int32 [N, 4] as (batch, x, y, z)
    INDEX = "index"  # int32 [N]: a row, or a batch element, to each row
    MASK = "mask"  # [N]: not 0 for each row that is kept
    OFFSETS = "offsets"  # int32 [B + 1]: where segments begin
    MAP = "map"  # a kernel map
    ROWS = "rows"  # a tensor of which only the number of rows counts
    SHAPE = "shape"  # dimensions
    COORDINATE_INDEX = "coordinate index"  # one of the arrays of an index of coordinates


class Epilogue(Enum):
    """How an optional argument enters behind the op's own sums."""

    ADD = "add"
    MULTIPLY = "multiply"
    MULTIPLY_BY_ONE_PLUS = "multiply by one plus"


@dataclass(frozen=True)
class Table:
    """Rows of a table: as many as batch elements, `name`, if the argument `index` tells which row takes which, else one."""

    name: str
    index: str


Dim = int | str | Table | None
Shape = tuple  # of Dim; ... at the end stands for any further dimensions


@dataclass(frozen=True)
class Argument:
    """One argument. `dtype`: those allowed, or the name of the argument whose dtype it must have.

    `epilogue`: (place, how): an optional argument that what follows the op may fill in, if none of the same or a later place is
    given.
    """

    name: str
    kind: Kind
    shape: Shape = ()
    dtype: tuple[str, ...] | str = ()
    optional: bool = False
    epilogue: tuple[int, Epilogue] | None = None


def features(name: str, *shape: Dim, dtype: tuple[str, ...] | str = FLOATS, **more) -> Argument:
    return Argument(name, Kind.FEATURES, shape, dtype, **more)


def weight(name: str, *shape: Dim, dtype: str = "x") -> Argument:
    return Argument(name, Kind.WEIGHT, shape, dtype)


def parameter(name: str, *shape: Dim, **more) -> Argument:
    return Argument(name, Kind.PARAMETER, shape, ("float32",), **more)


def coordinates(name: str = "coords", rows: Dim = "n") -> Argument:
    return Argument(name, Kind.COORDINATES, (rows, 4), ("int32",))


def index(name: str, rows: Dim, **more) -> Argument:
    return Argument(name, Kind.INDEX, (rows,), ("int32",), **more)


def offsets(name: str, size: Dim) -> Argument:
    return Argument(name, Kind.OFFSETS, (size,), ("int32",))


def kernel_map(rows_in: str = "n", rows_out: str = "m") -> Argument:
    """A map from `rows_in` to `rows_out` rows; a graph learns of them when it runs."""
    return Argument("kernel_map", Kind.MAP, (rows_in, rows_out))


def extents(name: str, *dims: str, **more) -> Argument:
    """Dimensions that a call gives as numbers: extents, shifts, a number of batch elements."""
    return Argument(name, Kind.SHAPE, dims, **more)


def rows_like(name: str, rows: str) -> Argument:
    return Argument(name, Kind.ROWS, (rows,))


# What an eager call may be given behind its arguments, see `Signature.indexed`: an index that an earlier one returned.
INDEX = (
    Argument("plan", Kind.COORDINATE_INDEX, (PLAN_SIZE,), ("int64",), optional=True),
    Argument("slots", Kind.COORDINATE_INDEX, ("index_slots",), ("int32",), optional=True),
    Argument("keys", Kind.COORDINATE_INDEX, ("index_keys",), ("int64",), optional=True),
)
INDEX_TYPES = [
    relax.TensorType((PLAN_SIZE,), "int64"),
    relax.TensorType(dtype="int32", ndim=1),
    relax.TensorType(dtype="int64", ndim=1),
]
RETURNS_INDEX = "returns_index"  # the option of a call that returns (result, plan, slots, keys)


@dataclass(frozen=True, eq=False)
class Signature:
    """The arguments of op `name`, and its options: names of attributes, None where a call has none.

    `known`: dimensions that kernels are built for, which must be numbers; of these `summed` may be 0, as sums over nothing are
    known. `result`: shape of the result, of the dtype of the first argument, for ops that need no inference of their own.
    `narrows`: whether the op may work in a narrower type within a float32 model. `indexed`: the coordinates whose index the op
    builds. Eager calls keep it: one may return it (the option RETURNS_INDEX), and one with the arguments INDEX builds none.
    Constructors know neither, as graphs build an index once by themselves (see `ShareCalls`).
    """

    name: str
    arguments: tuple[Argument, ...]
    options: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()
    result: Shape | None = None
    narrows: bool = True
    indexed: str | None = None

    def __post_init__(self):
        optional = [argument.optional for argument in self.arguments]
        if optional != sorted(optional):
            raise ValueError(f"{self.name}: expected optional arguments behind the others, given {self.names}")

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(argument.name for argument in self.arguments)

    @cached_property
    def with_index(self) -> tuple[Argument, ...]:
        """All that a call may be given: the arguments, and behind them an index."""
        return self.arguments + (INDEX if self.indexed else ())

    @property
    def with_returns_index(self) -> tuple[str, ...]:
        """All options that a call may have."""
        return self.options + ((RETURNS_INDEX,) if self.indexed else ())

    @cached_property
    def by_name(self) -> Mapping[str, Argument]:
        return {argument.name: argument for argument in self.with_index}

    @cached_property
    def nonzero(self) -> frozenset[str]:
        return frozenset(self.known) - frozenset(self.summed)

    @property
    def optional(self) -> tuple[str, ...]:
        return tuple(argument.name for argument in self.arguments if argument.optional)

    @property
    def qualified(self) -> str:
        """The name as users see it."""
        return f"sparse_ops.{self.name}"

    def present(self, call: relax.Call) -> list[str]:
        """The names of the arguments of a call, in their order."""
        given = {str(name) for name in call.attrs[GIVEN]}
        return [argument.name for argument in self.with_index if not argument.optional or argument.name in given]

    def arguments_of(self, call: relax.Call) -> dict[str, relax.Expr]:
        """The arguments of a call by name; those that it lacks are not in it."""
        return dict(zip(self.present(call), call.args, strict=True))

    def options_of(self, call: relax.Call) -> dict[str, Any]:
        """The options of a call by name, lists as tuples; None for one that it lacks."""
        found = {name: _python(call.attrs[name]) if name in call.attrs else None for name in self.options}
        return found | ({RETURNS_INDEX: True} if RETURNS_INDEX in call.attrs else {})

    def features_of(self, dim: Dim) -> str | None:
        """The features whose channels a dimension of the weight is, and which are to blame where the two differ."""
        if not isinstance(dim, str):
            return None
        found = (a.name for a in self.arguments if a.kind is Kind.FEATURES and not a.optional and dim in a.shape)
        return next(found, None)

    def narrow_arguments(self, call: relax.Call) -> set[str]:
        """The arguments that a narrower type can take the place of float32 in."""
        kinds = (Kind.FEATURES, Kind.WEIGHT) if self.narrows else ()
        return {name for name in self.present(call) if self.by_name[name].kind in kinds}


def _python(value):
    """An attribute as a Python value."""
    if isinstance(value, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return value.value
    if isinstance(value, bool | int | float):
        return value
    return str(value) if isinstance(value, str) else tuple(_python(item) for item in value)


@dataclass
class Bound:
    """A call whose arguments fit the signature: by name, with the sizes of all named dimensions, and its options."""

    signature: Signature
    call: relax.Call
    arguments: dict[str, relax.Expr]
    options: dict[str, Any]
    dims: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> relax.Expr | None:
        """An argument; None if it was not given."""
        return self.arguments.get(name)

    @property
    def dtype(self) -> str:
        """Of the first argument."""
        return str(self.call.args[0].ty.dtype)

    @property
    def type(self) -> relax.Type:
        """Of the result."""
        return self.call.ty

    def has(self, name: str) -> bool:
        return name in self.arguments

    def shape(self, dims: Shape) -> list:
        """Sizes of a shape of the signature."""
        sizes = [self.dims[dim] if isinstance(dim, str) else dim for dim in dims if dim is not ...]
        return sizes + (list(self.dims[...]) if ... in dims else [])

    def refuse(self, reason: str) -> None:
        raise ValueError(f"{self.signature.qualified}: {reason}")


Derive = Callable[[Bound], Mapping[str, Any]]


def bind(signature: Signature, call: relax.Call, derive: Derive | None = None) -> Bound:
    """`call` with its arguments checked; ValueError naming the first that does not fit, what is expected and given.

    `derive`: dimensions that follow from those of the arguments that are always there; it is asked before the optional ones are
    checked. Dimensions that cannot be compared before run time pass.
    """
    bound = Bound(signature, call, signature.arguments_of(call), signature.options_of(call))
    required = [argument for argument in signature.arguments if not argument.optional]
    for argument in required:
        _check(bound, argument)
    _check_known(bound, required)
    if derive is not None:
        bound.dims.update(derive(bound))
    for argument in signature.with_index[len(required) :]:
        if bound.has(argument.name):
            _check(bound, argument)
    return bound


def _check_known(bound: Bound, required: list[Argument]) -> None:
    """ValueError, which names the argument, for a dimension that kernels are built for and no argument tells."""
    for argument in required:
        for dim in argument.shape:
            if dim in bound.signature.known and not isinstance(bound.dims[dim], int):
                bound.refuse(
                    f"{argument.name}: expected sizes known at compile time in all dimensions but the rows, "
                    f"given {bound.dims[dim]}"
                )


def _check(bound: Bound, argument: Argument) -> None:
    ty = bound.arguments[argument.name].ty
    if argument.kind is Kind.SHAPE:
        if not isinstance(ty, relax.ShapeType) or len(ty.values or ()) != len(argument.shape):
            bound.refuse(f"{argument.name}: expected a shape of {len(argument.shape)} dimensions, given {ty}")
        bound.dims.update(zip(argument.shape, ty.values, strict=True))
        return
    if argument.kind is Kind.MAP:
        _check_map(bound, argument, ty)
        return
    if not isinstance(ty, relax.TensorType):
        bound.refuse(f"{argument.name}: expected a tensor, given {ty}")
    if argument.kind is Kind.ROWS:
        if not isinstance(ty.shape, relax.ShapeExpr) or not len(ty.shape.values):
            bound.refuse(f"{argument.name}: expected a tensor with a known number of rows, given {ty}")
        wanted = _expected(bound, argument.shape)
        words = f"{argument.name}: expected {wanted[0]} rows, given {ty}"
        _unify(bound, argument.shape, wanted, ty.shape.values[:1], lambda: bound.refuse(words))
        return
    same = argument.dtype  # as that of another argument, or those allowed
    dtypes = (str(bound.arguments[same].ty.dtype),) if isinstance(same, str) else same
    shape = argument.shape[:-1] if ... in argument.shape else argument.shape
    open_ended = len(shape) < len(argument.shape)
    wanted = _expected(bound, shape)

    def expected() -> str:
        if open_ended:
            rank = f" of at least {len(shape)} dimensions" if shape else ""
            return f"a tensor of {' or '.join(dtypes)} with a known shape{rank}"
        sizes = ", ".join("any" if size is None else str(getattr(size, "value", size)) for size in wanted)
        return f"[{sizes}] of {' or '.join(dtypes)}"

    if str(ty.dtype) == "float64" and "float32" in dtypes:
        bound.refuse(f"{argument.name}: expected {expected()}, given {ty}: cast it by relax.op.astype(..., 'float32')")
    if str(ty.dtype) not in dtypes or (ty.ndim >= 0 and not open_ended and ty.ndim != len(shape)):
        bound.refuse(f"{argument.name}: expected {expected()}, given {ty}")
    if not isinstance(ty.shape, relax.ShapeExpr):
        hint = "" if open_ended else "a known shape "
        bound.refuse(f"{argument.name}: expected {hint}{expected()}{'' if open_ended else ' (see match_cast)'}, given {ty}")
    dims = list(ty.shape.values)
    if len(dims) < len(shape):
        bound.refuse(f"{argument.name}: expected {expected()}, given {ty}")
    if argument.kind is Kind.WEIGHT:
        analyzer = tvm.sym.Analyzer()
        sizes = [getattr(size, "value", size) for size in dims]
        given = ", ".join(map(str, sizes))
        for dim, want, have in zip(shape, wanted, sizes, strict=False):
            features = bound.signature.features_of(dim)
            if features and want is not None and analyzer.can_prove(have != want):
                bound.refuse(f"{features}: expected {have} channels, as {argument.name} [{given}] takes, given {want}")
    _unify(bound, shape, wanted, dims, lambda: bound.refuse(f"{argument.name}: expected {expected()}, given {ty}"))
    for dim in shape:
        if isinstance(dim, str) and dim in bound.signature.nonzero and bound.dims[dim] == 0:
            bound.refuse(f"{argument.name}: expected at least 1 of {dim}, given {ty}")
    if open_ended:
        bound.dims[...] = dims[len(shape) :]


def _expected(bound: Bound, shape: Shape) -> list:
    """Sizes that are known already of a shape, None for the others."""

    def size(dim: Dim):
        if isinstance(dim, Table):
            return bound.dims.get(dim.name) if bound.has(dim.index) else 1
        return bound.dims.get(dim) if isinstance(dim, str) else dim

    return [size(dim) for dim in shape]


def _unify(bound: Bound, shape: Shape, wanted: list, sizes, refuse: Callable[[], None]) -> None:
    """Give names to sizes, and compare those that have one: `wanted`."""
    analyzer = tvm.sym.Analyzer()
    for dim, want, have in zip(shape, wanted, sizes, strict=False):
        if want is not None and analyzer.can_prove(have != want):
            refuse()
        name = dim.name if isinstance(dim, Table) else dim
        if not isinstance(name, str):
            continue
        if name in bound.signature.known and isinstance(have, tvm.tirx.IntImm):
            have = int(have)
        if want is None or isinstance(have, int):
            bound.dims[name] = have


def _check_map(bound: Bound, argument: Argument, ty: relax.Type) -> None:
    fields = list(ty.fields) if isinstance(ty, relax.TupleType) else []
    good = len(fields) == len(MAP_DTYPES) and all(
        isinstance(field, relax.TensorType) and str(field.dtype) == dtype and field.ndim == ndim
        for field, dtype, ndim in zip(fields, MAP_DTYPES.values(), MapLayout.RANKS, strict=True)
    )
    if not good:
        bound.refuse(f"{argument.name}: expected ({', '.join(MAP_DTYPES)}) of a map op, given {ty}")
