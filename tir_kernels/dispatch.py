"""Which kernel runs where: for every family its implementations, best first, and the first that accepts is taken.

    kernel_for(SparseConv(64, 64, (3, 3, 3)), target) -> Kernel: function, weight layout, map layout

All choices between kernels are made by what `accepts` says of the rows in `cpu.table` and `cuda.table`; nothing above asks what
a target is. An implementation for another kind of target is a row of another table.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .cpu import table as cpu
from .cpu.isa import Isa, forced, host_target
from .cpu.table import PAIRS as PAIRS  # the layout of maps on CPUs
from .cpu.threads import note_use
from .cuda import table as cuda
from .cuda.gpu import Gpu
from .implementation import Implementation, Kernel, Target
from .layout import MapLayout
from .spec import Spec
from .spec.kernel_map import InverseMap

KERNELS: dict[str, tuple[Implementation, ...]] = {
    family: (*rows, *cuda.KERNELS.get(family, ())) for family, rows in cpu.KERNELS.items()
}


@dataclass(frozen=True, eq=False)
class TargetKind:
    """A kind of targets that has kernels: its name; what decides compiled code besides descriptions; see `fastest_features`;
    and why there are none for a target of the kind, if so."""

    name: str
    fingerprint: Callable[[Target], str]
    fastest_features: Callable[[Target], str]
    problem: Callable[[Target], str | None] = lambda target: None


KINDS: dict[str, TargetKind] = {
    "llvm": TargetKind(
        "CPU",
        fingerprint=lambda target: str(Isa.of(target)),
        fastest_features=lambda target: "bfloat16" if Isa.of(target).bf16_dot else "float32",
    ),
    "cuda": TargetKind(
        "CUDA",
        fingerprint=lambda target: str(Gpu.of(target)),
        fastest_features=lambda target: "float16",
        problem=lambda target: Gpu.of(target).problem(),
    ),
}


def current_target(target: Target | None = None) -> Target:
    """`target`, else that of the current target scope, else the host's CPU."""
    return target or Target.current(allow_none=True) or host_target()


def implementation_for(spec: Spec, target: Target | None = None) -> Implementation:
    """The first implementation that accepts, for `target` (see `current_target`).

    Raises ValueError, with every implementation's reason, when none does.
    """
    target = current_target(target)
    reasons = []
    for implementation in KERNELS[spec.family]:
        reason = implementation.accepts(spec, target)
        if reason is None:
            return implementation
        reasons.append(f"{implementation.name}: {reason}")
    raise ValueError(f"{spec.family}: no kernel for {spec} on target {target}: {'; '.join(reasons)}")


def kernel_for(spec: Spec, target: Target | None = None) -> Kernel:
    """The kernel of `implementation_for`. ValueError as there."""
    target = current_target(target)
    note_use()
    return implementation_for(spec, target).make(spec, target)


def fastest_features(target: Target | None = None) -> str:
    """The dtype of features whose products are fastest on `target`: "float16", "bfloat16" or "float32".

    Raises ValueError when there are no kernels for targets of that kind.
    """
    target = current_target(target)
    check_target(target)
    return KINDS[target.kind.name].fastest_features(target)


def map_layout(target: Target | None = None) -> MapLayout:
    """The layout of every kernel map on `target`, for what reads maps without a kernel. Raises ValueError as `kernel_for`."""
    return kernel_for(InverseMap(), target).map


def check_target(target: Target) -> None:
    """ValueError unless there are kernels for `target`."""
    if target.kind.name not in KINDS:
        expected = " or ".join(f"a {known.name} target of kind {kind!r}" for kind, known in KINDS.items())
        raise ValueError(f"target: expected {expected}, given kind {target.kind.name!r}")
    if problem := KINDS[target.kind.name].problem(target):
        raise ValueError(f"target: {problem}")


def fingerprint(target: Target | None = None) -> str:
    """What decides compiled code on `target` besides descriptions: equal where the same kernels are chosen and made.

    Raises ValueError when there are no kernels for targets of that kind.
    """
    target = current_target(target)
    check_target(target)
    return KINDS[target.kind.name].fingerprint(target)


def choice() -> object:
    """What, besides the target in scope, the choice of kernels depends on here and now: for keys of caches, at no cost."""
    return forced()
