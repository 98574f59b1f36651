"""The mesh decoder in torch: from latents to features of a grid four times as fine, by the names of the checkpoint."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3d_tvm.models.mesh_decoder.config import MeshDecoderConfig
from training.networks.layers import Conv, Convolution, SubmanifoldConvolution
from training.networks.sites import Sites
from training.networks.slat_decoder import SlatDecoderNetwork


class MeshDecoderNetwork(SlatDecoderNetwork):
    """`forward(coords, feats)` is the features of fine cells and their coordinates, see `sam3d_tvm.mesh.flexicubes`."""

    def __init__(self, config: MeshDecoderConfig, convolution: Convolution = SubmanifoldConvolution):
        super().__init__(config)
        pairs = pairwise(config.widths)
        self.upsample = nn.ModuleList(SubdivideBlock(*pair, config.num_groups, convolution) for pair in pairs)
        self.out_layer = nn.Linear(config.widths[-1], config.out_channels)

    def forward(self, coords: Tensor, feats: Tensor) -> tuple[Tensor, Tensor]:
        """coords int32 [N, 4], feats [N, latent_channels] -> [64 N, out_channels], int32 [64 N, 4]."""
        sites = self.sites(coords)
        h = self.transform(sites, feats)
        for block in self.upsample:
            finer = sites.subdivided()
            h, sites = block(h, sites, finer), finer
        return self.out_layer(h), sites.coords


class GroupNorm(nn.GroupNorm):
    """Over the rows of every batch element, one after the other. Rows stay rows: only sums of channels are regrouped."""

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        """x [N, C] -> [N, C]."""
        return torch.cat([self._normalised(part) for part in x.split(sites.lengths) if len(part)])

    def _normalised(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 0, correction=0)  # [C], [C]
        shape = (self.num_groups, -1)
        centre = mean.view(shape).mean(1, keepdim=True)  # [groups, 1]
        spread = (variance.view(shape) + (mean.view(shape) - centre) ** 2).mean(1, keepdim=True)
        scale = self.weight * (spread + self.eps).rsqrt().expand(self.num_groups, len(mean) // self.num_groups).flatten()
        return torch.addcmul(self.bias - centre.expand(-1, len(mean) // self.num_groups).flatten() * scale, x, scale)


class SubdivideBlock(nn.Module):
    """Group norm and SiLU, then every row eight times, then convolution, group norm, SiLU, convolution, and a skip."""

    def __init__(self, channels: int, out_channels: int, num_groups: int, convolution: Convolution):
        super().__init__()
        self.act_layers = nn.ModuleList([GroupNorm(num_groups, channels), nn.SiLU()])
        first, last = (Conv(count, out_channels, convolution=convolution) for count in (channels, out_channels))
        self.out_layers = nn.ModuleList([first, GroupNorm(num_groups, out_channels), nn.SiLU(), last])
        self.skip_connection = Conv(channels, out_channels, 1, convolution) if channels != out_channels else None

    def forward(self, x: Tensor, sites: Sites, finer: Sites) -> Tensor:
        """x [N, channels] on `sites`, which `finer` is subdivided from -> [8 N, out_channels]."""
        h = F.silu(self.act_layers[0](x, sites))
        h = self.out_layers[0].of_upsampled(h, finer)
        h = F.silu(self.out_layers[1](h, finer))
        skip = x.repeat_interleave(8, 0) if self.skip_connection is None else self.skip_connection.of_upsampled(x, finer)
        return self.out_layers[3](h, finer) + skip
