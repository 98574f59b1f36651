"""What kernels keep in device memory between their launches is planned like the tensors of a function.

A kernel takes such memory from a pool of the thread that calls it, which gives it up for larger pieces and at the end of the
thread. A CUDA graph holds addresses, so that the memory at them must stay. Here kernels are handed it as results that nobody
reads; it then comes from where all tensors of a call come from.
"""

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.tirx.buffer import BufferType

WITHOUT_SCRATCH = "kernels_without_scratch"  # a function of modules in which no kernel takes memory by itself

CALL_TIR = tvm.ir.Op.get("relax.call_tir")
LAUNCH = "thread_extent"


@tvm.transform.module_pass(opt_level=0, name="ScratchAsResults")
class ScratchAsResults:
    """Module pass: run it behind ToNonDataflow and RemovePurityChecking and before CallTIRRewrite.

    Kernels whose sizes nothing at their call tells stay as they are; if there are none, the module gets `WITHOUT_SCRATCH`.
    """

    def transform_module(self, mod: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        handing = _Handing(mod)
        functions = [(gv, func) for gv, func in mod.functions_items() if isinstance(func, relax.Function)]
        changed = [(gv, handing.visit_expr(func)) for gv, func in functions]
        mod = handing.builder_.get()
        for gv, func in changed:
            mod.update_func(gv, func)
        called = {call.args[0] for call in _calls(mod)}
        for gv in handing.kernels.keys() - called:
            del mod[gv]
        if not any(scratch_of(func) for _, func in mod.functions_items() if isinstance(func, tirx.PrimFunc)):
            nothing = relax.Function([], relax.Tuple([]), relax.TupleType([]), is_pure=False)
            mod[WITHOUT_SCRATCH] = nothing.with_attr("global_symbol", WITHOUT_SCRATCH)
        return mod


def scratch_of(kernel: tirx.PrimFunc) -> dict[tirx.Buffer, list[tirx.Expr]]:
    """The buffers in device memory that a kernel allocates outside of its launches, and their shapes without variables that
    the kernel binds."""
    found: dict[tirx.Buffer, list[tirx.Expr]] = {}
    bound: dict[tirx.Var, tirx.Expr] = {}

    def bind(node, visitor):
        bound[node.var] = _substitute(node.value, bound)

    def attribute(node, visitor):
        if node.attr_key != LAUNCH:
            visitor.default_visit(node)

    def allocate(node, visitor):
        for buffer in [node.buffer] if isinstance(node, tirx.AllocBuffer) else node.alloc_buffers:
            if buffer.scope() == "global":
                found[buffer] = [_substitute(dim, bound) for dim in buffer.shape]
        visitor.default_visit(node)

    visits = [(tirx.Bind, bind), (tirx.AttrStmt, attribute), ((tirx.AllocBuffer, tvm.s_tir.SBlock), allocate)]
    tvm_ffi.structural_visit(kernel.body, visits)
    return found


def _handed(kernel: tirx.PrimFunc, scratch: dict[tirx.Buffer, list[tirx.Expr]]) -> tirx.PrimFunc:
    """`kernel` with its scratch as parameters behind its results, which are its last buffers."""
    given = {old: tirx.decl_buffer(shape, old.dtype, old.name) for old, shape in scratch.items()}

    def dropped(node):
        return tirx.Evaluate(0) if node.buffer in scratch else node

    def without(block):
        kept = [buffer for buffer in block.alloc_buffers if buffer not in scratch]
        return block if len(kept) == len(block.alloc_buffers) else tvm.s_tir.SBlock(*_fields(block), alloc_buffers=kept)

    body = tvm_ffi.structural_map(kernel.body, ((tirx.AllocBuffer, dropped), (tvm.s_tir.SBlock, without)))
    body = tvm_ffi.structural_map(body, (tirx.Var, lambda var: given.get(var, var)))
    last = 1 + max(i for i, param in enumerate(kernel.params) if _is_buffer(param))
    params = [*kernel.params[:last], *given.values(), *kernel.params[last:]]
    return tirx.PrimFunc(params, body, kernel.ret_type, kernel.attrs)


def _fields(block: tvm.s_tir.SBlock) -> tuple:
    return block.iter_vars, block.reads, block.writes, block.name_hint, block.body, block.init


def _is_buffer(param: tirx.Var) -> bool:
    return isinstance(param.ty, BufferType)


@mutator
class _Handing(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.mod = mod
        self.kernels: dict[tvm.ir.GlobalVar, tvm.ir.GlobalVar] = {}  # those that have scratch: what is called instead

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if call.op != CALL_TIR or not isinstance(call.args[0], tvm.ir.GlobalVar):
            return call
        kernel = self.mod[call.args[0]]
        scratch = scratch_of(kernel)
        results = [call.ty_args[0]] if isinstance(call.ty_args[0], relax.TensorType) else list(call.ty_args[0].fields)
        sizes = _sizes(kernel, [*(arg.ty for arg in call.args[1]), *results], call.args[2:])
        simplify, known = tvm.sym.Analyzer().simplify, sizes.keys()
        if not scratch or any(var not in known for shape in scratch.values() for dim in shape for var in _variables(dim)):
            return call
        shapes = [[simplify(_substitute(dim, sizes)) for dim in shape] for shape in scratch.values()]
        if any(not isinstance(dim, tirx.IntImm) and not _variables(dim) for shape in shapes for dim in shape):
            return call  # the virtual machine takes it for a number that is known
        if call.args[0] not in self.kernels:
            made = self.builder_.add_func(_handed(kernel, scratch), call.args[0].name_hint)
            self.kernels[call.args[0]] = made
        types = [relax.TensorType(shape, buffer.dtype) for shape, buffer in zip(shapes, scratch, strict=True)]
        given = relax.Call(
            CALL_TIR, [self.kernels[call.args[0]], *call.args[1:]], call.attrs, [relax.TupleType([*results, *types])]
        )
        given = self.builder_.emit(given)
        fields = [relax.TupleGetItem(given, i) for i in range(len(results))]
        return fields[0] if isinstance(call.ty_args[0], relax.TensorType) else relax.Tuple(fields)


def _sizes(kernel: tirx.PrimFunc, types: list[relax.Type], numbers: list[relax.Expr]) -> dict[tirx.Var, tirx.Expr]:
    """What the variables of a kernel's shapes are at a call, as far as it tells."""
    sizes = {}
    for param, ty in zip(kernel.params, types, strict=False):
        if _is_buffer(param) and isinstance(ty.shape, relax.ShapeExpr):
            for dim, size in zip(param.shape, ty.shape.values, strict=True):
                if isinstance(dim, tirx.Var):
                    sizes[dim] = size
    for param, number in zip(kernel.params[len(types) :], numbers[0].values if numbers else [], strict=False):
        sizes[param] = number
    return sizes


def _calls(mod: tvm.IRModule) -> list[relax.Call]:
    found = []

    def note(expr) -> None:
        if isinstance(expr, relax.Call) and expr.op == CALL_TIR:
            found.append(expr)

    for _, function in mod.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, note)
    return found


def _substitute(expr: tirx.Expr, values: dict) -> tirx.Expr:
    return tvm_ffi.structural_map(expr, (tirx.Var, lambda var: values.get(var, var)))


def _variables(expr: tirx.Expr) -> list[tirx.Var]:
    found = []
    tvm_ffi.structural_walk(expr, (tirx.Var, found.append))
    return found
