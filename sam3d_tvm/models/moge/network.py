"""The network of the depth model, which is in PyTorch: one function for photos of any shape."""

from sam3d_tvm.models.torch_network import TorchNetwork


def _network() -> type:
    from sam3d_tvm.models.moge.network_torch import MoGeModel

    return MoGeModel


# DINOv2 holds outliers in its residual stream, and large common parts in keys and values: what is rounded there is lost.
NETWORK = TorchNetwork(_network, lambda module: module.inputs(), lambda module: module.dynamic(), products_only=True)
