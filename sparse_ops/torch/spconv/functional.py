"""Sums of tensors over the voxels of all of them."""

import torch

from ...op.numbers import shown
from ..ops import CALLS
from .core import SparseConvTensor, as_sparse
from .sites import made_sites, narrow_coords, surely_differ


def sparse_add(*tens: SparseConvTensor) -> SparseConvTensor:
    """The sum of tensors of one grid over the voxels of all of them, which ascend in (batch, axes...).

    Where these are the voxels of the largest tensor, the result has its `indice_dict`, whose maps serve if its rows ascend too;
    else, and while torch.export traces, an empty one. A voxel that a tensor has twice counts twice. Raises ValueError for no
    tensor, and where spatial_shape, batch_size or channels differ from those of the first.
    """
    if not tens:
        raise ValueError("tens: expected at least one SparseConvTensor, given none")
    tensors = [as_sparse(tensor) for tensor in tens]
    first = tensors[0]
    for place, tensor in enumerate(tensors):
        for what, given, expected in (
            ("spatial_shape", list(tensor.spatial_shape), list(first.spatial_shape)),
            ("batch_size", tensor.batch_size, first.batch_size),
            ("channels", tensor.features.shape[1], first.features.shape[1]),
        ):
            if surely_differ(given, expected):
                raise ValueError(f"tens[{place}]: expected {what} {shown(expected)}, as tens[0], given {shown(given)}")
    sites = [tensor.sites for tensor in tensors]
    coords, inverse = CALLS["downsample"](torch.cat([own.coords for own in sites]), 1)
    features = CALLS["segment_pool"](torch.cat([t.features for t in tensors]), inverse, coords, "sum")
    rows, indice_dict = [own.indices.shape[0] for own in sites], {}
    if not torch.compiler.is_compiling() and coords.shape[0] == max(rows):
        indice_dict = tensors[rows.index(max(rows))].indice_dict
    indices = narrow_coords(coords, first.indices.shape[1] - 1)
    return first.moved(features, indices=indices, indice_dict=indice_dict, _sites=made_sites(indices, coords))


sparse_add_hash_based = sparse_add
