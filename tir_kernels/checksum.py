"""The steps of a checksum, as macros for any target; see `spec.checksum`."""

from tvm.script import tirx as T

from .script import inline
from .spec.checksum import ODD, ODD_64


@inline
def fold(total, value):
    """total[0] goes on with `value`."""
    total[0] = (total[0] ^ value) * T.uint64(ODD_64)
    total[0] = total[0] ^ (total[0] >> T.uint64(32))


@inline
def mix(h, lane, word):
    """Lane `lane` goes on with `word`."""
    h[lane] = (h[lane] ^ word) * T.uint32(ODD)
    h[lane] = h[lane] ^ (h[lane] >> T.uint32(15))
