"""The network of the condition embedder, which is in PyTorch."""

from sam3d_tvm.models.torch_network import TorchNetwork


def _network() -> type:
    from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser

    return EmbedderFuser


# DINOv2 holds outliers in its residual stream, and large common parts in keys and values: what is rounded there is lost.
NETWORK = TorchNetwork(_network, lambda module: module.inputs(), products_only=True)
