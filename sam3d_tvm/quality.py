"""How both generators of a run are sampled: what options ask for, in place of what a checkpoint says; names for whole choices.

Here stands all that decides how many evaluations a run takes, and how many that will be.
"""

from dataclasses import dataclass, replace

import numpy as np

from sam3d_tvm.checks import check_choice, check_size
from sam3d_tvm.config import PipelineConfig, Sampling
from sam3d_tvm.sampler import Evaluations, Guidance, sample_flow, sample_shortcut
from sam3d_tvm.velocity_caching import NO_CACHE, GuidanceReuse, Linear, Saving, cache_named
from sam3d_tvm.velocity_caching.saving import Cache

SHORTCUT_STEPS = 4  # of a structure in few steps, unless a number is given
FEWEST_CACHED_SHORTCUT_STEPS = 8  # with fewer, each is too long for the velocity of another to stand for its own
STAGES = ("structure", "latents")  # those that evaluate a velocity


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A choice of all that decides how many evaluations a run takes; None is what the checkpoint says.

    steps, guidance, interval: of the structure, the others of the structured latents: how many, the strength of guidance and
    the interval in which it counts, see `Sampling`. shortcut: a structure in few steps without guidance. The rest is as of
    `Pipeline.steps`.
    """

    steps: int | None = None
    slat_steps: int | None = None
    guidance: float | None = None
    slat_guidance: float | None = None
    interval: tuple[float, float] | None = None
    slat_interval: tuple[float, float] | None = None
    shortcut: bool = False
    structure_cache: str | Cache = NO_CACHE
    latents_cache: str | Cache = NO_CACHE
    reuse_guidance: GuidanceReuse | None = None


EXACT = Quality()
# The numbers are chosen by what they cost in quality and in time; docs/pipeline.md has the table.
QUALITIES = {
    "exact": EXACT,
    "normal": Quality(
        interval=(0.0, 250.0), slat_interval=(0.0, 250.0), structure_cache=Linear(interval=3), latents_cache=Linear(interval=3)
    ),
    "draft": Quality(slat_steps=6, slat_guidance=0.0, shortcut=True),
}


@dataclass(frozen=True)
class StagePlan:
    """How one generator is sampled. `argument`: what its cache is called by users. ValueError for a cache with so few steps
    that it saves nothing."""

    sampling: Sampling
    saving: Saving
    argument: str
    shortcut: bool = False

    def __post_init__(self):
        steps = self.sampling.steps
        if self.shortcut and self.saving.cache is not None and steps < FEWEST_CACHED_SHORTCUT_STEPS:
            raise ValueError(
                f"{self.argument}: expected none with shortcut of fewer than {FEWEST_CACHED_SHORTCUT_STEPS} steps, given "
                f"{steps} and {type(self.saving.cache).__name__}"
            )
        self.saving.check_steps(self.argument, steps)

    @property
    def guidance(self) -> Guidance | None:
        """That of the sampler; none with `shortcut`."""
        return None if self.shortcut else Guidance(self.sampling.strength, self.sampling.interval)

    @property
    def is_known(self) -> bool:
        """Whether it is known before the run which velocities are evaluated."""
        return self.saving.at_most == self.saving

    def at_most(self) -> Evaluations:
        """The evaluations that a run makes, or the most of them where only a run can tell: of a sampler that walks without a
        model."""
        found, sampling = self.saving.at_most.begin(), self.sampling
        options = {"rescale_t": sampling.rescale_t, "guidance": self.guidance, "evaluations": found}
        if self.argument == "structure_cache":
            sample_shortcut(lambda x, time, d, conditional: x, np.zeros(1, np.float32), sampling.steps, **options)
        else:
            sample_flow(lambda x, time, conditional: x, np.zeros(1, np.float32), sampling.steps, **options)
        return found


@dataclass(frozen=True)
class Plan:
    """How both generators are sampled."""

    structure: StagePlan
    latents: StagePlan

    def at_most(self) -> dict[str, int]:
        """The most evaluations of each stage, as of `StagePlan.at_most`."""
        return {name: getattr(self, name).at_most().in_all for name in STAGES}


def plan(
    config: PipelineConfig,
    quality: str | Quality | None = None,
    *,
    steps: int | None = None,
    slat_steps: int | None = None,
    guidance: float | None = None,
    slat_guidance: float | None = None,
    shortcut: bool = False,
    structure_cache: str | Cache | None = None,
    latents_cache: str | Cache | None = None,
    reuse_guidance: bool | GuidanceReuse | None = None,
) -> Plan:
    """What options of `Pipeline.steps` ask for, and `quality` where they are silent, and the checkpoint where that is, too.

    ValueError for a quality, a cache or a number that there is not, and for a cache with so few steps that it saves nothing.
    """
    chosen = as_quality(quality)
    if slat_steps is None:
        slat_steps = chosen.slat_steps if steps is None else steps
    if structure_cache is None:  # a cache that nobody asked for does not stand in the way of few steps
        structure_cache = NO_CACHE if shortcut and not chosen.shortcut else chosen.structure_cache
    shortcut = bool(shortcut or chosen.shortcut)
    if steps is None:
        steps = SHORTCUT_STEPS if shortcut and chosen.steps is None else chosen.steps
    latents_cache = chosen.latents_cache if latents_cache is None else latents_cache
    reused = _reused(chosen.reuse_guidance if reuse_guidance is None else reuse_guidance)
    guidance = chosen.guidance if guidance is None else guidance
    slat_guidance = chosen.slat_guidance if slat_guidance is None else slat_guidance
    first = _sampling(config.ss_sampling, "steps", steps, "guidance", guidance, chosen.interval)
    second = _sampling(config.slat_sampling, "slat_steps", slat_steps, "slat_guidance", slat_guidance, chosen.slat_interval)
    return Plan(
        StagePlan(first, Saving(cache_named("structure_cache", structure_cache), reused), "structure_cache", shortcut),
        StagePlan(second, Saving(cache_named("latents_cache", latents_cache), reused), "latents_cache"),
    )


def as_quality(quality: str | Quality | None) -> Quality:
    """That of a name of `QUALITIES`, by default `EXACT`; ValueError for another value."""
    if isinstance(quality, Quality):
        return quality
    if quality is not None:
        check_choice("quality", quality, QUALITIES)
    return EXACT if quality is None else QUALITIES[quality]


def _reused(value: bool | GuidanceReuse | None) -> GuidanceReuse | None:
    if value is None or isinstance(value, GuidanceReuse):
        return value
    if not isinstance(value, bool):
        raise ValueError(f"reuse_guidance: expected a GuidanceReuse, True or False, given {value!r}")
    return GuidanceReuse() if value else None


def _sampling(
    default: Sampling,
    steps_name: str,
    steps: int | None,
    strength_name: str,
    strength: float | None,
    interval: tuple[float, float] | None,
) -> Sampling:
    """`default` with what was given in place of its own. ValueError with the name of the argument."""
    if steps is not None:
        check_size(steps_name, steps, 1)
        default = replace(default, steps=steps)
    if strength is not None:
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not np.isfinite(strength):
            raise ValueError(f"{strength_name}: expected a finite number, given {strength!r}")
        default = replace(default, strength=float(strength))
    return default if interval is None else replace(default, interval=interval)
