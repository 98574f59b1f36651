"""What a kernel needs to know of a CPU: vector width, register count, special instructions; and the register tile.

A kernel's body never names a vector width. It asks `Isa.of(target)` once and is built for the `Tile` that follows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import tvm

from ..buffers import STACK_BYTES


@dataclass(frozen=True)
class Isa:
    """One vector instruction set of a CPU.

    `lanes`: float32 lanes of a vector register; `registers`: vector registers that code can name;
    `bf16_dot`: whether an instruction multiplies pairs of bfloat16 and adds them into float32; `emulate_dot`: replace that
    instruction by plain arithmetic, so that a machine without it can test the kernels that use it. `converts_half`: whether an
    instruction makes a vector of float32 of one of float16, and back. `integer`: the instructions for sums of integer products,
    of `INTEGER`, by which kernels gain over float32, best first; `emulate_integer`: these as plain arithmetic.
    """

    name: str
    lanes: int
    registers: int
    bf16_dot: bool = False
    emulate_dot: bool = False
    converts_half: bool = True
    integer: tuple[str, ...] = ()
    emulate_integer: bool = False

    def __str__(self) -> str:
        dot = ", bfloat16 dot product" * self.bf16_dot + ", emulated" * self.emulate_dot
        half = "" if self.converts_half else ", no conversion of float16"
        integer = "".join(f", {name}" for name in self.integer) + ", emulated in integers" * self.emulate_integer
        return f"{self.name}: {self.registers} registers of {self.lanes} float32 lanes{dot}{half}{integer}"

    @classmethod
    def of(cls, target: tvm.target.Target | None = None) -> "Isa":
        """The best instruction set of `target` (default: the current target scope, else the host's CPU).

        Raises ValueError when the target is no CPU.
        """
        target = target or tvm.target.Target.current(allow_none=True) or host_target()
        if target.kind.name != "llvm":
            raise ValueError(f"target: expected a CPU target of kind 'llvm', given kind {target.kind.name!r}")
        if _forced.get() is not None:
            return _forced.get()
        features = set(tvm.target.codegen.llvm_get_cpu_features(target))
        if "avx512f" in features:
            integer = ("vpdpbusd",) if "avx512vnni" in features else ("vpmaddubsw",) if "avx512bw" in features else ()
            return replace(AVX512_BF16 if "avx512bf16" in features else AVX512, integer=integer)
        if "neon" in features and _architecture(target) in ("aarch64", "arm64"):
            return replace(NEON, integer=("sdot",) if "dotprod" in features else ())
        if {"avx2", "fma"} <= features:
            return replace(
                AVX2, converts_half="f16c" in features, integer=_integer_of_avx2(features)
            )  # all such CPUs have f16c
        return PORTABLE


# The instructions for sums of integer products, and the bits of the activations and weights that they take.
INTEGER = {"vpdpbusd": (8, 8), "sdot": (8, 8), "vpmaddwd": (10, 10), "vpmaddubsw": (7, 8)}


def _integer_of_avx2(features: set[str]) -> tuple[str, ...]:
    """Those of a CPU with 256 bits by which it gains.

    Without a dot product of its own it takes two integer multipliers of 256 bits: Intel's since Skylake and AMD's since Zen 3
    have them, which those before do not differ from by what multiplies, but by other instructions. With 512 bits `vpmaddwd` and
    the addition behind it share the two ports of the float multipliers, and nothing is gained.
    """
    if "avxvnni" in features:
        return ("vpdpbusd",)
    two_multipliers = ("vaes" if "sse4a" in features else "clflushopt") in features  # sse4a: AMD's
    return ("vpmaddwd", "vpmaddubsw") if two_multipliers else ()


AVX512_BF16 = Isa("avx512bf16", lanes=16, registers=32, bf16_dot=True)
AVX512 = Isa("avx512", lanes=16, registers=32)
AVX2 = Isa("avx2", lanes=8, registers=16)
NEON = Isa("neon", lanes=4, registers=32)  # of 64-bit ARM; with 32 bits there are half as many registers
PORTABLE = Isa("portable", lanes=4, registers=16, converts_half=False)


def _architecture(target: tvm.target.Target) -> str:
    """The first part of the triple that `target` is compiled for, by default that of this machine."""
    triple = target.attrs.get("mtriple") or tvm.target.codegen.llvm_get_system_triple()
    return str(triple).partition("-")[0]


_forced: ContextVar[Isa | None] = ContextVar("forced_isa", default=None)


@contextmanager
def forced_isa(isa: Isa) -> Iterator[None]:
    """Inside, `Isa.of` any CPU target is `isa`, so that one machine can test the kernels of others.

    Wider vectors than the target has are legal, code generation splits them; only `bf16_dot` needs its instruction.
    """
    token = _forced.set(isa)
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> Isa | None:
    """The instruction set of the innermost `forced_isa`, if there is one."""
    return _forced.get()


@dataclass(frozen=True)
class Tile:
    """A register tile: `rows` x `cols` float32 accumulators, `lanes` of them to a vector register."""

    rows: int
    cols: int
    lanes: int

    @property
    def vectors(self) -> int:
        """Vector registers to one row of accumulators."""
        return self.cols // self.lanes

    def panels(self, channels: int) -> int:
        """Column panels that cover `channels` columns; the last one may be partly empty."""
        return -(-channels // self.cols)

    @classmethod
    def of(cls, isa: Isa, channels: int) -> "Tile":
        """The tile for `channels` output columns.

        A step over one input channel loads `vectors` weights and `rows` activations for `rows * vectors` products. Wide
        register files take four vectors to a row, narrow ones two; rows fill what accumulators are left.
        """
        widest = 4 if isa.registers == 32 else 2
        vectors = min(widest, -(-channels // isa.lanes))
        if vectors == 3:
            vectors = 4  # a quarter of the last vector is padding, but every row stays within one panel
        spare = {1: 4, 2: 4, 4: 8}[vectors]  # weights, the activation, and room for the compiler
        rows = min((isa.registers - spare) // vectors, 12)
        return cls(rows=rows, cols=vectors * isa.lanes, lanes=isa.lanes)

    def in_one_buffer(self) -> "Tile":
        """This tile with no more rows than one buffer on the stack holds, for who cannot spread it over several.

        `RegisterTile.accumulators` does spread it, and so keeps all rows.
        """
        return replace(self, rows=min(self.rows, (STACK_BYTES - 1) // (4 * self.cols)))


def host_target() -> tvm.target.Target:
    """The CPU that this process runs on, with all of its instructions."""
    return tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})


def kernel_name(op: str, dtype: str, isa: Isa, tile: Tile | None = None) -> str:
    """`<op>_<dtype>_<rows>x<cols>__<isa>`, for example `gather_gemm_f32_6x16__avx2`."""
    short = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int32": "i32"}[dtype]
    shape = f"_{tile.rows}x{tile.cols}" if tile else ""
    return f"{op}_{short}{shape}__{isa.name}"
