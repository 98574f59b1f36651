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
    returns the same call of the compiled component; both return arrays by name. `arguments`: of that call. `make_outliers()`
    changes parameters of the module so that a few channels of what its layers read stand out, as trained ones
    may. `products_only` as `port_component` takes it.
    """

    module: torch.nn.Module
    inputs: Mapping[str, tuple]
    reference: Callable[[], Mapping[str, torch.Tensor]]
    run: Callable[[Component], Callable[[], Mapping[str, Any]]]
    dynamic: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple = ()
    make_outliers: Callable[[], None] | None = None
    products_only: bool = False


OUTLIERS = (100.0, 700.0)  # what channels that stand out are multiplied by


def outlier_factors(channels: int, count: int = 8) -> torch.Tensor:
    """float32 [channels]: `count` of `OUTLIERS`, spread over all channels, and 1."""
    factors = torch.ones(channels)
    factors[torch.linspace(0, channels - 1, count).long()] = torch.linspace(*OUTLIERS, count)
    return factors


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
