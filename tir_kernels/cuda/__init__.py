"""Kernels for CUDA devices. A family takes its place beside the CPU kernels in `tir_kernels.dispatch`.

A kernel is one PrimFunc: what stands outside of its launches runs on the host, its launches run on the device one after the
other, and buffers allocated outside of them are scratch in the device's memory. It takes the buffers that its description
lists; one that looks for errors takes the status buffer behind its inputs, see `guards`.
"""
