"""Single layers of spconv and one chain as a network: results of all layers by name."""

from functools import cached_property, partial
from types import ModuleType

import numpy as np
import torch
from torch import nn
from torch.export import Dim

import sparse_ops.torch.spconv
from sparse_ops.deploy import Component
from sparse_ops.deploy.from_torch import port_component
from tests.golden.case import Tensors
from tests.golden.networks.recorded import arrays_of
from tests.golden.together import run_together

AXES = 3  # at most; layers of more are refused


class Torture(nn.Module):
    """{name: (features, indices)} of all inputs to {name: {"feats", "coords", "spatial_shape"}} of all layers."""

    def __init__(self, spconv: ModuleType, config: dict, shapes: dict[str, list[int]]):
        super().__init__()
        self.sparse_tensor, self.batch_size, self.shapes = spconv.SparseConvTensor, config["batch_size"], shapes
        self.add, self.added = spconv.functional.sparse_add, config.get("extra", {}).get("sparse_add")
        self.given = {layer["name"]: layer["input"] for layer in config["layers"] if len(layer["kernel"]) <= AXES}
        layers = [layer for layer in config["layers"] if layer["name"] in self.given]
        self.layers = nn.ModuleDict({layer["name"]: layer_of(spconv, layer) for layer in layers})

    def inputs(self, given: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict:
        return {
            name: self.sparse_tensor(features, indices, self.shapes[name], self.batch_size)
            for name, (features, indices) in given.items()
        }

    def forward(self, given: dict[str, tuple[torch.Tensor, torch.Tensor]]):
        results = self.inputs(given)
        for name, layer in self.layers.items():
            results[name] = layer(results[self.given[name]])
        found = {name: arrays_of(results[name]) for name in self.layers}
        if self.added:
            found["sparse_add"] = arrays_of(self.add(*[results[name] for name in self.added]))
        return found


def layer_of(spconv: ModuleType, layer: dict) -> nn.Module:
    """The layer of a config entry. ValueError if there is none of so many axes."""
    channels = () if layer["kind"] == "maxpool" else (layer["c_in"], layer["c_out"])
    return getattr(spconv, layer["op"])(*channels, **layer["ctor"])


class DropIn:
    """The layers of a file through `sparse_ops.torch.spconv`."""

    def __init__(self, tensors: Tensors, config: dict, functions: dict | None = None):
        """`functions`: of eager calls, see `run_together`."""
        self.tensors, self.config, self._functions = tensors, config, {} if functions is None else functions

    def inputs(self, rows: int | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Features and coordinates of every input, all or the first by coordinates, which have neighbours."""
        found = {}
        for name in sorted({key.split(".")[0] for key in self.tensors if key.startswith("in")}):
            feats, coords = self.tensors[f"{name}.feats"], self.tensors[f"{name}.coords"]
            order = slice(None) if rows is None else np.lexsort(coords.T[::-1])[:rows]
            found[name] = feats[order], coords[order]
        return found

    def shape(self, name: str) -> list[int]:
        return self.tensors[f"{name}.spatial_shape"].tolist()

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """Parameters of a layer."""
        prefix = f"state.{name}."
        found = {key.removeprefix(prefix): x for key, x in self.tensors.items() if key.startswith(prefix)}
        return {key: torch.from_numpy(np.array(x)) for key, x in found.items()}

    def eager(self, rows: int | None = None) -> dict:
        """{"feats", "coords", "spatial_shape"} of every layer, or the ValueError that refuses it."""
        spconv, results = sparse_ops.torch.spconv, {}
        jobs = {name: partial(self._input, name, *given) for name, given in self.inputs(rows).items()}
        jobs |= {layer["name"]: partial(self._result, layer, results) for layer in self.config["layers"]}
        if added := self.config.get("extra", {}).get("sparse_add"):
            jobs["sparse_add"] = lambda: spconv.functional.sparse_add(*[results[name] for name in added])
        with torch.no_grad():
            for name, result in run_together(jobs, self._functions):
                results[name] = result
        return {name: x if isinstance(x, ValueError) else arrays_of(x) for name, x in results.items()}

    def _input(self, name: str, feats: np.ndarray, coords: np.ndarray):
        spconv, tensors = sparse_ops.torch.spconv, map(torch.from_numpy, (feats, coords))
        try:
            return spconv.SparseConvTensor(*tensors, self.shape(name), self.config["batch_size"])
        except ValueError as error:
            if coords.shape[1] - 1 <= AXES:
                raise
            return error

    def _result(self, layer: dict, results: dict):
        """What a layer makes of its input; KeyError while that is not there."""
        x = results[layer["input"]]
        try:
            made = layer_of(sparse_ops.torch.spconv, layer)
        except ValueError as error:
            if len(layer["kernel"]) <= AXES:
                raise
            return error
        if isinstance(x, ValueError):
            return x
        made.load_state_dict(self.state(layer["name"]))
        return made.eval()(x)

    @cached_property
    def component(self) -> Component:
        """All layers compiled as one network, for any rows."""
        given = {name: x for name, x in self.inputs().items() if x[1].shape[1] - 1 <= AXES}
        network = Torture(sparse_ops.torch.spconv, self.config, {name: self.shape(name) for name in given})
        for name, layer in network.layers.items():
            layer.load_state_dict(self.state(name))
        tensors = {name: tuple(map(torch.from_numpy, x)) for name, x in given.items()}
        dynamic = {"given": {name: ({0: n}, {0: n}) for name in given for n in [Dim(name)]}}
        return port_component(network.eval(), (tensors,), "torture", dynamic=dynamic)

    def compiled(self, rows: int | None = None) -> dict:
        given = {name: x for name, x in self.inputs(rows).items() if x[1].shape[1] - 1 <= AXES}
        return self.component(given)
