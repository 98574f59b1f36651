"""The peers: spconv's CPU ops and torch, on the same arrays, with either all of the cores or one thread.

spconv's OpenMP loops run in the libgomp that torch has loaded before it, so `torch.set_num_threads` governs both and
works within one process. With more than one thread spconv 2.3.8 adds into shared rows without a lock: its result is
wrong then, and only its time is used. With one thread it is right, and is checked like ours.
"""

import logging
from collections.abc import Callable, Iterable

import numpy as np

from tests.tolerance import Comparison

from .harness import Peer

try:
    import torch

    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # spconv's import triggers a warning
except ImportError:
    torch = None

try:
    import spconv.pytorch as spconv
    from spconv.core import ConvAlgo
    from spconv.pytorch import ops
except ImportError:
    spconv = None

THREADS = torch.get_num_threads() if torch else 1

Check = Callable[[object], Iterable[Comparison]]


def use_threads(count: int) -> Callable[[], None]:
    """`prepare` of a peer: its loops run on `count` threads."""
    return lambda: torch.set_num_threads(count)


def spconv_peers(call: Callable[[], object], check: Check, race: bool = True) -> dict[str, Peer]:
    """`call` of spconv as two peers: with its default threads and with one.

    `race`: whether it computes a convolution, whose result with several threads is not worth checking.
    """
    if spconv is None:
        return {}
    return {
        "spconv": Peer(call, None if race and THREADS > 1 else check, use_threads(THREADS), memory=True),
        "spconv_1thread": Peer(call, check, use_threads(1)),
    }


class SpconvLayer:
    """One convolution of spconv with our weight [Cout, kx, ky, kz, Cin], on one coordinate set.

    kind: "SubMConv3d", "SparseConv3d" or "SparseConvTranspose3d".
    """

    def __init__(self, kind: str, weight: np.ndarray, coords: np.ndarray, extent: int, stride: int = 1, padding: int = 0):
        cout, self.kernel, cin = weight.shape[0], weight.shape[1], weight.shape[-1]
        self.subm, self.transposed = kind == "SubMConv3d", kind == "SparseConvTranspose3d"
        self.stride, self.padding, self.extent = stride, padding, extent
        self.coords = torch.from_numpy(coords)
        geometry = {} if self.subm else {"stride": stride, "padding": padding}
        make = getattr(spconv, kind)
        self.layer = make(cin, cout, self.kernel, bias=False, algo=ConvAlgo.Native, **geometry).eval()
        self.keyed = make(cin, cout, self.kernel, bias=False, algo=ConvAlgo.Native, indice_key="map", **geometry).eval()
        for layer in (self.layer, self.keyed):
            layer.weight.data = torch.from_numpy(weight)

    def pairs(self):
        """(coordinates of the output, pairs [2, taps, N], their number [taps]): spconv's kernel map."""
        return ops.get_indice_pairs(
            self.coords,
            1,
            [self.extent] * 3,
            ConvAlgo.Native,
            [self.kernel] * 3,
            [self.stride] * 3,
            [self.padding] * 3,
            [1] * 3,
            [0] * 3,
            self.subm,
            self.transposed,
        )

    def cold(self, feats: np.ndarray) -> Callable[[], object]:
        """A call that builds the map and convolves: (coordinates, features)."""
        x = torch.from_numpy(feats)

        def call():
            with torch.no_grad():
                out = self.layer(spconv.SparseConvTensor(x, self.coords, [self.extent] * 3, 1))
            return out.indices, out.features

        return call

    def warm(self, feats: np.ndarray) -> Callable[[], object]:
        """A call that convolves with the map ready: [features]."""
        x = torch.from_numpy(feats)
        if self.subm:
            given = spconv.SparseConvTensor(x, self.coords, [self.extent] * 3, 1)
            with torch.no_grad():
                given.indice_dict = self.keyed(given).indice_dict

            def call():
                with torch.no_grad():
                    return [self.keyed(given).features]

            return call
        # spconv's layers re-use no strided map, so its function is called, which leaves out the layer's own overhead
        out, pairs, number = self.pairs()
        weight = self.layer.weight.data

        def call():
            with torch.no_grad():
                return [ops.indice_conv(x, weight, pairs, number, out.shape[0], False, False, ConvAlgo.Native)]

        return call


def torch_unique(coords: np.ndarray, factor: int) -> Callable[[], object]:
    """torch.unique(coords // factor, dim=0) with its inverse."""
    given = torch.from_numpy(coords)
    if factor == 1:
        return lambda: torch.unique(given, dim=0, return_inverse=True)
    return lambda: torch.unique(given // factor, dim=0, return_inverse=True)
