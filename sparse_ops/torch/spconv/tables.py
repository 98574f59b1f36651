"""Lists of tensors into one, and one tensor into a list."""

import torch

from ...op.numbers import shown
from . import functional
from .core import SparseConvTensor, as_sparse
from .modules import SparseModule
from .sites import surely_differ


def _on_same_voxels(tensors) -> list[SparseConvTensor]:
    """ValueError unless it is a list of tensors of one grid, one batch size and one number of rows."""
    if not isinstance(tensors, list | tuple) or not tensors:
        raise ValueError(f"input: expected a list of SparseConvTensors, given {shown(tensors)}")
    tensors = [as_sparse(tensor) for tensor in tensors]
    for place, tensor in enumerate(tensors):
        for what, given, expected in (
            ("spatial_shape", list(tensor.spatial_shape), list(tensors[0].spatial_shape)),
            ("batch_size", tensor.batch_size, tensors[0].batch_size),
            ("rows", tensor.indices.shape[0], tensors[0].indices.shape[0]),
        ):
            if surely_differ(given, expected):
                raise ValueError(
                    f"input[{place}]: expected {what} {expected}, as input[0], given {given}; see AddTableMisaligned"
                )
    return tensors


class _Table(SparseModule):
    def input_spatial_size(self, out_size):
        return out_size


class JoinTable(_Table):
    """Features side by side, of tensors on the same voxels."""

    def forward(self, input) -> SparseConvTensor:
        tensors = _on_same_voxels(input)
        return tensors[0].replace_feature(torch.cat([tensor.features for tensor in tensors], 1))


class AddTable(_Table):
    """The sum of features, of tensors on the same voxels."""

    def forward(self, input) -> SparseConvTensor:
        first, *others = _on_same_voxels(input)
        for other in others:
            first = first + other
        return first


class AddTableMisaligned(_Table):
    """The sum of tensors of one grid over the voxels of all of them, as `functional.sparse_add`."""

    def forward(self, input) -> SparseConvTensor:
        return functional.sparse_add_hash_based(*input)


class ConcatTable(SparseModule):
    """A list of what every module makes of the input."""

    def forward(self, input) -> list:
        return [module(input) for module in self._modules.values()]

    def add(self, module) -> "ConcatTable":
        self.add_module(str(len(self._modules)), module)
        return self

    def input_spatial_size(self, out_size):
        return self._modules["0"].input_spatial_size(out_size)
