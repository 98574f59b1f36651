"""The mesh decoder: from the latents of voxels to features of a grid four times as fine, from which a mesh is extracted.

    forward(feats float32 [n, latent_channels], coords int32 [n, 4], offsets int32 [batch + 1]) ->
        (features float32 [64 n, out_channels], coords int32 [64 n, 4])

`offsets` say where the rows of each batch element start, as group norms are taken over a batch element. At real size the finest
level has a million rows: nothing is repeated on it that can be computed before.
"""

from itertools import pairwise

from tvm.relax.frontend.nn import spec

from sam3d_tvm.models.mesh_decoder.config import MeshDecoderConfig
from sam3d_tvm.models.slat_decoder import SlatTransformer
from sam3d_tvm.models.sparse_blocks import ConvModule, Record, ignore
from sparse_ops.nn import Activation, GroupNorm, Linear, Module, ModuleList, Sites, Subdivide, SymbolicSparseTensor, Tensor


class SubdivideBlock(Module):
    """Every voxel becomes eight: group norm, SiLU, subdivision, convolution, group norm, SiLU, convolution, and a skip.

    What works on single rows is computed before they are repeated, and the first convolution multiplies them before: the same
    result for less work and memory.
    """

    def __init__(self, channels: int, out_channels: int, num_groups: int):
        self.act_layers = ModuleList([GroupNorm(num_groups, channels), Activation("silu")])
        self.out_layers = ModuleList(
            [
                ConvModule(channels, out_channels),
                GroupNorm(num_groups, out_channels),
                Activation("silu"),
                ConvModule(out_channels, out_channels),
            ]
        )
        self.skip_connection = ConvModule(channels, out_channels, 1) if channels != out_channels else None
        self.subdivide = Subdivide(2)

    def forward(self, x: SymbolicSparseTensor, record: Record = ignore) -> SymbolicSparseTensor:
        """x [N, channels] -> [8 N, out_channels], children together. Records "act_layers", "conv0" and "skip"."""
        norm, conv, inner_norm, last = self.act_layers[0], self.out_layers[0], self.out_layers[1], self.out_layers[3]
        h = norm(x, activation="silu")
        record("act_layers", h.feats)
        h = conv.conv.of_upsampled(h, x.sites.subdivided(2))
        record("conv0", h.feats)
        h = inner_norm(h, activation="silu")
        skip = self.subdivide(x if self.skip_connection is None else self.skip_connection(x))
        record("skip", skip.feats)
        return last(h, skip.feats)


class MeshModel(SlatTransformer):
    """The model. Its parameters have the names of the upstream checkpoint."""

    def __init__(self, config: MeshDecoderConfig):
        super().__init__(config)
        self.upsample = ModuleList([SubdivideBlock(*pair, config.num_groups) for pair in pairwise(config.widths)])
        self.out_layer = Linear(config.widths[-1], config.out_channels)

    def forward(self, feats: Tensor, coords: Tensor, offsets: Tensor, record: Record = ignore) -> tuple[Tensor, Tensor]:
        """feats [N, latent_channels], coords int32 [N, 4], offsets int32 [B + 1] -> [64 N, out_channels], int32 [64 N, 4]."""
        sites = Sites(coords, offsets.shape[0] - 1)
        sites.put_offsets(offsets)
        h = self.transform(SymbolicSparseTensor(feats, sites), record)
        for i, block in enumerate(self.upsample):
            h = block(h)
            record(f"upsample{i}", h.feats)
        return self.out_layer(h).feats, h.coords

    def specs(self) -> dict[str, spec.MethodSpec]:
        """The function with the types of its arguments, as `export_tvm` takes it."""
        latents = spec.Tensor(["n", self.config.latent_channels], "float32")
        types = [latents, spec.Tensor(["n", 4], "int32"), spec.Tensor(["offsets"], "int32")]
        return {"forward": spec.MethodSpec(self.forward, ["feats", "coords", "offsets"], types, "plain", "none")}
