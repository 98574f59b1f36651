"""Where torch and our ops meet. Only this package, and `from_torch` and `importer` of `sparse_ops.deploy`, import torch."""

from .callback import CONVOLVE, SubMConv3d, convolve, pairs_by_tap
from .convert import convert

__all__ = ["CONVOLVE", "SubMConv3d", "convert", "convolve", "pairs_by_tap"]
