"""The choice of what is saved in the runs of one generator, and the names of caches."""

from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any, TypeAlias

from sam3d_tvm.checks import check_choice
from sam3d_tvm.sampler import Evaluations
from sam3d_tvm.velocity_caching.caches import ErrorBounded, Hermite, Linear
from sam3d_tvm.velocity_caching.guidance import GuidanceReuse

Cache: TypeAlias = Linear | Hermite | ErrorBounded

NO_CACHE = "none"
CACHES: dict[str, type[Cache] | None] = {NO_CACHE: None, "linear": Linear, "hermite": Hermite, "error": ErrorBounded}


@dataclass(frozen=True)
class Saving:
    """cache: which velocities are forecast; guidance: which guided ones are evaluated without the condition; None: all."""

    cache: Cache | None = None
    guidance: GuidanceReuse | None = None

    def begin(self) -> Evaluations:
        """What a sampler asks in one run."""
        return Evaluations(*(part and part.begin() for part in (self.cache, self.guidance)))

    @property
    def at_most(self) -> "Saving":
        """The same without what only a run tells: as many evaluations as there are at most."""
        return replace(self, cache=None if isinstance(self.cache, ErrorBounded) else self.cache, guidance=None)

    def check_steps(self, name: str, steps: int) -> None:
        """ValueError, with the name of the argument, for so few steps that all are evaluated."""
        if self.cache is not None and not self.cache.skips(steps):
            least = next(number for number in count(1) if self.cache.skips(number))
            raise ValueError(f"{name}: expected at least {least} steps, as fewer are all evaluated, given {steps}")

    def to_json(self, prefix: str, cache: str) -> dict[str, Any]:
        """What is saved, by the names of options, the first one behind `prefix`; nothing of what is not."""
        found: dict[str, Any] = {}
        if self.cache is not None:
            kind = next(name for name, made in CACHES.items() if made is type(self.cache))
            found[cache] = {"kind": kind, **asdict(self.cache)}
        if self.guidance is not None:
            found[f"{prefix}reuse_guidance"] = asdict(self.guidance)
        return found


EVERYTHING = Saving()  # is evaluated


def cache_named(name: str, value: "str | Cache") -> Cache | None:
    """The cache of a name of `CACHES`, or that which is given. ValueError, with the name of the argument, for another value."""
    if isinstance(value, (Linear, Hermite, ErrorBounded)):
        return value
    check_choice(name, value, CACHES)
    made = CACHES[value]
    return None if made is None else made()
