"""The network of the condition embedder, which is in PyTorch."""

from typing import Any

from sam3d_tvm.models.condition_embedder.config import EmbedderFuserConfig
from sam3d_tvm.models.torch_network import TorchNetwork


def _module(config: EmbedderFuserConfig) -> Any:
    from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser

    return EmbedderFuser(config)


NETWORK = TorchNetwork(_module, lambda module: module.inputs())
