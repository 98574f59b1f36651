"""What is made of a tensor and kept as long as its memory is there, under whichever name the tensor comes back."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class KeptWithMemory:
    """Values by the memory of a tensor and a key that tells what else they were made of."""

    def __init__(self):
        self._kept: dict[tuple, tuple[StorageWeakRef, Any]] = {}

    def of(self, tensor: torch.Tensor, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returned the first time. What belongs to memory that is gone is dropped when something new is made."""
        storage = tensor.untyped_storage()
        place = storage._cdata, key
        found = self._kept.get(place)
        if found is None or found[0].expired():
            for other, (memory, _) in list(self._kept.items()):
                if memory.expired():
                    self._kept.pop(other, None)
            found = self._kept[place] = StorageWeakRef(storage), make()
        return found[1]
