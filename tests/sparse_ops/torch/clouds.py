"""Voxels and small networks that tests of the drop-in share, and spconv itself where it is installed."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SHAPE = [9, 8, 7]
CHANNELS = 4  # of most layers, so that few functions are compiled


def voxels(rows: int, shape=None, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Distinct voxels in any order: int32 [rows, 1 + axes]."""
    sizes = [batch, *(shape or SHAPE)]
    flat = np.random.default_rng(seed).choice(int(np.prod(sizes)), rows, replace=False)
    return torch.from_numpy(np.stack(np.unravel_index(flat, sizes), 1).astype("int32"))


def features(rows: int, channels: int = CHANNELS, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, channels)).astype("float32"))


def tensor(spconv, rows: int = 60, channels: int = CHANNELS, shape=None, batch: int = 1, seed: int = 0, **options):
    """A SparseConvTensor of ours or of spconv's."""
    shape = shape or SHAPE
    indices = voxels(rows, shape, batch, seed)
    return spconv.SparseConvTensor(features(rows, channels, seed), indices, shape, batch, **options)


def by_voxel(x) -> tuple[np.ndarray, np.ndarray]:
    """Indices and features, rows in lexicographic order of their voxels."""
    indices = x.indices.numpy()
    order = np.lexsort(indices.T[::-1])
    return indices[order], x.features.detach().float().numpy()[order]


@contextmanager
def one_thread() -> Iterator[None]:
    """As spconv needs it on a CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def runnable(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """An exported program for any number of rows: without what tracing assumes of sizes that the data decide, that they are
    at least 2, which the importer drops too."""
    for node in list(program.graph.nodes):
        if "_assert_scalar" in str(node.target):
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program.module(check_guards=False)
