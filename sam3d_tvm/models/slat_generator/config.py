"""Sizes and options of the structured-latent generator."""

from collections.abc import Mapping
from dataclasses import dataclass

from sam3d_tvm.checks import check_choice, check_size
from sam3d_tvm.models.config_checks import check_only, check_transformer, from_names

FACTOR = 2  # between two resolutions


@dataclass(frozen=True)
class SlatConfig:
    """Sizes of the model, named as upstream names them.

    Around the transformer, which has `model_channels`, lie input and output blocks at the finer resolutions:
    `io_block_channels` has one entry for each, the finest first, and `patch_size` is 2 to their number. `num_heads`
    defaults to model_channels / num_head_channels. `resolution` bounds the coordinates. `use_fp16` is taken and has no
    effect, as everything is computed in float32.

    Raises ValueError for sizes that do not fit together, and for variants of the model that nobody has trained.
    """

    resolution: int
    in_channels: int
    model_channels: int
    cond_channels: int
    out_channels: int
    num_blocks: int
    num_heads: int | None = None
    num_head_channels: int = 64
    mlp_ratio: float = 4
    patch_size: int = 2
    num_io_res_blocks: int = 2
    io_block_channels: tuple[int, ...] = ()
    pe_mode: str = "ape"
    qk_rms_norm: bool = False
    qk_rms_norm_cross: bool = False
    force_zeros_cond: bool = True
    use_fp16: bool = False

    def __post_init__(self):
        object.__setattr__(self, "io_block_channels", tuple(self.io_block_channels or ()))
        for name in (
            "resolution",
            "in_channels",
            "model_channels",
            "cond_channels",
            "out_channels",
            "num_io_res_blocks",
        ):
            check_size(name, getattr(self, name), 1)
        check_size("num_blocks", self.num_blocks, 0)
        check_size("num_head_channels", self.num_head_channels, 1)
        if self.num_heads is not None:
            check_size("num_heads", self.num_heads, 1)
        for i, channels in enumerate(self.io_block_channels):
            check_size(f"io_block_channels[{i}]", channels, 1)
        check_transformer(self)
        if self.patch_size != FACTOR**self.levels:
            raise ValueError(
                f"patch_size: expected {FACTOR**self.levels} for {self.levels} io_block_channels, given {self.patch_size!r}"
            )
        check_only(self, {"pe_mode": "ape", "qk_rms_norm_cross": False, "force_zeros_cond": True})

    @classmethod
    def from_dict(cls, values: Mapping) -> "SlatConfig":
        """From names and values; ValueError for a name that is unknown or missing, or a value that does not fit."""
        return from_names(cls, values)

    @property
    def heads(self) -> int:
        return self.num_heads or self.model_channels // self.num_head_channels

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layers."""
        return int(self.model_channels * self.mlp_ratio)

    @property
    def levels(self) -> int:
        """Resolutions above that of the transformer."""
        return len(self.io_block_channels)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, the finest first."""
        return (*self.io_block_channels, self.model_channels)

    @property
    def input_moves(self) -> list[tuple[int, int]]:
        """The levels of input and output of every residual block before the transformer."""
        stay = self.num_io_res_blocks - 1
        return [move for level in range(self.levels) for move in (*[(level, level)] * stay, (level, level + 1))]

    @property
    def out_moves(self) -> list[tuple[int, int]]:
        """The same behind the transformer."""
        stay = self.num_io_res_blocks - 1
        return [move for level in range(self.levels)[::-1] for move in ((level + 1, level), *[(level, level)] * stay)]


PRESETS = {
    # For tests: compiles and runs in seconds.
    "tiny": SlatConfig(
        resolution=64,
        in_channels=8,
        model_channels=48,
        cond_channels=24,
        out_channels=8,
        num_blocks=2,
        num_heads=2,
        io_block_channels=(16,),
        qk_rms_norm=True,
    ),
    # For the demo: the real structure at about a hundredth of its work.
    "small": SlatConfig(
        resolution=64,
        in_channels=8,
        model_channels=192,
        cond_channels=128,
        out_channels=8,
        num_blocks=4,
        num_heads=3,
        io_block_channels=(64,),
        qk_rms_norm=True,
    ),
    # The sizes of SAM-3D-Objects.
    "full": SlatConfig(
        resolution=64,
        in_channels=8,
        model_channels=1024,
        cond_channels=1024,
        out_channels=8,
        num_blocks=24,
        num_heads=16,
        io_block_channels=(128,),
        qk_rms_norm=True,
        use_fp16=True,
    ),
}


def preset(name: str) -> SlatConfig:
    """A config of `PRESETS`; ValueError for another name."""
    check_choice("preset", name, PRESETS)
    return PRESETS[name]


@dataclass(frozen=True)
class Savings:
    """What is left out because it gives the same result. Each can be switched off, to compare and to measure.

    - `context_once`: keys and values of the condition are computed by `prepare`, not by every call of the model;
    - `constant_unconditional`: without a condition all its tokens are zero, so all keys are equal, their softmax is uniform,
      and cross attention adds one vector, the same to every row: it is computed once for the weights;
    - `modulation_table`: scale, shift and gate of a block depend on the time alone: a sampler computes those of its whole
      schedule at once, before the first step;
    - `parent_convolution`: rows repeated by nearest upsampling are equal, so the convolution that follows multiplies those
      of the parents, see `sparse_ops.op.upsampled_conv` (only with the native sparse backend);
    - `shared_start`: what a guided step computes before the first condition comes in serves both of its calls.
    """

    context_once: bool = True
    constant_unconditional: bool = True
    modulation_table: bool = True
    parent_convolution: bool = True
    shared_start: bool = True


ALL_SAVINGS = Savings()
