"""Where the rows of each batch element start: `offsets[b]` = number of rows whose batch index is below b."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def naive(coords, batch: int):
    """Oracle. coords int32 [N, 4] with ascending batch indices -> int32 [batch + 1]."""
    return np.searchsorted(coords[:, 0], np.arange(batch + 1)).astype("int32")


@dataclass(frozen=True)
class BatchOffsets(Spec):
    """(coords int32 [N, 4], offsets int32 [batch + 1]), for any batch.

    Raises ValueError for the first row whose batch index is below that of the row before, or not in 0 .. batch - 1.
    """

    family: ClassVar[str] = "batch_offsets"
