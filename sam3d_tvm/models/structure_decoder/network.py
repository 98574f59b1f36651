"""The network of the structure decoder, which is in PyTorch."""

from collections.abc import Mapping
from typing import Any

from sam3d_tvm.models.torch_network import TorchNetwork


def _network() -> type:
    from sam3d_tvm.models.structure_decoder.network_torch import StructureDecoderModel

    return StructureDecoderModel


def _inputs(module: Any) -> Mapping[str, tuple]:
    import torch

    return {"forward": (torch.zeros(1, module.config.tokens, module.config.latent_channels),)}


NETWORK = TorchNetwork(_network, _inputs)
