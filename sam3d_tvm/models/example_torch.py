"""A module with example inputs: what `validate` and the benchmarks port, run and compare."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sparse_ops.deploy.component import Component

SIZES = ("tiny", "full")


@dataclass(frozen=True)
class Example:
    """One component at one size.

    `inputs` and `dynamic` by method, as `port_component` takes them. `reference()` is what PyTorch computes, `run(component)`
    returns the same call of the compiled component; both return arrays by name. `arguments`: of that call.
    """

    module: torch.nn.Module
    inputs: Mapping[str, tuple]
    reference: Callable[[], Mapping[str, torch.Tensor]]
    run: Callable[[Component], Callable[[], Mapping[str, Any]]]
    dynamic: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple = ()


def seeded(make: Callable[[], torch.nn.Module], seed: int = 0) -> torch.nn.Module:
    """The module that `make` builds, in evaluation mode, with random parameters that keep the size of what flows through it.

    Matrices are normal with the variance of one over their inputs; of the rest biases and tokens are around 0, gains around 1.
    """
    with torch.device("meta"):
        module = make()
    module = module.to_empty(device="cpu").requires_grad_(False).eval()
    random = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.normal_(generator=random)
        if parameter.ndim > 1 and name.endswith("weight"):
            parameter.mul_(parameter[0].numel() ** -0.5)
        else:
            parameter.mul_(0.1)
            if name.endswith(("weight", "gamma")):
                parameter.add_(1.0)
    return module
