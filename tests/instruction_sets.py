"""The instruction sets that tests run for, whichever the machine has."""

from dataclasses import replace

from tir_kernels.cpu.isa import AVX2, AVX512, AVX512_BF16, NEON, PORTABLE, Isa

# Any machine runs the kernels of all: vectors that are too wide are split, and what multiplies pairs of bfloat16 or integers
# becomes plain arithmetic.
EMULATED = replace(AVX512_BF16, name="avx512bf16_emulated", emulate_dot=True)
ISAS = {isa.name: isa for isa in (PORTABLE, NEON, AVX2, AVX512, EMULATED)}


def with_integers(isa: Isa, *instructions: str) -> Isa:
    """`isa` with these for sums of integer products, emulated."""
    return replace(isa, integer=instructions, emulate_integer=True)


INTEGERS = {"neon": ("sdot",), "avx2": ("vpmaddwd", "vpmaddubsw"), "avx512": ("vpdpbusd",), EMULATED.name: ("vpdpbusd",)}
ISAS |= {name: with_integers(ISAS[name], *instructions) for name, instructions in INTEGERS.items()}

# One for each way to add integer products.
INTEGER_ISAS = {
    "vpdpbusd_512": with_integers(AVX512, "vpdpbusd"),
    "vpdpbusd_256": with_integers(AVX2, "vpdpbusd"),
    "sdot": with_integers(NEON, "sdot"),
    "vpmaddwd": with_integers(AVX2, "vpmaddwd"),
    "vpmaddubsw_256": with_integers(AVX2, "vpmaddubsw"),
    "vpmaddubsw_512": with_integers(AVX512, "vpmaddubsw"),
}
