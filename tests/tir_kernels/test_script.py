"""`drop_parameters`: what it drops, names that match nothing, buffers that the body uses."""

import pytest
from tvm.script import tirx as T

from tir_kernels import script
from tir_kernels.buffers import match_buffer
from tir_kernels.dispatch import kernel_for
from tir_kernels.script import drop_parameters
from tir_kernels.spec.attention import Attention
from tir_kernels.spec.conv3d import Conv3d
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.layer_norm import LayerNorm
from tir_kernels.spec.linear import Linear
from tir_kernels.spec.modulated_add import ModulatedAdd
from tir_kernels.spec.pool import Pool, Reduction
from tir_kernels.spec.sparse_conv import SparseConv
from tir_kernels.spec.upsampled_conv import AddTaps


@script.prim_func(s_tir=True)
def copy(x_: T.handle, scale_: T.handle, out_: T.handle):
    n = T.int64()
    x = match_buffer(x_, (n,), "float32")
    match_buffer(scale_, (n,), "float32")
    out = match_buffer(out_, (n,), "float32")
    for i in range(n):
        out[i] = x[i]


def names(function) -> list[str]:
    return [param.name for param in function.params]


def test_drops():
    (unused,) = set(names(copy)) - {"x", "out"}
    assert names(drop_parameters(copy, unused)) == ["x", "out"]
    assert names(drop_parameters(copy)) == names(copy)


def test_a_name_that_matches_nothing():
    with pytest.raises(ValueError, match=r"names: expected parameters of the kernel \(x, .*, out\), given residual, gate"):
        drop_parameters(copy, "residual", "gate")


def test_a_buffer_that_the_body_uses():
    with pytest.raises(ValueError, match="names: expected parameters that the body does not use, given x"):
        drop_parameters(copy, "x")


SAME = Geometry((3, 3, 3), padding=(1, 1, 1))
MAP = ["pair_in", "pair_out", "segment", "map_rows"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Conv3d(32, 32, SAME), ["x", "weight", "bias", "out"]),
        (Conv3d(32, 32, SAME, has_residual=True), ["x", "weight", "bias", "residual", "out"]),
        (Conv3d(3, 5, SAME), ["x", "weight", "bias", "out"]),
        (Conv3d(3, 5, SAME, has_residual=True), ["x", "weight", "bias", "residual", "out"]),
        (Conv3d(3, 5, Geometry((1, 1, 1)), dtype="bfloat16"), ["x", "weight", "bias", "out"]),
        (SparseConv(3, 5, (3, 3, 3)), ["feats", "weight", "bias", *MAP, "out"]),
        (SparseConv(3, 5, (3, 3, 3), has_residual=True), ["feats", "weight", "bias", "residual", *MAP, "out"]),
        (AddTaps(3, 27, range(9)), ["y", "bias", "parent", *MAP, "out"]),
        (Linear(3, 5), ["x", "weight", "bias", "out"]),
        (Linear(3, 5, has_gate=True, has_index=True), ["x", "weight", "bias", "gate", "batch_index", "out"]),
        (LayerNorm(3), ["x", "weight", "bias", "scale", "shift", "out"]),
        (ModulatedAdd(3), ["x", "y", "gate", "out"]),
        (Pool(3, Reduction("sum")), ["x", *MAP, "out"]),
        (Attention(2, 8, has_k_order=True), ["q", "k", "v", "q_offsets", "k_offsets", "k_order", "out"]),
    ],
    ids=str,
)
def test_parameters_are_named_after_what_they_hold(spec, expected):
    assert names(kernel_for(spec).function) == expected
