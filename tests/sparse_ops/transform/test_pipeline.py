"""`cpu_pipeline`: models that torch exported, compiled by nothing but `tvm.compile`, against torch itself."""

from collections import Counter

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax.frontend import detach_params

from sparse_ops import op
from sparse_ops.build import pack_params
from sparse_ops.transform import cpu_pipeline, recognize
from tests.sparse_ops.transform.graphs import arguments, arrays, calls, graph, ops
from tests.sparse_ops.transform.torch_models import AdaLNBlock, ConvNet, ViTBlock, imported
from tests.tolerance import assert_close
from tir_kernels.dispatch import host_target

TOKENS = ("batch", "tokens", None)
OURS = "sparse_ops."


def seeded(model, *shapes):
    """A model and inputs with random values."""
    torch.manual_seed(0)
    return model(), tuple(torch.randn(shape) for shape in shapes)


def compiled(mod, **options):
    executable = tvm.compile(mod, target=host_target(), relax_pipeline=cpu_pipeline(**options))
    return relax.VirtualMachine(executable, tvm.cpu())


def run(vm, *inputs, more=()):
    """The results for arrays and, behind them, tensors of TVM."""
    result = vm["main"](*(tvm.runtime.tensor(np.asarray(array)) for array in inputs), *more)
    return [out.numpy() for out in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]


def compare(model, vm, inputs, depth, dtype="float32", more=()):
    """The module's results are those of the torch model."""
    with torch.no_grad():
        expected = model(*inputs)
    for found, want in zip(run(vm, *inputs, more=more), [expected] if torch.is_tensor(expected) else expected, strict=True):
        assert found.dtype == np.float32  # whatever happens inside
        assert_close(found, want.numpy(), depth=depth, dtype=dtype)


def ours(mod):
    """How often each op of ours is called."""
    return Counter(name.removeprefix(OURS) for name in ops(mod) if name.startswith(OURS))


# Sums that follow each other in one value: a norm, q and k, the logits, the weights, two more layers; a norm, two layers.
VIT_DEPTH = 32 + 32 + 16 + 9 + 32 + 32 + 32 + 128


@pytest.fixture(scope="module")
def vit():
    return seeded(ViTBlock, (2, 9, 32))


@pytest.fixture(scope="module", params=["as torch exports it", "attention as one op"])
def vit_module(vit, request):
    return imported(*vit, dynamic=(TOKENS,), whole=request.param == "attention as one op")


def test_vit_block_is_recognized(vit_module):
    after = recognize()(vit_module)
    # q, k and v are layers of their own
    assert ours(after) == {"layer_norm": 2, "linear": 6, "attention": 1}
    assert set(ops(after)) <= {*(OURS + name for name in ours(after)), "reshape", "strided_slice", "multiples"}
    linears = [(arguments(call), str(call.attrs["activation"])) for call in calls(after, OURS + "linear")]
    assert linears == [
        *[({"bias"}, "none")] * 3,
        ({"bias", "gate", "residual"}, "none"),
        ({"bias"}, "gelu"),
        ({"bias", "gate", "residual"}, "none"),
    ]
    assert not pairs_of(after, "tokens")


def pairs_of(mod, dimension):
    """Tensors of `main` with more than one axis of a symbolic size."""
    size = mod["main"].params[0].ty.shape.values[1]
    values = [binding.value for block in mod["main"].body.blocks for binding in block.bindings]
    return [value for value in values if sum(dim.same_as(size) for dim in value.ty.shape.values) > 1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_vit_block(vit, precision):
    model, inputs = vit
    vm = compiled(imported(model, inputs, dynamic=(TOKENS,)), precision=precision)
    for shape in ((2, 9, 32), (1, 1, 32), (3, 17, 32)):
        compare(model, vm, (torch.randn(shape),), VIT_DEPTH, precision)
    (empty,) = run(vm, np.zeros((2, 0, 32), "float32"))
    assert empty.shape == (2, 0, 32)


def test_parameters_as_inputs():
    """Weights that the importer keeps as parameters are packed by the function that was lifted."""

    def mlp():
        return torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 48), torch.nn.GELU(), torch.nn.Linear(48, 16))

    model, inputs = seeded(mlp, (2, 9, 16))
    mod, params = detach_params(imported(model, inputs, dynamic=(TOKENS,), keep_params_as_input=True))
    vm = compiled(mod, lift_params=True)
    packed = pack_params(vm, "main", lambda index: params["main"][index])
    assert any(array.ndim == 4 for array in packed)
    compare(model, vm, inputs, 16 + 16 + 48, more=packed)


ADALN_DEPTH = 2 * VIT_DEPTH


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_modulated_block_with_context(precision):
    model, inputs = seeded(AdaLNBlock, (2, 5, 32), (2, 32), (2, 7, 32))
    mod = imported(model, inputs, dynamic=(TOKENS, ("batch", None), ("batch", "context", None)))
    if precision == "float32":
        after = recognize()(mod)
        assert ours(after) == {"layer_norm": 3, "linear": 6 + 3 + 1 + 4 + 2, "attention": 2}
        kept = {name for name in ops(after) if not name.startswith(OURS)}
        assert kept == {"nn.silu", "reshape", "strided_slice", "multiples", "batch_index"}
        modulated = {frozenset(arguments(call)) for call in calls(after, OURS + "layer_norm")}
        assert {"weight", "bias", "scale", "shift", "batch_index"} in modulated
        gates = [call for call in calls(after, OURS + "linear") if "gate" in arguments(call)]
        assert [arguments(call) for call in gates] == [{"bias", "residual", "gate", "batch_index"}] * 2
    vm = compiled(mod, precision=precision)
    compare(model, vm, inputs, ADALN_DEPTH, precision)
    compare(model, vm, tuple(torch.randn(shape) for shape in ((1, 11, 32), (1, 32), (1, 3, 32))), ADALN_DEPTH, precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_conv_net(precision):
    model, inputs = seeded(ConvNet, (2, 3, 4, 6, 8), (2, 3, 8, 12))
    mod = imported(model, inputs)
    after = recognize()(mod)
    assert ours(after) == {"conv3d": 4, "dense_group_norm": 1}
    assert [arguments(call) for call in calls(after, OURS + "conv3d")] == [{"bias"}, {"bias", "residual"}, {"bias"}, {"bias"}]
    assert set(ops(after)) <= {*(OURS + name for name in ours(after)), "reshape", "permute_dims"}
    compare(model, compiled(mod, precision=precision), inputs, 27 * 3 + 27 * 8 + 8 * 8, precision)


def test_a_module_in_which_nothing_is_recognized():
    def call(x, y):
        return relax.op.sum(relax.op.multiply(relax.op.exp(x), relax.op.add(x, y)), axis=[1])

    mod = graph(call, ("n", 6), ("n", 6))
    assert not ours(recognize()(mod))
    x, y = arrays((7, 6), (7, 6))
    (out,) = run(compiled(mod), x, y)
    assert_close(out, (np.exp(x.astype(float)) * (x + y)).sum(1), depth=8, dtype="float32")


def test_without_a_target():
    """Then TVM generates code for any CPU, and so do we."""
    executable = tvm.compile(graph(op.softmax, ("n", 5)), relax_pipeline=cpu_pipeline())
    x = arrays((4, 5))[0]
    (out,) = run(relax.VirtualMachine(executable, tvm.cpu()), x)
    assert_close(out, np.exp(x) / np.exp(x).sum(1, keepdims=True), depth=5, dtype="float32")


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"precision: expected one of 'float32', .*, given 'float64'"):
        cpu_pipeline(precision="float64")
    mod = graph(lambda x: relax.op.add(x, x), (3,))
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90", "host": {"kind": "llvm"}})
    with pytest.raises(ValueError, match="target: expected a CPU target of kind 'llvm', given kind 'cuda'"):
        tvm.compile(mod, target=target, relax_pipeline=cpu_pipeline())
