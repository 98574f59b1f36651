"""The voxels that features lie on, for networks in torch: kernel maps, coarser and finer voxels.

Coordinates are int32 [N, 4] of (batch, x, y, z), the rows of a batch element together and ascending by batch.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sparse_ops.torch  # noqa: F401 - registers the ops

OPS = torch.ops.sparse_ops
CHILDREN = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int32)] * 3)  # [8, 3], z fastest


class Sites:
    """N voxels with coords int32 [N, 4], of which x, y, z are below `extent`; `batch` elements.

    What is computed of them is kept, so that the layers of a network share it.
    """

    def __init__(self, coords: Tensor, extent: int, batch: int):
        self.coords, self.extent, self.batch = coords, extent, batch
        self._kept: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.coords)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned when it was first asked for under this name."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    @cached_property
    def index(self) -> Tensor:
        """The batch element of every row, int64 [N]."""
        return self.coords[:, 0].long()

    def spread(self, table: Tensor) -> Tensor:
        """table [B, C] -> the row of its batch element for every voxel, [N, C], or [1, C] if there is one element alone."""
        return table if self.batch == 1 else table[self.index]

    @cached_property
    def lengths(self) -> list[int]:
        """Rows of every batch element."""
        return self.index.bincount(minlength=self.batch).tolist()

    @cached_property
    def map(self) -> list[Tensor]:
        """The map of a submanifold convolution of 3^3 taps."""
        return OPS.submanifold_map(self.coords, [3, 3, 3])

    def downsampled(self) -> tuple["Sites", Tensor]:
        """The voxels of twice the size that hold these, ascending, and the row of that of each, int64 [N]."""
        extent = -(-self.extent // 2)
        batch, x, y, z = self.coords.long().unbind(1)
        keys = ((batch * extent + x // 2) * extent + y // 2) * extent + z // 2
        coarse, parent = torch.unique(keys, return_inverse=True)
        places = [coarse // extent**3, coarse // extent**2 % extent, coarse // extent % extent, coarse % extent]
        return Sites(torch.stack(places, 1).int(), extent, self.batch), parent

    def subdivided(self) -> "Sites":
        """The eight voxels of half the size in each of these, children together, z fastest."""
        scale, steps = torch.tensor([1, 2, 2, 2], dtype=torch.int32), F.pad(CHILDREN, (1, 0))  # [4], [8, 4]
        return Sites((self.coords[:, None] * scale + steps).flatten(0, 1), 2 * self.extent, self.batch)

    @cached_property
    def octet(self) -> Tensor:
        """The row that each of subdivided voxels was made from, int32 [N], where N is a multiple of 8."""
        return torch.arange(len(self) // 8, dtype=torch.int32).repeat_interleave(8)


def pooled(x: Tensor, parent: Tensor, rows: int) -> Tensor:
    """x [N, C], parent int64 [N] -> [rows, C]: the mean of the rows of every parent and one row of zeros, which upstream's mean
    counts too."""
    count = parent.bincount(minlength=rows)[:, None] + 1
    return x.new_zeros(rows, x.shape[1]).index_add_(0, parent, x) / count
