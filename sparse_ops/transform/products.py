"""Integer products in the layers of a model that gain by them and can bear them."""

from collections.abc import Callable

import tvm
from tvm import relax

from tir_kernels.dispatch import implementation_for
from tir_kernels.spec import Spec
from tir_kernels.spec.linear import PRODUCTS, Linear

from ..op.linear import spec_of as linear_spec
from ..op.register import Op, check_choice, op_of
from ..op.signature import Kind, bind
from .rewrite import op_is, readers_of

# Input and output channels. Rounding a row costs as much as products with some hundred output channels save: with 256 and 256
# a layer takes half of the time of float32, and about that of bfloat16 where the CPU has its dot product.
LEAST = (256, 256)

INTEGERS = PRODUCTS[1:]  # "int8", "int7"

# Ops that have integer products: what kernel a call is for.
SPECS: dict[str, Callable[..., Spec]] = {"linear": linear_spec}
# The attribute of a function in which only what linear layers multiply is narrow, see `precision.to_precision`.
PRODUCTS_ONLY = "products_only"

SUMS = ("matmul", "einsum")  # what is no op of ours, and yet no function of single elements


def IntegerProducts(products: str) -> tvm.transform.Pass:
    """Linear layers get the option `products`, "int8" or "int7", if all of this holds:

    - they have at least `LEAST` input and output channels;
    - they are no first layer: an op of ours or a matrix product made what they read, if only in part;
    - they are no last layer: between their result and those of the function lies such an op, or they add to a residual;
    - they do not modulate: some result depends on them otherwise than by the scales, shifts, gates, biases and weights of ops;
    - the function does not have the attribute `PRODUCTS_ONLY`;
    - the target has a kernel for it. Where integers bring nothing it has none, and the layer stays as it is.

    What tells the layers of a transformer block from the embeddings of inputs and times, from adaptive norms and from heads is
    thus where they stand, not how they are called. Run it behind all passes that recognize or narrow.

    Raises ValueError for other products.
    """
    check_choice("transform.IntegerProducts", "products", products, INTEGERS)

    @tvm.transform.module_pass(opt_level=0, name="IntegerProducts")
    def transform(mod: tvm.IRModule, context) -> tvm.IRModule:
        for variable, function in mod.functions_items():
            attrs = function.attrs or {}
            if isinstance(function, relax.Function) and "Primitive" not in attrs and not attrs.get(PRODUCTS_ONLY):
                mod.update_func(variable, _with_products(function, products))
        return mod

    return transform


def has_integers(products: str, target: tvm.target.Target | None = None) -> bool:
    """Whether large linear layers have integer products on `target`, by default the current one. ValueError for other
    products than "int8" and "int7"."""
    check_choice("transform.has_integers", "products", products, INTEGERS)
    return _has_own(Linear(1024, 1024, products=products), Linear(1024, 1024), target)


def _with_products(function: relax.Function, products: str) -> relax.Function:
    graph, builder = _Graph(function), relax.BlockBuilder()

    def rewritten(binding: relax.Binding) -> relax.Binding:
        call = binding.value if isinstance(binding, relax.VarBinding) else None
        op = op_of(call) if isinstance(call, relax.Call) else None
        if op is None or op.signature.name not in SPECS or not graph.is_inside(binding.var, op, call):
            return binding
        bound = bind(op.signature, call)
        if any(bound.dims[dim] < least for dim, least in zip(("cin", "cout"), LEAST, strict=True)):
            return binding
        chosen = builder.normalize(op.with_more(call, {}, {"products": products}))
        return relax.VarBinding(binding.var, chosen) if _differ(op, call, chosen) else binding

    blocks = [type(block)([rewritten(binding) for binding in block.bindings]) for block in function.body.blocks]
    body = relax.SeqExpr(blocks, function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)


def _differ(op: Op, *calls: relax.Call) -> bool:
    """Whether two calls of an op have different kernels on the current target."""
    spec_of = SPECS[op.signature.name]
    one, other = (spec_of(bind(op.signature, call)) for call in calls)
    return _has_own(other, one)


def _has_own(chosen: Spec, plain: Spec, target: tvm.target.Target | None = None) -> bool:
    """Whether the target has a kernel for `chosen` that is not that of `plain`. ValueError if it has none for `plain`."""
    other = implementation_for(plain, target)
    try:
        return implementation_for(chosen, target) is not other
    except ValueError:  # no kernel of this kind of target has such products
        return False


class _Graph:
    """Where the values of a function come from, and where they go."""

    def __init__(self, function: relax.Function):
        self.bound = {binding.var: binding.value for block in function.body.blocks for binding in block.bindings}
        self.readers = readers_of(function)
        self.results = self._results(function)

    def is_inside(self, var: relax.Var, op: Op, call: relax.Call) -> bool:
        """Whether the layer whose result is `var` is neither the first nor the last one, and does not modulate."""
        arguments = op.signature.arguments_of(call)
        return (
            var in self.results and self._is_made(arguments["x"]) and ("residual" in arguments or not self._makes_result(var))
        )

    def _results(self, function: relax.Function) -> set[relax.Var]:
        """What some result depends on, otherwise than as a parameter of an op."""
        found: set[relax.Var] = set()
        todo = list(relax.analysis.free_vars(function.body.body))
        while todo:
            var = todo.pop()
            if var in found:
                continue
            found.add(var)
            value = self.bound.get(var)
            if value is None:
                continue
            op = op_of(value) if isinstance(value, relax.Call) else None
            if op is None:
                todo.extend(relax.analysis.free_vars(value))
                continue
            for name, argument in op.signature.arguments_of(value).items():
                if op.signature.by_name[name].kind not in (Kind.PARAMETER, Kind.WEIGHT):
                    todo.extend(relax.analysis.free_vars(argument))
        return found

    def _is_made(self, expr: relax.Expr) -> bool:
        """Whether more than functions of single elements lies between a value and some of what it is made of."""
        todo, seen = list(relax.analysis.free_vars(expr)), set()
        while todo:
            var = todo.pop()
            value = self.bound.get(var)
            if var in seen or value is None:
                continue
            if _mixes(value):
                return True
            seen.add(var)
            todo.extend(relax.analysis.free_vars(value))
        return False

    def _makes_result(self, var: relax.Var) -> bool:
        """Whether nothing but functions of single elements lies between a value and a result of the function."""
        todo, seen = [var], set()
        while todo:
            var = todo.pop()
            if var in seen:
                continue
            seen.add(var)
            for reader in self.readers.get(var, ()):
                if reader is None:
                    return True
                if not _mixes(self.bound[reader]):
                    todo.append(reader)
        return False


def _mixes(value: relax.Expr) -> bool:
    """Whether a value is made by an op of ours, or by sums of products."""
    return isinstance(value, relax.Call) and (op_of(value) is not None or op_is(value, *SUMS))
