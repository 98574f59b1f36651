"""Where torch and our ops meet. Only this package, and `sparse_ops.deploy.from_torch`, import torch."""

from .callback import CONVOLVE, SubMConv3d, convolve, pairs_by_tap
from .convert import convert

__all__ = ["CONVOLVE", "SubMConv3d", "convert", "convolve", "pairs_by_tap"]
