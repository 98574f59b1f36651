"""Whole sparse networks, compiled and eager, against spconv on the same weights.

    python -m benchmarks.networks [--quick] [--json FILE] [--only SUBSTRING]

    <network>_<voxels>_compiled   `port_component`'s component, exported once for any number of voxels
    <network>_<voxels>_eager      the drop-in for spconv, called in torch; only spconv with one thread stands beside it

The networks are those of the golden files `second` and `spunet`: a LiDAR detector's encoder, on a scanner's voxels of a street,
and a U-Net with four stages, on voxels of surfaces. Maps are built in every call. spconv is called with its default threads,
where its result is wrong (see `benchmarks.peers`), and with one. Eager calls come last: from the first one on idle workers of
OpenMP sleep (`sparse_ops.torch.threads`), and spconv, which starts many short loops, would be two to three times as slow.
"""

import functools
import sys
from dataclasses import dataclass

import numpy as np

from tests import DATA
from tests.golden.runner import read
from tests.tolerance import compare

from .harness import Benchmark, Case, Peer, parse_options
from .peers import THREADS, spconv, torch, use_threads
from .sparse_conv import coords_of

OCCUPANCIES = {  # batch elements of a U-Net's input
    "6k": ("airplane_64", "ant_64"),
    "46k": ("airplane_64", "airplane_128", "ant_128", "nut_64"),
    "200k": ("airplane_64", "ant_64", "airplane_128", "ant_128", "nut_64", "ant_256", "nut_128"),
}
SWEEPS = {"6k": (32, 200, 0.1), "46k": (64, 960, 0.1), "200k": (128, 2048, 0.05)}  # beams, columns, metres a voxel
MARGIN = 96  # of SpUNet's grid, beyond the largest coordinate
DEPTH = {"second": 27 * 32 * 12, "spunet": 27 * 64 * 30}  # rounded additions behind a result: taps x channels x layers, at most


@dataclass
class Input:
    features: np.ndarray  # [N, C]
    indices: np.ndarray  # int32 [N, 4]
    spatial_shape: list[int]

    @property
    def batch_size(self) -> int:
        return int(self.indices[:, 0].max()) + 1


@functools.cache
def input_of(network: str, size: str, channels: int) -> Input:
    if network == "spunet":
        parts = [coords_of(name) + np.array([place, 0, 0, 0], "int32") for place, name in enumerate(OCCUPANCIES[size])]
        indices = np.concatenate(parts)
        shape = (indices[:, 1:].max(0) + MARGIN).tolist()
    else:
        from examples.detect import HEIGHT, REACH, sweep

        beams, columns, voxel = SWEEPS[size]
        points = sweep(np.random.default_rng(0), beams, columns)[:, 2::-1]  # z, y, x
        low = np.array([-HEIGHT - 1, -REACH, -REACH], "float32")
        voxels = np.unique(np.floor((points - low) / voxel).astype("int32"), axis=0)
        indices = np.concatenate([np.zeros((len(voxels), 1), "int32"), voxels], 1)
        shape = (indices[:, 1:].max(0) + 2).tolist()
    rows = np.random.default_rng(len(indices)).standard_normal((len(indices), channels), "float32")
    return Input(rows, np.ascontiguousarray(indices), shape)


class Network:
    """One of the golden files' networks, with its weights, built with a library."""

    def __init__(self, kind: str, library):
        from tests.golden.networks import ways

        self.kind, (tensors, config) = kind, read(DATA / "golden" / f"{kind}.safetensors")
        self.channels = tensors["in.feats"].shape[1]
        self.module = ways.Network(kind, tensors, config).built(library).network

    def on(self, given: Input):
        """A call that returns (features, indices)."""
        features, indices = torch.from_numpy(given.features), torch.from_numpy(given.indices)
        self.module.spatial_shape, self.module.batch_size = given.spatial_shape, given.batch_size

        def call():
            with torch.no_grad():
                out = self.module(features, indices)
            return out.features, out.indices

        return call

    def compiled(self, given: Input):
        """A component for any number of voxels in the grid of `given`."""
        from torch.export import Dim

        from sparse_ops.deploy.from_torch import port_component

        class Plain(torch.nn.Module):
            def __init__(self, module):
                super().__init__()
                self.module = module

            def forward(self, features, indices):
                out = self.module(features, indices)
                return out.features, out.indices

        self.on(given)
        n, inputs = Dim("n"), (torch.from_numpy(given.features), torch.from_numpy(given.indices))
        dynamic = {"features": {0: n}, "indices": {0: n}}
        return port_component(Plain(self.module), inputs, self.kind, dynamic=dynamic, check=False)  # see `checked`


def checked(kind: str, given: Input):
    """A comparison of (features, indices) with spconv's on one thread, rows by coordinates."""
    torch.set_num_threads(1)
    features, indices = Network(kind, spconv).on(given)()
    torch.set_num_threads(THREADS)

    def rows(features, indices):
        features, indices = np.asarray(features), np.asarray(indices)
        order = np.lexsort(indices.T[::-1])
        return features[order], indices[order]

    wanted = rows(features, indices)

    def check(result):
        found = rows(*result)
        return [
            compare(found[1], wanted[1], 1, name="indices"),
            compare(found[0], wanted[0], DEPTH[kind], name="features"),
        ]

    return check


def case(kind: str, size: str, form: str) -> Case:
    import sparse_ops.torch.spconv as ours

    network, theirs = Network(kind, ours), Network(kind, spconv)
    given = input_of(kind, size, network.channels)
    check = checked(kind, given)
    facts = {"voxels": len(given.indices), "batch": given.batch_size}
    peer = theirs.on(given)
    peers = {"spconv_1thread": Peer(peer, check, use_threads(1), memory=True)}
    if form == "eager":
        call = network.on(given)

        def eager():
            torch.set_num_threads(THREADS)
            return call()

        return Case("float32", eager, check, peers, facts=facts)
    component = network.compiled(given)
    peers["spconv"] = Peer(peer, None if THREADS > 1 else check, use_threads(THREADS), memory=True)
    return Case("float32", lambda: component(given.features, given.indices), check, peers, facts=facts)


def main() -> int:
    bench = Benchmark("networks", parse_options("Whole sparse networks, compiled and eager, against spconv."))
    if spconv is None:
        print("spconv is not installed: there is nothing to compare with")
        return 1
    for form in ("compiled", "eager"):
        for kind in ("second", "spunet"):
            for size in ("6k",) if bench.options.quick else OCCUPANCIES:
                bench.run(f"{kind}_{size}_{form}", functools.partial(case, kind, size, form))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
