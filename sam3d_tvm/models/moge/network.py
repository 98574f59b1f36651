"""The network of the depth model, which is in PyTorch: one function for photos of any shape."""

from sam3d_tvm.models.torch_network import TorchNetwork


def _network() -> type:
    from sam3d_tvm.models.moge.network_torch import MoGeModel

    return MoGeModel


NETWORK = TorchNetwork(_network, lambda module: module.inputs(), lambda module: module.dynamic())
