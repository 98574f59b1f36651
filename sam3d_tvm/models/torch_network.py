"""Networks in PyTorch, which come to us by torch.export: one image or object at a time.

Torch is imported when a network is asked for, in files that end in `_torch`: what is compiled runs without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from sparse_ops.deploy.component import Component
from sparse_ops.deploy.weights import State, check_arrays


@dataclass(frozen=True)
class TorchNetwork:
    """`network()`: the class, whose instance of a config is a torch.nn.Module; `inputs(module, **options)`: example inputs of
    every method that is compiled; `dynamic(module)`: which of their sizes are any, and `products_only`,
    as `port_component` takes them.

    Both import torch. The methods raise ValueError where it is not installed.
    """

    network: Callable[[], Callable[[Any], Any]]
    inputs: Callable[..., Mapping[str, tuple]]
    dynamic: Callable[[Any], Mapping[str, Any] | None] = lambda module: None
    products_only: bool = False

    def shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter."""
        return {name: tuple(value.shape) for name, value in self._empty(config).state_dict().items()}

    def compile(
        self, config: Any, state: State, name: str, precision: str, target: tvm.target.Target | None, **options: Any
    ) -> Component:
        """The component of a config with the weights of `state`.

        Sizes that are not `dynamic` are numbers, as compiling for any takes longer. Raises ValueError for a state that does not
        fit, see `check_arrays`, and as `port_component`.
        """
        module = self._empty(config)
        import torch

        from sparse_ops.deploy.from_torch import port_component

        shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        check_arrays(shapes, state)
        tensors = {key: torch.from_numpy(np.ascontiguousarray(np.asarray(state[key]), np.float32)) for key in shapes}
        module.load_state_dict(tensors, assign=True)  # over the memory of the state, which may be a mapped file
        inputs, dynamic = self.inputs(module, **options), self.dynamic(module)
        module = module.requires_grad_(False).eval()
        # Its example is a whole pass of a large network, and golden files hold its numbers.
        options = {"dynamic": dynamic, "precision": precision, "products_only": self.products_only}
        return port_component(module, inputs, name, target=target, check=False, **options)

    def _empty(self, config: Any) -> Any:
        """The module without memory for its parameters."""
        try:
            import torch
        except ImportError as error:
            raise ValueError(
                f"torch: needed to compile this model, not to run it: pip install 'sam3d-tvm[torch]' ({error})"
            ) from error
        make = self.network()  # imported first: what its file makes is no parameter, and needs memory
        with torch.device("meta"):
            return make(config)
