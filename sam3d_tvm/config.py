"""What a pipeline consists of: the sizes of its models, and the numbers between them; as JSON and back."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sam3d_tvm.checks import check_choice, check_size
from sam3d_tvm.models import MODELS

# Of the structured latents that SAM-3D-Objects was trained on, as its pipeline.yaml has them.
SLAT_MEAN = (0.12211431, 0.37204156, -1.26521907, -2.05276058, -3.10432536, -0.11294304, -0.85146744, 0.45506954)
SLAT_STD = (2.37326008, 2.13174402, 2.2413953, 2.30589401, 2.1191894, 1.8969511, 2.41684989, 2.08374642)


@dataclass(frozen=True)
class Sampling:
    """How a generator is sampled: Euler `steps`; guidance of `strength` while 1000 t is in `interval`; `rescale_t` above 1
    makes the first steps short. ValueError for numbers that make no sense."""

    steps: int
    strength: float
    rescale_t: float
    interval: tuple[float, float] = (0.0, 500.0)

    def __post_init__(self):
        check_size("steps", self.steps, 1)
        object.__setattr__(self, "interval", tuple(float(end) for end in self.interval))
        for name, value in (
            ("strength", self.strength),
            ("rescale_t", self.rescale_t),
            *(("interval", v) for v in self.interval),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, given {value!r}")


@dataclass(frozen=True)
class Preprocessing:
    """How the image is brought to the models: crop around the mask by `box_size_factor` of its box, then `padding_factor`,
    then `size` pixels along each side. Points further away than `clip_pointmap_beyond_scale` times the object are left out.
    `structure_sees_crop`: whether the structure sees the crop, too, without a point map, see `preprocess`."""

    size: int = 518
    box_size_factor: float = 1.2
    padding_factor: float = 0.0
    clip_pointmap_beyond_scale: float | None = None
    structure_sees_crop: bool = False

    def __post_init__(self):
        check_size("size", self.size, 1)
        if not isinstance(self.structure_sees_crop, bool):
            raise ValueError(f"structure_sees_crop: expected true or false, given {self.structure_sees_crop!r}")
        beyond = self.clip_pointmap_beyond_scale
        if beyond is not None and (isinstance(beyond, bool) or not isinstance(beyond, (int, float)) or not beyond > 0):
            raise ValueError(f"clip_pointmap_beyond_scale: expected a number above 0, given {beyond!r}")
        if not self.box_size_factor > 0 or not self.padding_factor >= 0:
            raise ValueError(
                "preprocessing: expected box_size_factor above 0 and padding_factor of at least 0, given "
                f"{self.box_size_factor} and {self.padding_factor}"
            )


# A field for the config of each model, under its name; None for one that is not there.
_Models = dataclasses.make_dataclass(
    "_Models",
    [
        (name, model.config | None, dataclasses.field(default=None)) if model.optional else (name, model.config)
        for name, model in MODELS.items()
    ],
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(_Models):
    """The models by upstream's names, see `models.MODELS`, those that may be missing as None, and what is between them.

    Raises ValueError for models that do not fit together.
    """

    ss_sampling: Sampling = Sampling(25, 7.0, 3.0)
    slat_sampling: Sampling = Sampling(25, 1.0, 1.0)
    preprocessing: Preprocessing = Preprocessing()
    prune_distance: int = 1
    slat_mean: tuple[float, ...] = SLAT_MEAN
    slat_std: tuple[float, ...] = SLAT_STD

    def __post_init__(self):
        if missing := [name for name, model in MODELS.items() if not model.optional and getattr(self, name) is None]:
            raise ValueError(f"{missing[0]}: expected a {MODELS[missing[0]].config.__name__}, given None")
        check_size("prune_distance", self.prune_distance, 0)
        for name in ("slat_mean", "slat_std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            if len(getattr(self, name)) != self.slat_generator.out_channels:
                raise ValueError(
                    f"{name}: expected {self.slat_generator.out_channels} numbers, as many as the channels of the structured "
                    f"latents, given {len(getattr(self, name))}"
                )
        for model, config in self.models.items():
            for name, given, expected in MODELS[model].fits(model, config, self):
                if given != expected:
                    raise ValueError(f"{name}: expected {expected}, as the model before it has, given {given}")

    @property
    def models(self) -> dict[str, Any]:
        """The configs of the models that there are, in the order in which they run."""
        return {name: getattr(self, name) for name in MODELS if getattr(self, name) is not None}

    def to_json(self) -> dict[str, Any]:
        value = dataclasses.asdict(self)
        if not self.preprocessing.structure_sees_crop:  # as it was before there was this option, which digests are made of
            del value["preprocessing"]["structure_sees_crop"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "PipelineConfig":
        """ValueError for anything that `to_json` does not return."""
        try:
            rest = {"ss_sampling": Sampling, "slat_sampling": Sampling, "preprocessing": Preprocessing}
            makers = {name: model.from_json for name, model in MODELS.items()}
            makers |= {name: lambda values, make=make: make(**values) for name, make in rest.items()}
            return cls(
                **{key: makers[key](part) if key in makers and part is not None else part for key, part in value.items()}
            )
        except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"not the config of a pipeline: {type(error).__name__} {error}") from error


def _preset(name: str, **rest: Any) -> PipelineConfig:
    return PipelineConfig(**{key: model.presets[name] for key, model in MODELS.items() if name in model.presets}, **rest)


# Of pipelines with random weights: "random-tiny" keeps the whole structure and runs in seconds, "full" are the sizes of
# SAM-3D-Objects. The one that is trained is `tiny.TINY`.
PRESETS = {
    "random-tiny": _preset(
        "tiny",
        ss_sampling=Sampling(8, 7.0, 3.0),
        slat_sampling=Sampling(8, 1.0, 1.0),
        preprocessing=Preprocessing(size=112),
    ),
    "full": _preset("full"),
}


def preset(name: str, depth_model: bool = False) -> PipelineConfig:
    """A config of `PRESETS`, without its depth model unless that is asked for; ValueError for another name."""
    check_choice("preset", name, PRESETS)
    return PRESETS[name] if depth_model else dataclasses.replace(PRESETS[name], depth_model=None)
