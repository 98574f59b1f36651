"""The structured-latent generator in plain PyTorch and spconv: what the compiled one is compared with, in result and speed.

The network is that of `training.networks`, written from the facts that come with the golden data and from `slat_oracle`; its
convolutions are spconv's here. `state_dict` names are those of the checkpoint. Everything is computed in every call. spconv's
convolutions run on one thread, as with more their results are wrong on a CPU; all else runs on as many as torch is set to.
"""

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # spconv's import triggers a warning

import spconv.pytorch as spconv  # noqa: E402
from spconv.core import ConvAlgo  # noqa: E402

from sam3d_tvm.models.slat_generator.config import SlatConfig  # noqa: E402
from training.networks import SlatGeneratorNetwork  # noqa: E402
from training.networks.sites import Sites  # noqa: E402


class Reference:
    """What makes a network of `training.networks` a reference, beside which it stands as a base; it is not to be trained."""

    @classmethod
    def of(cls, config, state):
        """With the parameters of `state`, arrays by name, of which no second copy is kept."""
        with torch.device("meta"):
            model = cls(config)
        tensors = {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in state.items()}
        model.load_state_dict(tensors, strict=True, assign=True)
        return model.requires_grad_(False)

    @torch.inference_mode()
    def forward(self, *args: Tensor):
        return super().forward(*args)


class SpconvConvolution(spconv.SubMConv3d):
    """spconv's convolution as a `training.networks.layers.Convolution`."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int):
        options = {} if kernel_size == 1 else {"indice_key": "map", "algo": ConvAlgo.Native}
        super().__init__(channels, out_channels, kernel_size, **options)
        self.train()  # in eval mode spconv refuses a bias on a CPU

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        """x [N, channels] -> [N, out_channels]. Sites remember the kernel map."""
        if len(x) == 0:  # spconv takes no empty tensors
            return x.new_zeros(0, self.out_channels)
        given = spconv.SparseConvTensor(x.float(), sites.coords, [sites.extent] * 3, sites.batch)
        given.indice_dict = sites.kept("spconv", dict)
        with one_thread(), float32():
            return super().forward(given).features

    def of_upsampled(self, x: Tensor, sites: Sites) -> Tensor:
        """x [M, channels], sites of 8 M rows -> [8 M, out_channels]."""
        return self(x.repeat_interleave(8, 0), sites)


class SlatReference(Reference, SlatGeneratorNetwork):
    """`forward(coords, x, t, cond)` is the velocity."""

    def __init__(self, config: SlatConfig):
        super().__init__(config, SpconvConvolution)


def float32() -> torch.autocast:
    """For spconv, which has no bfloat16 on a CPU; all else may run under autocast."""
    return torch.autocast("cpu", enabled=False)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """With more, spconv adds into shared rows without a lock."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
