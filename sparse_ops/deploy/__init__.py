"""Compiled models as files: from torch.export or from `sparse_ops.nn` to a folder that runs without either.

- `Component`: functions over one set of named parameters, in memory and as a folder;
- `port_component` makes one of a PyTorch module (only this needs torch), `component_from_nn` of a `sparse_ops.nn` module,
  `component_from_relax` of any Relax module;
- `calibrate` tells a component of integer layers, `precision="int8"`, which of their input channels to keep in floats;
- `load_state`, `LazyArray`, `State`: weights by name.
"""

from sparse_ops.deploy.calibrate import calibrate
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_nn import component_from_nn
from sparse_ops.deploy.from_relax import component_from_relax
from sparse_ops.deploy.weights import LazyArray, State, load_state

__all__ = [
    "Component",
    "LazyArray",
    "State",
    "calibrate",
    "component_from_nn",
    "component_from_relax",
    "load_state",
    "port_component",
]


def __getattr__(name: str):
    """`port_component`, and torch with it, is imported when it is asked for."""
    if name == "port_component":
        from sparse_ops.deploy.from_torch import port_component

        return port_component
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
