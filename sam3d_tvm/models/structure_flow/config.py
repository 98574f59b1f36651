"""Sizes of the sparse-structure flow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import NamedTuple

from sam3d_tvm.checks import check_choice, check_size

SHAPE = "shape"  # the latent of the grid, and the stream of its tokens


class Latent(NamedTuple):
    """The size of a latent: `token_len` tokens of `in_channels` numbers."""

    in_channels: int
    token_len: int


POSE = {
    "6drotation_normalized": Latent(6, 1),
    "scale": Latent(3, 1),
    "translation": Latent(3, 1),
    "translation_scale": Latent(1, 1),
}
MERGED = {"6drotation_normalized": ("6drotation_normalized", "translation", "scale", "translation_scale")}


@dataclass(frozen=True)
class StructureFlowConfig:
    """Sizes of the model, named as upstream names them.

    `latent_mapping`: the latents, one of them "shape", as (in_channels, token_len) or a mapping of these names;
    `latent_share_transformer`: all of the others in the order of their tokens, by the name of the stream that they make up.

    Raises ValueError for sizes that do not fit together.
    """

    model_channels: int
    cond_channels: int
    num_blocks: int
    num_heads: int
    mlp_ratio: float = 4
    latent_mapping: Mapping[str, Latent] = field(default_factory=lambda: {SHAPE: Latent(8, 16**3)} | POSE)
    latent_share_transformer: Mapping[str, Sequence[str]] = field(default_factory=lambda: dict(MERGED))

    def __post_init__(self):
        for name in ("model_channels", "cond_channels", "num_blocks", "num_heads"):
            check_size(name, getattr(self, name), 1)
        if self.model_channels % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of model_channels {self.model_channels}, given {self.num_heads}")
        if isinstance(self.mlp_ratio, bool) or not isinstance(self.mlp_ratio, Real) or self.hidden < 1:
            raise ValueError(f"mlp_ratio: expected a positive number, given {self.mlp_ratio!r}")
        latents = {name: _latent(name, value) for name, value in self.latent_mapping.items()}
        object.__setattr__(self, "latent_mapping", latents)
        merged = {stream: tuple(names) for stream, names in self.latent_share_transformer.items()}
        object.__setattr__(self, "latent_share_transformer", merged)
        if SHAPE not in latents:
            raise ValueError(f"latent_mapping: expected {SHAPE!r} among the latents, given {', '.join(latents) or 'none'}")
        others = sorted(latents.keys() - {SHAPE})
        if len(merged) != 1 or SHAPE in merged or sorted(*merged.values()) != others:
            raise ValueError(
                f"latent_share_transformer: expected one stream, not named {SHAPE!r}, of {', '.join(others)}, given {merged}"
            )

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layers."""
        return int(self.model_channels * self.mlp_ratio)

    @property
    def streams(self) -> dict[str, tuple[str, ...]]:
        """The latents of both streams, in the order of their tokens."""
        return {SHAPE: (SHAPE,)} | self.latent_share_transformer


def _latent(name: str, value: Mapping[str, int] | Sequence[int]) -> Latent:
    try:
        latent = Latent(**value) if isinstance(value, Mapping) else Latent(*value)
    except TypeError as error:
        raise ValueError(f"latent_mapping[{name!r}]: expected {', '.join(Latent._fields)}, given {value!r}") from error
    for field_name, size in latent._asdict().items():
        check_size(f"latent_mapping[{name!r}].{field_name}", size, 1)
    return latent


PRESETS = {
    # For tests: compiles and runs in seconds.
    "tiny": StructureFlowConfig(32, 24, num_blocks=2, num_heads=2, latent_mapping={SHAPE: Latent(8, 3**3)} | POSE),
    # As that, with layers that are large enough to gain by integers.
    "wide": StructureFlowConfig(256, 24, num_blocks=2, num_heads=4, latent_mapping={SHAPE: Latent(8, 3**3)} | POSE),
    # The sizes of SAM-3D-Objects.
    "full": StructureFlowConfig(1024, 1024, num_blocks=24, num_heads=16),
}


def preset(name: str) -> StructureFlowConfig:
    """A config of `PRESETS`; ValueError for another name."""
    check_choice("preset", name, PRESETS)
    return PRESETS[name]
