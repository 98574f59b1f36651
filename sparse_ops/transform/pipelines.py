"""One pipeline a kind of target, from a Relax module to a compiled one. Another kind of target is one more row."""

from collections.abc import Callable

import tvm

from .cpu.pipeline import cpu_pipeline
from .cuda.pipeline import cuda_packing_pipeline, cuda_pipeline
from .precision import check_precision

PIPELINES: dict[str, Callable[..., tvm.transform.Pass]] = {"llvm": cpu_pipeline, "cuda": cuda_pipeline}


def pipeline_for(target: tvm.target.Target, precision: str = "float32", lift_params: bool = False) -> tvm.transform.Pass:
    """The passes for `target`; options as in `cpu_pipeline`. ValueError for a kind of target that has none, and for a
    precision that it has not."""
    kind = target.kind.name
    if kind not in PIPELINES:
        raise ValueError(f"target: expected one of kind {', '.join(map(repr, PIPELINES))}, given kind {kind!r}")
    check_precision(precision, target)
    return PIPELINES[kind](precision, lift_params)


def packing_pipeline_for(target: tvm.target.Target, precision: str = "float32") -> tvm.transform.Pass | None:
    """The passes after which functions that pack parameters for `target` run on this CPU.

    None where they do so after those of `pipeline_for`, if the CPU has the instructions.
    """
    return cuda_packing_pipeline(precision) if target.kind.name == "cuda" else None
