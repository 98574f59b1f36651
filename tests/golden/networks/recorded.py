"""A network together with what a golden file records of it: the sparse tensors that some of its modules return."""

from contextlib import ExitStack
from functools import partial

import torch
from torch import nn


class Recorded(nn.Module):
    """Features and indices to what each module recorded returns, and to the result, "out", by name."""

    def __init__(self, network: nn.Module, modules: dict[str, str]):
        super().__init__()
        self.network, self.modules_recorded = network, modules

    def forward(self, features: torch.Tensor, indices: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        found: dict[str, dict[str, torch.Tensor]] = {}
        with ExitStack() as hooks:
            for name, path in self.modules_recorded.items():
                hook = self.network.get_submodule(path).register_forward_hook(partial(_record, found, name))
                hooks.callback(hook.remove)
            found["out"] = arrays_of(self.network(features, indices))
        return found


def _record(found: dict, name: str, module: nn.Module, given: tuple, result) -> None:
    found[name] = arrays_of(result)


def arrays_of(x) -> dict[str, torch.Tensor]:
    # A copy of the indices: a network may change them in place later on.
    shape = torch.stack([_scalar(n) for n in x.spatial_shape])
    return {"feats": x.features, "coords": x.indices.clone(), "spatial_shape": shape.int()}


def _scalar(n) -> torch.Tensor:
    return torch.tensor(n) if isinstance(n, int) else torch.scalar_tensor(n, dtype=torch.int64)


def module_of(name: str, config: dict) -> str:
    """Where the network has what a file calls `mid.<name>`: as the config says, or by that name, or with dots in it."""
    listed = config.get("mid_modules", {})
    named = any(f"{layer['name']}.".startswith(f"{name}.") for layer in config["trace"])
    return listed.get(name, name if named else name.replace("_", "."))
