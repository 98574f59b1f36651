"""Sparse convolution computed by torch inside of a compiled module: the features, the weight and the result are shared.

The module calls back into this process, which must have imported this file. Torch reads and writes the module's memory
through DLPack: for every tap the input rows are gathered, multiplied and added to the output rows. Within a tap an output
row occurs once and taps follow in order, so sums have one order.
"""

import numpy as np
import tvm
from tvm import relax

from tir_kernels.layout import PairsByBlock

from .. import nn, op
from ..nn.carrier import Sites, SymbolicKernelMap, SymbolicSparseTensor, emit
from ..nn.rows import expr_of

try:
    import torch
except ImportError as error:
    raise ImportError(
        "sparse_ops.torch: needs torch, which the extra 'torch' installs: pip install sam3d-tvm[torch]"
    ) from error

CONVOLVE = "sparse_ops.torch.convolve"


class SubMConv3d(nn.SubMConv3d):
    """As `sparse_ops.nn.SubMConv3d`, computed by torch; a kernel of 1 is a linear layer and stays ours."""

    def _through(self, kernel_map: SymbolicKernelMap, sites: Sites, x: SymbolicSparseTensor, residual, activation) -> nn.Tensor:
        bias = relax.const(np.zeros(self.out_channels, "float32")) if self.bias is None else self.bias._expr
        args = [x.feats._expr, self.weight._expr, bias, *kernel_map.expr]
        args += [] if residual is None else [expr_of(residual, "residual")]
        out_ty = relax.TensorType([sites.rows, self.out_channels], x.feats.dtype)
        y = emit(relax.op.call_dps_packed(CONVOLVE, args, out_ty), "torch_conv")
        return y if activation == "none" else emit(op.activation(y._expr, activation), activation)


@tvm.register_global_func(CONVOLVE)
def _convolve(x, weight, bias, pair_in, pair_out, segment, rows, *residual_and_out) -> None:
    *residual, out = residual_and_out
    if tuple(rows.numpy()) != (x.shape[0], out.shape[0]):
        raise ValueError(f"kernel_map: expected one of {x.shape[0]} to {out.shape[0]} rows, given {rows.numpy().tolist()}")
    with torch.inference_mode():
        convolve(*map(torch.from_dlpack, (x, weight, bias, pair_in, pair_out, segment, out, *residual)))


def convolve(x, weight, bias, pair_in, pair_out, segment, out, residual=None) -> None:
    """out = bias + residual + sum over taps k and pairs (i, o) of k of x[i] @ weight[:, k].T, written into `out`.

    Torch tensors: x [N, Cin]; weight [Cout, kx, ky, kz, Cin]; bias float32 [Cout]; pair_in, pair_out, segment of a kernel
    map; out, residual [M, Cout]. Sums are float32.
    """
    taps = weight.flatten(1, 3).unbind(1)  # each [Cout, Cin], in place
    sums = out if out.dtype == torch.float32 else torch.empty(out.shape)
    sums.copy_(bias)
    if residual is not None:
        sums += residual
    pairs = pairs_by_tap(pair_in, pair_out, segment, PairsByBlock.block_rows(len(out)))
    for tap, source, target in zip(taps, *pairs, strict=True):
        sums.index_add_(0, target, (x[source] @ tap.T).to(sums.dtype))
    if sums is not out:
        out.copy_(sums)


def pairs_by_tap(pair_in, pair_out, segment, rows: int):
    """Input and output rows int64 of every tap: two lists of tensors, from a map whose blocks have `rows` output rows."""
    counts = segment.diff(dim=1).long()  # [blocks, taps]
    lengths = counts.T.flatten()  # of all runs of pairs, tap by tap
    block = torch.arange(len(segment)).repeat(counts.shape[1]).repeat_interleave(lengths)
    start = (segment[:, :-1].T.flatten() - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
    slot = start + torch.arange(len(start))  # within the block
    per_tap = counts.sum(0).tolist()
    source = pair_in[block, slot].long().split(per_tap)
    target = (pair_out[block, slot] + block * rows).split(per_tap)
    return source, target
