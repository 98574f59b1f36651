"""Dense layers against torch on the same machine: linear layers, convolutions and an imported transformer block.

    python -m benchmarks.dense [--quick] [--json FILE] [--only SUBSTRING]

    linear_<rows>x<in>x<out>   one linear layer with a bias, the weight packed ahead
    conv3d_<in>x<out>_<side>   one 3^3 convolution of a dense grid; patch_embed: 518^2 pixels to 37^2 tokens
    conv2d_<in>x<out>_<side>   one 3^2 convolution of an image, as the head of a depth model has them
    vit_l_block                a block of a ViT-L on 1374 tokens, exported by torch and compiled by `cpu_pipeline`

bfloat16 and float16 are storage, sums are float32, on both sides; the peer is torch in the same type. In float16 there are
linear layers only.

int8 is integer products between features of the fastest float type; a CPU that gains nothing by integers says so and measures
floats. Its peers are torch's float32 and bfloat16. Below the table stands the error of random and outlying inputs, relative to
what of the outputs varies.
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
from sparse_ops.transform.precision import features_of
from tests.tolerance import compare
from tir_kernels.dispatch import host_target, kernel_for
from tir_kernels.spec import int8_linear, linear

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


def int8_case(rows: int, cin: int, cout: int) -> Case:
    """One linear layer with integer products."""
    dtype = features_of("int8", host_target())
    kernel = kernel_for(linear.Linear(cin, cout, dtype, products="int8"), host_target())
    x, weight = normal(0, rows, cin, dtype=dtype), normal(1, cout, cin, dtype=dtype)
    bias = normal(2, cout, dtype="float32")
    sample = np.random.default_rng(3).permutation(rows)[:SAMPLED]
    if kernel.bits is None:
        expected = linear.naive(x[sample], weight, bias)
    else:
        expected = int8_linear.naive(x[sample], weight, bias, bits=kernel.bits)
    depth = cin if kernel.bits is None and dtype == "float32" else 5  # integers are exact

    def check(result):
        yield compare(as_numpy(result)[sample], expected, depth if dtype == "float32" else 1, dtype=x.dtype, name="out")

    wide = [torch.from_numpy(value.astype("float32")) for value in (x, weight, bias)]
    narrow = [value.to(torch.bfloat16) for value in wide]
    peers = {
        f"torch {name}": Peer(
            torch.no_grad()(functools.partial(torch.nn.functional.linear, *values)), None, use_threads(THREADS), memory=True
        )
        for name, values in (("float32", wide), ("bfloat16", narrow))
    }
    return Case(
        "int8",
        compiled(functools.partial(op.linear, products="int8"), x, weight, bias, constants=2),
        check,
        peers,
        flops=2.0 * rows * cin * cout,
        facts={"kernel": kernel.name, "features": dtype},
    )


def int8_errors(rows: int = 1000, cin: int = 1024, cout: int = 1024) -> dict[str, float]:
    """The error of a layer with integer products by its inputs: |out - exact| / |exact - mean of the rows|.

    Normal inputs, and such where three channels are some hundred times as large, without and with these kept apart. Empty where
    the CPU gains nothing by integers.
    """
    kernel = kernel_for(linear.Linear(cin, cout, products="int8"), host_target())
    if kernel.bits is None:
        return {}
    run, pack = (
        tvm.compile(tvm.IRModule({"main": f}), target=host_target())["main"] for f in (kernel.function, kernel.weight.pack)
    )
    weight = normal(1, cout, cin, dtype="float32") / np.float32(np.sqrt(cin))
    plain = tvm.runtime.empty(kernel.weight.shape, kernel.weight.dtype)
    pack(tvm.runtime.tensor(weight), plain)
    at, sizes = [3, cin // 2, cin - 5], np.array([1, -0.6, 0.4], "float32")
    apart = tvm.runtime.tensor(kernel.weight.with_apart(plain.numpy(), weight, at))
    found = {}
    for size in (0, 100, 700):
        x = normal(4, rows, cin, dtype="float32")
        if size:
            x[:, at] = size * sizes * (1 + 0.15 * normal(5, rows, 3, dtype="float32"))
        expected = linear.naive(x, weight)
        for name, packed in (("", plain), (", channels apart", apart)):
            out = tvm.runtime.empty((rows, cout), "float32")
            run(tvm.runtime.tensor(x), packed, tvm.runtime.tensor(np.zeros(cout, "float32")), out)
            error = np.linalg.norm(out.numpy() - expected) / np.linalg.norm(expected - expected.mean(0))
            found[("normal" if size == 0 else f"outliers of {size}") + name] = float(error)
    return found


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
    # the peer of integers is torch in the type of the features between them
    narrow = getattr(torch, features_of(dtype, host_target()))
    theirs, there = block.to(narrow), x.to(narrow)

    def check(result):
        # the longest chain: norm, 1024, softmax over the tokens, 1024, norm, 1024, 4096; each factor of bfloat16 is rounded, to
        # eight bits as one of int8 is
        depth = 2 * 1024 + TOKENS + 2 * 1024 + 4096
        yield compare(
            as_numpy(result),
            expected,
            depth if dtype == "float32" else 16,
            dtype="float32" if dtype == "float32" else ml_dtypes.bfloat16,
            name="out",
        )

    flops = 2.0 * TOKENS * 1024 * (4 * 1024 + 2 * 4096) + 4.0 * TOKENS * TOKENS * 1024
    return Case(
        dtype, lambda: main(given), check, torch_peer(lambda: theirs(there), check if dtype == "float32" else None), flops
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
    for shape in LINEAR[3:] if options.quick else LINEAR:
        bench.run("linear_int8_" + "x".join(map(str, shape)), functools.partial(int8_case, *shape))
    bench.run("vit_l_block_int8", functools.partial(block_case, "int8"))
    code = bench.finish()
    if bench.wants("int8"):
        errors = int8_errors()
        print("\nint8, relative L2 error: " + "; ".join(f"{name} {100 * error:.2f} %" for name, error in errors.items()))
        if not errors:
            print("\nint8: this CPU gains nothing by integer products, floats were measured")
    return code


if __name__ == "__main__":
    sys.exit(main())
