"""A network of a golden file, computed in several ways: eagerly, compiled at the file's rows, and compiled for any rows.

All are compared by the names of the file, rows sorted by coordinates. Compiled networks are shared by all that ask for the
same in one process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from types import ModuleType

import numpy as np
import torch
from torch.export import Dim

import sparse_ops.torch.spconv
from sparse_ops.deploy import Component
from sparse_ops.deploy.from_torch import port_component
from tests.golden.case import Tensors
from tests.golden.networks import second, spunet, trellis_meshdec, voxelnext
from tests.golden.networks.recorded import Recorded, module_of

BUILDERS = {
    "second": second.build,
    "second_res": second.build,
    "spunet": spunet.build,
    "trellis_meshdec": trellis_meshdec.build,
    "voxelnext": voxelnext.build,
}
ONE_BY_ONE = ("trellis_meshdec",)  # takes batch elements one after the other
DROP_IN = sparse_ops.torch.spconv


class Network:
    """A network of kind `kind` with the parameters of a file; `options` go to its builder."""

    def __init__(self, kind: str, tensors: Tensors, config: dict, **options):
        self.kind, self.tensors, self.config, self.options = kind, tensors, config, options
        self._compiled: dict[tuple, Component] = {}

    def built(self, spconv: ModuleType = DROP_IN) -> Recorded:
        """The network, in evaluation mode, with what the file records."""
        network = BUILDERS[self.kind](spconv, self.config, **self.options)
        state = {name.removeprefix("state."): x for name, x in self.tensors.items() if name.startswith("state.")}
        network.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in state.items()})
        return Recorded(network, self.recorded).eval()

    @property
    def recorded(self) -> dict[str, str]:
        names = {name.split(".")[1] for name in self.tensors if name.startswith("mid.")}
        return {name: module_of(name, self.config) for name in sorted(names)}

    @cached_property
    def module(self) -> Recorded:
        """Built with the drop-in."""
        return self.built()

    def inputs(self, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Features and coordinates: all as they were fed, or the first by coordinates, which have neighbours."""
        feats, coords = self.tensors["in.feats"], self.tensors["in.coords"]
        if rows is not None:
            order = np.lexsort(coords.T[::-1])[:rows]
        elif self.kind in ONE_BY_ONE:
            order = np.argsort(coords[:, 0], kind="stable")
        else:
            return feats, coords
        return feats[order], coords[order]

    def eager(self, rows: int | None = None, module: torch.nn.Module | None = None) -> Tensors:
        with torch.no_grad():
            found = (module or self.module)(*map(torch.from_numpy, self.inputs(rows)))
        return by_name(found)

    def compiled(self, symbolic: bool = True, precision: str = "float32") -> Component:
        """Of this network, for any number of rows or those of the file."""
        key = symbolic, precision
        if key not in self._compiled:
            n = Dim("n")
            dynamic = {"features": {0: n}, "indices": {0: n}} if symbolic else None
            inputs = tuple(map(torch.from_numpy, self.inputs()))
            self._compiled[key] = port_component(self.module, inputs, self.kind, dynamic=dynamic, precision=precision)
        return self._compiled[key]

    def run(self, component: Component, rows: int | None = None) -> Tensors:
        return by_name(component(*self.inputs(rows)))


def network_of(kind: str, tensors: Tensors, config: dict, **options) -> Network:
    """The network of a file, the same for all that ask for it."""
    digest = hashlib.sha256(repr((kind, sorted(options.items()))).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return _networks.setdefault(digest.digest(), Network(kind, tensors, config, **options))


_networks: dict[bytes, Network] = {}


def by_name(found: Mapping[str, Mapping]) -> Tensors:
    """What a recorded network returned, by the names of a file."""
    result = {}
    for name, parts in found.items():
        coords = np.asarray(parts["coords"])
        order = np.lexsort(coords.T[::-1])
        prefix = "out" if name == "out" else f"mid.{name}"
        result[f"{prefix}.coords"] = coords[order]
        result[f"{prefix}.feats"] = np.asarray(parts["feats"])[order]
        result[f"{prefix}.spatial_shape"] = np.asarray(parts["spatial_shape"])
    return result
