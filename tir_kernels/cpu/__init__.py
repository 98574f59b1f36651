"""Kernels for CPUs: what depends on an instruction set, and the loops that use it."""
