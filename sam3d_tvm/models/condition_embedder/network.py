"""The network of the condition embedder, which is in PyTorch."""

from sam3d_tvm.models.torch_network import TorchNetwork


def _network() -> type:
    from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser

    return EmbedderFuser


NETWORK = TorchNetwork(_network, lambda module: module.inputs())
