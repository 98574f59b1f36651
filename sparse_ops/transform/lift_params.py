"""What depends on parameters alone, such as the packing of weights, moves to a function of its own."""

from collections.abc import Callable

import tvm
import tvm.relax.op.vm  # LazyTransformParams needs it and does not import it
from tvm import relax

TRANSFORM_PARAMS = "_transform_params"
READ_PARAMETER = "sparse_ops.read_parameter"
STORE_PARAMETER = "sparse_ops.store_parameter"


@tvm.transform.module_pass(opt_level=0, name="LiftParams")
class LiftParams:
    """Module pass: a function with the attribute `num_input` takes transformed parameters behind its inputs.

    Beside a function `name` comes `name_transform_params(read, store)`, which makes them from the given ones, one at a time:
    `read(i)` returns parameter i, `store(i, value)` takes transformed parameter i. Run LegalizeOps before.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        mod = relax.transform.LiftTransformParams()(mod)
        kernels = {gv: f for gv, f in mod.functions_items() if not isinstance(f, relax.Function)}
        for gv, function in mod.functions_items():
            if gv.name_hint.endswith(TRANSFORM_PARAMS):
                source, sink = (relax.Var(name, relax.AnyType()) for name in ("source", "sink"))
                passes = [
                    relax.transform.RewriteDataflowReshape(),
                    relax.transform.ToNonDataflow(),
                    relax.transform.RemovePurityChecking(),
                    relax.transform.LazyTransformParams(READ_PARAMETER, STORE_PARAMETER, [source], [sink]),
                ]
                alone = tvm.transform.Sequential(passes)(tvm.IRModule(kernels | {gv: function}))
                mod.update_func(gv, alone[gv.name_hint])
        return mod


@tvm.register_global_func(READ_PARAMETER)
def _read_parameter(source: Callable, index: int):
    return source(index)


@tvm.register_global_func(STORE_PARAMETER)
def _store_parameter(sink: Callable, index: int, value: tvm.runtime.Tensor):
    sink(index, value)
