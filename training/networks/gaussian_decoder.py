"""The Gaussian decoder in torch: from latents to the raw features of Gaussians, by the names of the checkpoint."""

import torch.nn.functional as F
from torch import Tensor, nn

from sam3d_tvm.models.gaussian_decoder.config import GaussianDecoderConfig
from training.networks.layers import FINAL_NORM_EPS
from training.networks.slat_decoder import SlatDecoderNetwork


class GaussianDecoderNetwork(SlatDecoderNetwork):
    """`forward(coords, feats)` is the raw features, of which `sam3d_tvm.splat.gaussians` makes Gaussians."""

    def __init__(self, config: GaussianDecoderConfig):
        super().__init__(config)
        self.out_layer = nn.Linear(config.model_channels, config.out_channels)

    def forward(self, coords: Tensor, feats: Tensor) -> Tensor:
        """coords int32 [N, 4], feats [N, latent_channels] -> [N, out_channels]."""
        h = self.transform(self.sites(coords), feats)
        return self.out_layer(F.layer_norm(h, h.shape[1:], eps=FINAL_NORM_EPS))
