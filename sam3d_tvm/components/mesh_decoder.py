"""The mesh decoder: from the latents of voxels to features of a grid four times as fine, from which a mesh is extracted.

    forward(feats float32 [n, latent_channels], coords int32 [n, 4], offsets int32 [batch + 1]) ->
        (features float32 [64 n, out_channels], coords int32 [64 n, 4])

`offsets` say where the rows of each batch element start, as group norms are taken over a batch element. At real size the finest
level has a million rows: nothing is repeated on it that can be computed before.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tvm.relax.frontend.nn import spec

from sam3d_tvm.checks import check_choice, check_size
from sam3d_tvm.components.blocks import ConvModule, Record, ignore
from sam3d_tvm.components.slat_decoder import SlatDecoderConfig, SlatTransformer, checked_component, checked_latents
from sam3d_tvm.components.slat_weights import seeded_arrays, shapes_of
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.weights import LazyArray
from sparse_ops.nn import Activation, GroupNorm, Linear, Module, ModuleList, Sites, SparseTensor, Subdivide, Tensor

NARROWING = (4, 2)  # by which every subdivision divides the channels
CORNERS = 8  # of a cube
CUBE_CHANNELS = CORNERS + CORNERS * 3 + 21  # distance and deformation of every corner, and weights of the cube
COLOR_CHANNELS = CORNERS * 6  # colour and normal of every corner
SEEDED_GAIN = 0.05  # of what decides about the shape


@dataclass(frozen=True)
class MeshDecoderConfig(SlatDecoderConfig):
    """As `SlatDecoderConfig`; `representation_config` has `use_color`; group norms have `num_groups` groups."""

    num_groups: int = 32

    def __post_init__(self):
        super().__post_init__()
        check_size("num_groups", self.num_groups, 1)
        if self.model_channels % (narrow := self.num_groups * np.prod(NARROWING)):
            raise ValueError(
                f"model_channels: expected a multiple of {narrow}, so that {self.num_groups} groups divide the narrowest "
                f"layer, given {self.model_channels}"
            )
        if set(self.representation_config) != {"use_color"} or not isinstance(self.representation_config["use_color"], bool):
            raise ValueError(f"representation_config: expected use_color, a bool, given {dict(self.representation_config)}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, the coarsest first."""
        return (self.model_channels, *(self.model_channels // int(n) for n in np.cumprod(NARROWING)))

    @property
    def out_channels(self) -> int:
        """Features of a fine voxel."""
        return CUBE_CHANNELS + COLOR_CHANNELS * self.representation_config["use_color"]

    @property
    def out_resolution(self) -> int:
        """Bound of the fine coordinates."""
        return self.resolution * 2 ** len(NARROWING)


PRESETS = {
    # For tests: compiles and runs in seconds.
    "tiny": MeshDecoderConfig(
        resolution=64,
        model_channels=64,
        latent_channels=8,
        num_blocks=2,
        representation_config={"use_color": True},
        num_heads=2,
        num_groups=4,
    ),
    # The sizes of SAM-3D-Objects.
    "full": MeshDecoderConfig(
        resolution=64,
        model_channels=768,
        latent_channels=8,
        num_blocks=12,
        representation_config={"use_color": True},
        num_heads=12,
    ),
}


def preset(name: str) -> MeshDecoderConfig:
    """A config of `PRESETS`; ValueError for another name."""
    check_choice("preset", name, PRESETS)
    return PRESETS[name]


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

    def forward(self, x: SparseTensor, record: Record = ignore) -> SparseTensor:
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
        h = self.transform(SparseTensor(feats, sites), record)
        for i, block in enumerate(self.upsample):
            h = block(h)
            record(f"upsample{i}", h.feats)
        return self.out_layer(h).feats, h.coords

    def specs(self) -> dict[str, spec.MethodSpec]:
        """The function with the types of its arguments, as `export_tvm` takes it."""
        latents = spec.Tensor(["n", self.config.latent_channels], "float32")
        types = [latents, spec.Tensor(["n", 4], "int32"), spec.Tensor(["offsets"], "int32")]
        return {"forward": spec.MethodSpec(self.forward, ["feats", "coords", "offsets"], types, "plain", "none")}


def parameter_shapes(config: MeshDecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the compiled module."""
    return shapes_of(MeshModel(config))


def seeded_state(config: MeshDecoderConfig, seed: int = 0) -> dict[str, LazyArray]:
    """Random parameters, see `slat_weights.seeded_arrays`; with them all cubes are inside, and the mesh encloses the voxels."""
    gain, bias = np.ones((config.out_channels, 1)), np.zeros(config.out_channels)
    gain[:CUBE_CHANNELS], bias[:CORNERS] = SEEDED_GAIN, -1
    return seeded_arrays(parameter_shapes(config), seed, {"out_layer.weight": gain}, {"out_layer.bias": bias})


class MeshDecoder:
    """Runs a compiled `MeshModel` of the same config. Raises ValueError for a component of other sizes."""

    def __init__(self, component: Component, config: MeshDecoderConfig):
        self.component, self.config = checked_component(component, config), config

    def __call__(self, coords, feats) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 [64 N, out_channels] and coordinates int32 [64 N, 4], from 0 to out_resolution - 1, of the cubes in
        the voxels coords int32 [N, 4] with latents feats float32 [N, latent_channels], numpy, torch or TVM.

        Raises ValueError as `checked_latents`.
        """
        coords, feats = checked_latents(coords, feats, self.config)
        batch = int(coords[:, 0].max(initial=0)) + 1
        offsets = np.searchsorted(coords[:, 0], np.arange(batch + 1)).astype(np.int32)
        return tuple(self.component(feats, coords, offsets))
