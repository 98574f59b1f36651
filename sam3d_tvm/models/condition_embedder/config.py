"""Sizes of the condition embedder: which embedders there are, and their inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sam3d_tvm.checks import check_choice, check_size
from sam3d_tvm.models.dinov2 import DinoV2Config, check_multiple, check_ratio

CHANNELS = {"image": 3, "mask": 1, "pointmap": 3}  # of every kind of input
HIDDEN_MULTIPLE = 256


@dataclass(frozen=True, kw_only=True)
class DinoConfig(DinoV2Config):
    """Sizes of a DINOv2 with registers, named as upstream names them.

    Images are resized to `input_size`. `prenorm_features`: tokens as they are before the last norm, registers included.
    """

    input_size: int
    prenorm_features: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_size("input_size", self.input_size, 1)
        check_multiple("input_size", self.input_size, "patch_size", self.patch_size)

    @property
    def grid(self) -> int:
        """Patches along each side of an image."""
        return self.input_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return 1 + (self.num_register_tokens if self.prenorm_features else 0) + self.grid**2


@dataclass(frozen=True)
class PointPatchConfig:
    """Sizes of the point patch embedding, named as upstream names them."""

    embed_dim: int
    input_size: int
    patch_size: int = 8
    num_heads: int = 16
    mlp_ratio: float = 2
    remap_output: str = "linear"

    def __post_init__(self):
        for name in ("embed_dim", "input_size", "patch_size", "num_heads"):
            check_size(name, getattr(self, name), 1)
        check_multiple("input_size", self.input_size, "patch_size", self.patch_size)
        check_multiple("embed_dim", self.embed_dim, "num_heads", self.num_heads)
        check_ratio("mlp_ratio", self.mlp_ratio, self.embed_dim)
        check_choice("remap_output", self.remap_output, ("linear",))

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def grid(self) -> int:
        """Windows along each side of a point map."""
        return self.input_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of a point map."""
        return self.grid**2


@dataclass(frozen=True)
class Embedder:
    """A model and its inputs: `kind` is one of `CHANNELS`, `inputs` are pairs of a name and the group that it belongs to."""

    kind: str
    model: DinoConfig | PointPatchConfig
    inputs: tuple[tuple[str, str], ...]

    def __post_init__(self):
        check_choice("kind", self.kind, CHANNELS)
        expected = PointPatchConfig if self.kind == "pointmap" else DinoConfig
        if not isinstance(self.model, expected):
            raise ValueError(f"model: expected a {expected.__name__} for kind {self.kind!r}, given {self.model!r}")
        object.__setattr__(self, "inputs", tuple((str(name), str(group)) for name, group in self.inputs))

    @property
    def method(self) -> str:
        """The compiled function."""
        return f"embed_{self.kind}"

    @property
    def channels(self) -> int:
        """Channels of its inputs."""
        return CHANNELS[self.kind]


@dataclass(frozen=True)
class EmbedderFuserConfig:
    """The embedders in the order of their tokens, each kind once. Raises ValueError for inputs that repeat, or none."""

    embedders: tuple[Embedder, ...]
    projection_net_hidden_dim_multiplier: float = 4

    def __post_init__(self):
        object.__setattr__(self, "embedders", tuple(self.embedders))
        names = [name for embedder in self.embedders for name, _ in embedder.inputs]
        for what, given in (("kinds", [embedder.kind for embedder in self.embedders]), ("inputs", names)):
            if len(set(given)) != len(given) or not given:
                raise ValueError(
                    f"embedders: expected {what} that differ, and one at least, given {', '.join(given) or 'none'}"
                )
        check_ratio("projection_net_hidden_dim_multiplier", self.projection_net_hidden_dim_multiplier, self.channels)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "EmbedderFuserConfig":
        """Of what `dataclasses.asdict` makes of one, after JSON. Raises KeyError, TypeError or ValueError for anything else."""
        embedders = tuple(
            Embedder(
                part["kind"],
                (PointPatchConfig if part["kind"] == "pointmap" else DinoConfig)(**part["model"]),
                tuple(map(tuple, part["inputs"])),
            )
            for part in value["embedders"]
        )
        return cls(embedders, value["projection_net_hidden_dim_multiplier"])

    @property
    def channels(self) -> int:
        """Width of the tokens: that of the widest embedder."""
        return max(embedder.model.embed_dim for embedder in self.embedders)

    @property
    def hidden(self) -> int:
        """Width of the projections' gated layers: two thirds of what the multiplier says, as they have three matrices."""
        width = 2 * int(self.projection_net_hidden_dim_multiplier * self.channels) // 3
        return -(-width // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE

    @property
    def groups(self) -> dict[str, int]:
        """The number of every group, in the order in which they appear."""
        names = dict.fromkeys(group for embedder in self.embedders for _, group in embedder.inputs)
        return {name: i for i, name in enumerate(names)}

    @property
    def rows(self) -> dict[str, slice]:
        """Which tokens belong to which input, in order."""
        found, start = {}, 0
        for embedder in self.embedders:
            for name, _ in embedder.inputs:
                found[name] = slice(start, start + embedder.model.tokens)
                start += embedder.model.tokens
        return found

    @property
    def tokens(self) -> int:
        """Tokens of all inputs."""
        return sum(len(embedder.inputs) * embedder.model.tokens for embedder in self.embedders)


def fuser_config(image: DinoConfig, pointmap: PointPatchConfig | None = None, *, whole: bool = True) -> EmbedderFuserConfig:
    """Every kind of input cropped around the object, and with `whole` as a whole, too; point maps where there is an embedder
    for them."""

    def pair(kind: str, model: DinoConfig | PointPatchConfig, full: str) -> Embedder:
        return Embedder(kind, model, ((kind, "cropped"), (full, "full")) if whole else ((kind, "cropped"),))

    embedders = [pair("image", image, "rgb_image"), pair("mask", image, "rgb_image_mask")]
    embedders += [] if pointmap is None else [pair("pointmap", pointmap, "rgb_pointmap")]
    return EmbedderFuserConfig(tuple(embedders))


# "tiny" is for tests; "full" are the sizes of SAM-3D-Objects, whose DINOv2 is ViT-L/14.
DINO_PRESETS = {
    "tiny": DinoConfig(embed_dim=32, depth=2, num_heads=2, input_size=56, img_size=70),
    "full": DinoConfig(embed_dim=1024, depth=24, num_heads=16, input_size=518, img_size=518),
}
POINT_PATCH_PRESETS = {
    "tiny": PointPatchConfig(embed_dim=16, input_size=32),
    "full": PointPatchConfig(embed_dim=512, input_size=256),
}
# "ss": the condition of the sparse structure. "slat": that of the structured latents, without point maps.
FUSER_PRESETS = {
    "ss": {size: fuser_config(DINO_PRESETS[size], POINT_PATCH_PRESETS[size]) for size in DINO_PRESETS},
    "slat": {size: fuser_config(replace(DINO_PRESETS[size], prenorm_features=True)) for size in DINO_PRESETS},
}
