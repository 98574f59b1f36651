"""Graph face: `sparse_ops.op.<name>(...)` makes a Relax call, with type inference and legalization of our own."""

from .activation import activation
from .attention import attention
from .batch_offsets import batch_offsets
from .channel_affine import channel_affine
from .channel_layer_norm import channel_layer_norm
from .conv import conv3d
from .conv_transpose import conv_transpose3d
from .dense import from_dense, to_dense
from .dense_group_norm import dense_group_norm
from .flatnonzero import flatnonzero
from .gather_rows import gather_rows
from .group_norm import group_norm
from .kernel_map import inverse_map, kernel_map, strided_map, submanifold_map
from .layer_norm import layer_norm
from .linear import linear
from .lookup import lookup
from .modulated_add import modulated_add
from .pool import pool, segment_pool
from .quantize import quantize
from .resize import resize_bilinear
from .rms_norm_heads import rms_norm_heads
from .serialize import serialize, serialized_partition
from .softmax import softmax
from .sparse_conv import sparse_conv
from .sparse_conv_weight_gradient import sparse_conv_weight_gradient
from .subdivide import subdivide
from .trilinear import interpolate, trilinear
from .union import union
from .unique import downsample, unique
from .upsampled_conv import upsampled_conv
from .windows import window_partition

__all__ = [
    "activation",
    "attention",
    "batch_offsets",
    "channel_affine",
    "channel_layer_norm",
    "conv3d",
    "conv_transpose3d",
    "dense_group_norm",
    "downsample",
    "flatnonzero",
    "from_dense",
    "gather_rows",
    "group_norm",
    "interpolate",
    "inverse_map",
    "kernel_map",
    "layer_norm",
    "linear",
    "lookup",
    "modulated_add",
    "pool",
    "quantize",
    "resize_bilinear",
    "rms_norm_heads",
    "segment_pool",
    "serialize",
    "serialized_partition",
    "softmax",
    "sparse_conv",
    "sparse_conv_weight_gradient",
    "strided_map",
    "subdivide",
    "submanifold_map",
    "to_dense",
    "trilinear",
    "union",
    "unique",
    "upsampled_conv",
    "window_partition",
]
