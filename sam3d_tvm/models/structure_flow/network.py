"""The network of the structure flow, which is in PyTorch."""

from collections.abc import Mapping
from typing import Any

from sam3d_tvm.models.torch_network import TorchNetwork


def _network() -> type:
    from sam3d_tvm.models.structure_flow.network_torch import StructureFlowModel

    return StructureFlowModel


def _inputs(module: Any, cond_tokens: int) -> Mapping[str, tuple]:
    """`cond_tokens`: of the condition."""
    from sam3d_tvm.models.structure_flow.network_torch import export_arguments

    return export_arguments(module.config, batch=1, tokens=cond_tokens)[0]


NETWORK = TorchNetwork(_network, _inputs)
