"""Guided steps whose velocity without the condition is not evaluated: the difference that it made before is used again."""

from dataclasses import dataclass

import numpy as np

from sam3d_tvm.checks import check_size
from sam3d_tvm.sampler import Call, GuidanceCache, Sample
from sam3d_tvm.velocity_caching.norms import check_number, norms


@dataclass(frozen=True, kw_only=True)
class GuidanceReuse:
    """Where guidance changed little it is not measured again at once.

    A guided evaluation with both velocities, v with the condition and u without, measures the difference v - u and the share
    strength * |v - u| / |v| that guidance has in what is followed, in a dict the greatest of its arrays. While the share that
    was measured last is below `share`, up to `longest` guided evaluations in a row go without u: they follow
    v + strength * (v' - u') with the difference that was measured last. With a share of 0 both are always evaluated.
    """

    share: float = 0.2
    longest: int = 2

    def __post_init__(self):
        check_number("share", self.share, 0.0)
        check_size("longest", self.longest, 1)

    def begin(self) -> GuidanceCache:
        """What a sampler asks in one run."""
        return _GuidanceReuse(self)


class _GuidanceReuse:
    """A `GuidanceCache` of a `GuidanceReuse`."""

    def __init__(self, settings: GuidanceReuse):
        self._settings = settings
        self._difference: Sample | None = None
        self._share, self._without = np.inf, 0

    def evaluates(self, call: Call) -> bool:
        if not self._share < self._settings.share or self._without == self._settings.longest:
            return True
        self._without += 1
        return False

    def learn(self, call: Call, conditional: Sample, unconditional: Sample, strength: float) -> None:
        if isinstance(conditional, dict):
            self._difference = {name: conditional[name] - unconditional[name] for name in conditional}
        else:
            self._difference = conditional - unconditional
        change, whole = abs(strength) * norms(self._difference), norms(conditional)
        shares = np.divide(change, whole, out=np.where(change == 0, 0.0, np.inf), where=whole != 0)
        self._share, self._without = float(shares.max()), 0

    def guide(self, conditional: Sample, strength: float) -> Sample:
        if isinstance(conditional, dict):
            return {name: v + v.dtype.type(strength) * self._difference[name] for name, v in conditional.items()}
        return conditional + conditional.dtype.type(strength) * self._difference
