"""Kernels for CUDA devices: none yet. A family takes its place beside the CPU kernels in `tir_kernels.dispatch`."""
