"""The buffers of a kernel map on a device, see `layout.NeighbourTable`."""

from dataclasses import dataclass

import tvm

from ..buffers import match_buffer, named
from ..layout import NeighbourTable

NEIGHBOURS = NeighbourTable()
TILE_ROWS = NEIGHBOURS.TILE_ROWS


@dataclass(frozen=True, eq=False)
class Table:
    """A map's buffers, and its sizes as int64 expressions."""

    neighbours: object  # [taps, slots]
    order: object  # [groups, slots]
    tiles: object  # [groups * tiles, taps + 1]

    @property
    def taps(self):
        return self.neighbours.shape[0]

    @property
    def slots(self):
        """Output rows of a group, rounded up to whole tiles."""
        return self.neighbours.shape[1]

    @property
    def groups(self):
        return self.order.shape[0]

    @property
    def tiles_of_group(self):
        return self.slots // TILE_ROWS


def match_table(neighbours, order, tiles, taps=None, prefix: str = "") -> Table:
    """The `Table` in three of a kernel's parameters, for `T.meta_var`.

    `taps`: as a Python int or an expression, None where only the given map tells. `prefix`: of the buffers' names.
    """
    taps = tvm.tirx.Var(f"{prefix}taps", "int64") if taps is None else taps
    slots, groups, tiles_of_all = (tvm.tirx.Var(f"{prefix}{name}", "int64") for name in ("slots", "groups", "tiles_of_all"))
    return Table(
        named(f"{prefix}neighbours", match_buffer(neighbours, (taps, slots), "int32")),
        named(f"{prefix}order", match_buffer(order, (groups, slots), "int32")),
        named(f"{prefix}tiles", match_buffer(tiles, (tiles_of_all, taps + 1), "int32")),
    )
