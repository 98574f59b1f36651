"""The decoders of structured latents in plain PyTorch and spconv: what the compiled ones are compared with.

The networks are those of `training.networks`, written from the facts that come with the golden data; sparse convolutions are
those of `slat_reference`, on one thread. There must be at least one row.
"""

from sam3d_tvm.models.mesh_decoder import MeshDecoderConfig
from tests.sam3d_tvm.slat_reference import Reference, SpconvConvolution
from training.networks import GaussianDecoderNetwork, MeshDecoderNetwork


class GaussianReference(Reference, GaussianDecoderNetwork):
    """`forward(coords, feats)` is the raw features [N, out_channels]."""


class MeshReference(Reference, MeshDecoderNetwork):
    """`forward(coords, feats)` is the features [64 N, out_channels] and the coordinates int32 [64 N, 4]."""

    def __init__(self, config: MeshDecoderConfig):
        super().__init__(config, SpconvConvolution)
