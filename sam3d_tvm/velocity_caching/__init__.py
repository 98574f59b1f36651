"""Fewer evaluations of a flow model without training: velocities that are forecast from earlier ones, and differences by
guidance that are used again. A `Saving` is such a choice for one generator; a sampler asks what its `begin` returns.

`Linear` and `ErrorBounded`, with the numbers that they have here, are those of Fast-SAM3D (Feng et al., arXiv:2602.05293),
found for this very model; `Hermite` follows the forecasts of HiCache (Feng et al., arXiv:2508.16984), on uneven steps. None
of their code is in here.
"""

from sam3d_tvm.velocity_caching.caches import ErrorBounded, Hermite, Linear
from sam3d_tvm.velocity_caching.guidance import GuidanceReuse
from sam3d_tvm.velocity_caching.saving import CACHES, EVERYTHING, NO_CACHE, Saving, cache_named

__all__ = ["CACHES", "EVERYTHING", "NO_CACHE", "ErrorBounded", "GuidanceReuse", "Hermite", "Linear", "Saving", "cache_named"]
