"""Sizes of the depth model, MoGe (arXiv:2410.19115), version 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sam3d_tvm.checks import check_choice, check_size
from sam3d_tvm.models.config_checks import check_only, from_names
from sam3d_tvm.models.dinov2 import HUB, DinoV2Config

AREA = 14 * 14  # pixels of a token, by which an area of pixels becomes a number of tokens
NORM_CHANNELS = 32  # of a group in the second norm of a residual block
UV = 2  # channels beside the features, which say where a pixel lies
IGNORED = ("output_mask", "split_head")  # by upstream's code: there are always two output blocks, points and mask


@dataclass(frozen=True, kw_only=True)
class MogeConfig:
    """Sizes of the depth model, named as upstream names them.

    encoder: its DINOv2. The outputs of the last `intermediate_layers` blocks are projected to `dim_proj` channels and summed;
    each width of `dim_upsample` is a stage that doubles the grid, with `num_res_blocks` residual blocks, which are
    `dim_times_res_block_hidden` times as wide inside; then two output blocks of `last_conv_channels`. `remap_output`: what
    makes points of the last numbers. `num_tokens_range`: how many patches a photo is given at least and at most, unless a
    caller says otherwise. `mask_threshold`: raw mask values above it are valid.
    """

    encoder: DinoV2Config
    num_tokens_range: tuple[int, int]
    intermediate_layers: int = 4
    dim_proj: int = 512
    dim_upsample: tuple[int, ...] = (256, 128, 64)
    dim_times_res_block_hidden: int = 2
    num_res_blocks: int = 2
    last_res_blocks: int = 0
    last_conv_channels: int = 32
    last_conv_size: int = 1
    remap_output: str = "exp"
    mask_threshold: float = 0.5

    def __post_init__(self):
        if not isinstance(self.encoder, DinoV2Config):
            raise ValueError(f"encoder: expected a DinoV2Config, given {self.encoder!r}")
        for name in ("dim_upsample", "num_tokens_range"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple):
                raise ValueError(f"{name}: expected integers, given {value!r}")
            object.__setattr__(self, name, tuple(value))
            for number in value:
                check_size(name, number, 1)
        if len(self.num_tokens_range) != 2 or self.num_tokens_range[0] > self.num_tokens_range[1]:
            raise ValueError(f"num_tokens_range: expected a least and a largest number, given {list(self.num_tokens_range)}")
        names = ("intermediate_layers", "dim_proj", "dim_times_res_block_hidden", "last_conv_channels", "last_conv_size")
        for name in names:
            check_size(name, getattr(self, name), 1)
        check_size("num_res_blocks", self.num_res_blocks, 0)
        check_only(self, {"last_res_blocks": 0})
        if self.intermediate_layers > self.encoder.depth:
            raise ValueError(
                f"intermediate_layers: expected at most the encoder's {self.encoder.depth} blocks, "
                f"given {self.intermediate_layers}"
            )
        if self.last_conv_size % 2 == 0:
            raise ValueError(f"last_conv_size: expected an odd number, given {self.last_conv_size}")
        for width in self.dim_upsample:
            hidden = width * self.dim_times_res_block_hidden
            if hidden % NORM_CHANNELS:
                raise ValueError(
                    f"dim_upsample: expected widths that times {self.dim_times_res_block_hidden} are multiples of "
                    f"{NORM_CHANNELS}, given {width}"
                )
        check_choice("remap_output", self.remap_output, ("exp",))  # of others no facts are known
        threshold = self.mask_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not abs(threshold) < float("inf"):
            raise ValueError(f"mask_threshold: expected a number, given {threshold!r}")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "MogeConfig":
        """Of what `dataclasses.asdict` makes of one, after JSON. Raises KeyError, TypeError or ValueError for anything else."""
        return from_names(cls, dict(value) | {"encoder": from_names(DinoV2Config, value["encoder"])})

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any], encoder: DinoV2Config | None = None) -> "MogeConfig":
        """Of `model_config` in the file of a published model.

        The file names its encoder as DINOv2's hub does, `HUB`; `encoder` takes the place of that name. It has
        `num_tokens_range`, or as `trained_area_range` the same in pixels. Raises ValueError for names that are not known or
        missing, and for values that the model does not have.
        """
        given = {name: value for name, value in values.items() if name not in IGNORED}
        if "trained_area_range" in given:
            area = given.pop("trained_area_range")
            if not isinstance(area, list | tuple) or not all(isinstance(n, int | float) for n in area):
                raise ValueError(f"trained_area_range: expected two areas in pixels, given {area!r}")
            given["num_tokens_range"] = [int(n // AREA) for n in area]
        if encoder is None:
            check_choice("encoder", given.get("encoder"), list(HUB))
            encoder = HUB[given["encoder"]]
        return from_names(cls, given | {"encoder": encoder})


_TINY = DinoV2Config(
    embed_dim=32,
    depth=3,
    num_heads=2,
    img_size=70,
    num_register_tokens=0,
    interpolate_antialias=False,
    interpolate_offset=0.1,
)
# "tiny" is for tests; "full" is the published model, 314 million parameters.
PRESETS = {
    "tiny": MogeConfig(
        encoder=_TINY,
        num_tokens_range=(12, 40),
        intermediate_layers=2,
        dim_proj=16,
        dim_upsample=(32, 16, 16),
        last_conv_channels=8,
    ),
    "full": MogeConfig(encoder=HUB["dinov2_vitl14"], num_tokens_range=(1275, 2551)),
}
