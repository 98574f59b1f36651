"""The instruction sets that tests run for, whichever the machine has."""

from dataclasses import replace

from tir_kernels.cpu.isa import AVX2, AVX512, AVX512_BF16, NEON, PORTABLE

# Any machine runs the kernels of all: vectors that are too wide are split, and the dot instruction becomes plain arithmetic.
EMULATED = replace(AVX512_BF16, name="avx512bf16_emulated", emulate_dot=True)
ISAS = {isa.name: isa for isa in (PORTABLE, NEON, AVX2, AVX512, EMULATED)}
