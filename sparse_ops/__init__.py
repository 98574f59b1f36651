"""Relax ops on sparse 3D tensors, with type inference, legalization to hand-written TIR, nn modules and eager calls."""

import tir_kernels as _kernels  # sets up the thread pool before its first use
