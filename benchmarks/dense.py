"""Dense layers against torch on the same machine: linear layers, convolutions and an imported transformer block.

    python -m benchmarks.dense [--quick] [--json FILE] [--only SUBSTRING]

    linear_<rows>x<in>x<out>   one linear layer with a bias, the weight packed ahead
    conv3d_<in>x<out>_<side>   one 3^3 convolution of a dense grid; patch_embed: 518^2 pixels to 37^2 tokens
    conv2d_<in>x<out>_<side>   one 3^2 convolution of an image, as the head of a depth model has them
    vit_l_block                a block of a ViT-L on 1374 tokens, exported by torch and compiled by `cpu_pipeline`

bfloat16 and float16 are storage, sums are float32, on both sides; the peer is torch in the same type. In float16 there are
linear layers only.
"""

import functools
import sys
from collections.abc import Callable

import ml_dtypes
import numpy as np
import torch
import tvm
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from sparse_ops import op
from sparse_ops.build import Program, build
from sparse_ops.transform import cpu_pipeline
from tests.tolerance import compare
from tir_kernels.dispatch import host_target
from tir_kernels.spec import linear

from .harness import Benchmark, Case, Peer, arrays, parse_options
from .peers import THREADS, use_threads
from .vit import Block

LINEAR = [(4000, 1024, 1024), (4000, 1024, 3072), (4000, 1024, 4096), (1374, 1024, 4096), (1374, 4096, 1024), (1, 1024, 4096)]
CONV = [(8, 512, 16), (512, 512, 16), (512, 1024, 16), (128, 128, 32), (128, 256, 32), (32, 32, 64)]
IMAGES = [(256, 256, 37), (256, 256, 148), (128, 64, 296), (32, 32, 518)]
TOKENS = 1374
SAMPLED = 64  # rows that are compared with a float64 sum


def normal(seed: int, *shape: int, dtype: str) -> np.ndarray:
    """Normal values, rounded to `dtype`."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def as_torch(array: np.ndarray) -> torch.Tensor:
    """The same values in torch; numpy's bfloat16 has no way there but its bits."""
    if array.dtype != ml_dtypes.bfloat16:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def as_numpy(result: object) -> np.ndarray:
    """float32 of the one output of a call."""
    if isinstance(result, torch.Tensor):
        return result.detach().float().numpy()
    (out,) = arrays(result)
    return out.astype(np.float32)


def torch_peer(call: Callable[[], torch.Tensor], check) -> dict[str, Peer]:
    """A call of torch, on all cores and without gradients."""
    return {"torch": Peer(torch.no_grad()(call), check, use_threads(THREADS), memory=True)}


def compiled(call: Callable[..., relax.Expr], *values: np.ndarray, constants: int) -> Callable[[], object]:
    """A call of an op on arrays, the last `constants` of which are known when compiling, as weights are."""
    given = [tvm.runtime.tensor(value) for value in values]
    inputs = len(values) - constants
    variables = [relax.Var(f"x{i}", relax.TensorType(value.shape, str(value.dtype))) for i, value in enumerate(values[:inputs])]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(call(*variables, *(relax.const(value) for value in given[inputs:])))
        builder.emit_func_output(result)
    main = build(builder.get())["main"]
    return lambda: main(*given[:inputs])


def linear_case(rows: int, cin: int, cout: int, dtype: str) -> Case:
    """One linear layer."""
    x, weight = normal(0, rows, cin, dtype=dtype), normal(1, cout, cin, dtype=dtype)
    bias = normal(2, cout, dtype="float32")
    sample = np.random.default_rng(3).permutation(rows)[:SAMPLED]
    expected = linear.naive(x[sample], weight, bias)

    def check(result):
        # a narrower result is rounded once after a float32 sum, so that only in float32 the depth counts
        yield compare(as_numpy(result)[sample], expected, cin if dtype == "float32" else 1, dtype=x.dtype, name="out")

    a, w, b = as_torch(x), as_torch(weight), as_torch(bias).to(as_torch(x).dtype)
    ours = compiled(op.linear, x, weight, bias, constants=2)
    return Case(
        dtype,
        ours,
        check,
        torch_peer(lambda: torch.nn.functional.linear(a, w, b), check if dtype == "float32" else None),
        flops=2.0 * rows * cin * cout,
    )


def conv_case(cin: int, cout: int, side: tuple[int, int, int], kernel: tuple[int, int, int], stride: int, dtype: str) -> Case:
    """One convolution of a dense grid; with a stride of its kernel it is a patch embedding."""
    x, weight = normal(0, 1, cin, *side, dtype=dtype), normal(1, cout, cin, *kernel, dtype=dtype)
    steps, padding = [min(stride, size) for size in kernel], [size // 2 if stride == 1 else 0 for size in kernel]
    a, w = as_torch(x), as_torch(weight)
    channels = np.random.default_rng(3).permutation(cout)[:8]
    with torch.no_grad():
        exact = torch.nn.functional.conv3d(a.double(), w[torch.from_numpy(channels)].double(), None, steps, padding).numpy()
    depth = cin * int(np.prod(kernel))

    def check(result):
        yield compare(as_numpy(result)[:, channels], exact, depth if dtype == "float32" else 1, dtype=x.dtype, name="out")

    def peer():
        if side[0] > 1:
            return torch.nn.functional.conv3d(a, w, None, steps, padding)
        return torch.nn.functional.conv2d(a[:, :, 0], w[:, :, 0], None, steps[1:], padding[1:])[:, :, None]

    return Case(
        dtype,
        compiled(lambda x, w: op.conv3d(x, w, stride=steps, padding=padding), x, weight, constants=1),
        check,
        torch_peer(peer, None if dtype == "bfloat16" else check),
        flops=2.0 * depth * cout * exact[0, 0].size,
    )


def block_case(dtype: str) -> Case:
    """A transformer block as torch exports it, by the passes alone."""
    torch.manual_seed(0)
    block = Block(1024, 16, 4096).eval()
    x = torch.from_numpy(normal(0, 1, TOKENS, 1024, dtype="float32"))
    with torch.no_grad():
        expected = block.double()(x.double()).numpy()
        block = block.float()
        program = torch.export.export(block, (x,))
    mod = from_exported_program(program, unwrap_unit_return_tuple=True)
    executable = tvm.compile(mod, target=host_target(), relax_pipeline=cpu_pipeline(precision=dtype))
    main, given = Program(executable)["main"], tvm.runtime.tensor(x.numpy())
    theirs = block.to(torch.bfloat16) if dtype == "bfloat16" else block
    there = x.to(torch.bfloat16) if dtype == "bfloat16" else x

    def check(result):
        # the longest chain: norm, 1024, softmax over the tokens, 1024, norm, 1024, 4096; each factor of bfloat16 is rounded
        depth = 2 * 1024 + TOKENS + 2 * 1024 + 4096
        yield compare(
            as_numpy(result), expected, depth if dtype == "float32" else 16, dtype=normal(0, 1, dtype=dtype).dtype, name="out"
        )

    flops = 2.0 * TOKENS * 1024 * (4 * 1024 + 2 * 4096) + 4.0 * TOKENS * TOKENS * 1024
    return Case(
        dtype, lambda: main(given), check, torch_peer(lambda: theirs(there), None if dtype == "bfloat16" else check), flops
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse_options("Dense layers against torch.", arguments)
    bench = Benchmark("dense", options)
    for dtype in ("float32", "bfloat16", "float16"):
        for shape in LINEAR[3:] if options.quick else LINEAR:
            bench.run("linear_" + "x".join(map(str, shape)), functools.partial(linear_case, *shape, dtype))
        if dtype == "float16":
            continue
        # torch's bfloat16 convolution takes minutes on a CPU without an instruction for it
        for cin, cout, side in () if dtype == "bfloat16" else CONV[5:] if options.quick else CONV:
            bench.run(f"conv3d_{cin}x{cout}_{side}", functools.partial(conv_case, cin, cout, (side,) * 3, (3, 3, 3), 1, dtype))
        for cin, cout, side in () if dtype == "bfloat16" else IMAGES[:1] if options.quick else IMAGES:
            case = functools.partial(conv_case, cin, cout, (1, side, side), (1, 3, 3), 1, dtype)
            bench.run(f"conv2d_{cin}x{cout}_{side}", case)
        bench.run("patch_embed", functools.partial(conv_case, 3, 1024, (1, 518, 518), (1, 14, 14), 14, dtype))
        bench.run("vit_l_block", functools.partial(block_case, dtype))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
