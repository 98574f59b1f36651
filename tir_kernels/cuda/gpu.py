"""What a CUDA target can do: compute capability and the memory that a block may share."""

from dataclasses import dataclass

import tvm
from tvm.script import tirx as T
from tvm_ffi.structural import DefRegionKind, structural_map

ON_DEVICE = "tir_kernels.on_device"  # attribute of kernels that run on a device
REGISTERS = "tir_kernels.registers"  # attribute, see `stating`
MULTIPLIES = "tir_kernels.multiplies"  # attribute: in which numbers a kernel multiplies by its weight, its second buffer

WARP = 32  # threads that run together
LEAST = (8, 0)  # cp.async and tensor cores for bfloat16 and TF32
MOST_STATIC = 48 * 1024  # bytes that a block shares unless it asks for more
GRID_MOST = 2**31 - 1  # blocks along x; 65535 along y and z

# Bytes that a block may ask for, by compute capability (CUDA C++ programming guide, table of technical specifications).
_SHARED = {(8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (10, 3): 227, (12, 0): 99, (12, 1): 99}


@dataclass(frozen=True)
class Gpu:
    """A device by its compute capability, (9, 0) for example."""

    capability: tuple[int, int]

    @classmethod
    def of(cls, target: tvm.target.Target) -> "Gpu":
        """That of a target of kind 'cuda'. ValueError as `named`."""
        return cls.named(str(target.attrs.get("arch", "")))

    @classmethod
    def named(cls, arch: str) -> "Gpu":
        """The device of an architecture, "sm_90" for example. ValueError for another form."""
        digits = arch.removeprefix("sm_").rstrip("af")
        if not arch.startswith("sm_") or not digits.isdecimal() or len(digits) < 2:
            raise ValueError(f"target: expected an arch such as 'sm_90', given {arch!r}")
        return cls((int(digits[:-1]), int(digits[-1])))

    def problem(self) -> str | None:
        """Why no kernel runs there, if none does."""
        if self.capability < LEAST:
            return f"expected a compute capability of at least {LEAST[0]}.{LEAST[1]}, given {self}"
        return None

    @property
    def shared_bytes(self) -> int:
        """Bytes that the threads of a block may share; of a device that is not known, what all have."""
        return _SHARED.get(self.capability, 99) * 1024

    def __str__(self) -> str:
        return ".".join(map(str, self.capability))


def on_device(kernel: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """`kernel` as one that runs on a device.

    Of a number and NaN, CUDA's `min` and `max` return the number; elsewhere in this package they return their second argument
    where a comparison is false, so that NaN gives NaN. Here they are spelled out so.

    TVM puts the value of a variable in wherever it stands: of a GELU, that makes 300 KB of source, which take 24 seconds to
    compile. So floats that are bound (`vector_math.bind`) become registers of their own.
    """
    registers: dict[tvm.tirx.Var, tvm.tirx.Buffer] = {}

    def spelled_out(compare):
        def rewrite(node):
            if "float" not in str(node.ty.dtype):
                return node
            return T.Select(compare(node.a, node.b), node.a, node.b)

        return rewrite

    def note(node):
        if str(node.var.ty.dtype) == "float32":
            registers[node.var] = tvm.tirx.decl_buffer((1,), "float32", node.var.name, scope="local")
        return node

    def note_in_launch(node):
        if node.attr_key == "thread_extent":
            structural_map(node.body, (tvm.tirx.Bind, note))
        return node

    def kept(node):
        if node.var not in registers:
            return node
        buffer = registers[node.var]
        return tvm.tirx.SeqStmt([tvm.tirx.AllocBuffer(buffer), tvm.tirx.BufferStore(buffer, node.value, [0])])

    def loaded(node, kind):
        return tvm.tirx.BufferLoad(registers[node], [0]) if kind == DefRegionKind.NONE and node in registers else node

    structural_map(kernel.body, (tvm.tirx.AttrStmt, note_in_launch))
    rules = [
        (tvm.tirx.Max, spelled_out(lambda a, b: a > b)),
        (tvm.tirx.Min, spelled_out(lambda a, b: a < b)),
        (tvm.tirx.Bind, kept),
    ]
    body = structural_map(kernel.body, rules, (tvm.tirx.Var, loaded))
    return kernel.with_body(body).with_attr(ON_DEVICE, "cuda")


def stating(kernel: tvm.tirx.PrimFunc, registers: int) -> tvm.tirx.PrimFunc:
    """`kernel`, of which no launch takes more registers a thread, as nvcc counts them."""
    return kernel.with_attr(REGISTERS, registers)


def kernel_name(op: str, dtype: str = "", tile: str = "") -> str:
    """`<op>_<dtype>_<tile>__cuda`, for example `implicit_gemm_f16_128x64__cuda`."""
    short = {"": "", "float32": "_f32", "bfloat16": "_bf16", "float16": "_f16", "int32": "_i32"}.get(dtype, f"_{dtype}")
    return f"{op}{short}{'_' if tile else ''}{tile}__cuda"
