"""What kernels compute, a file a family: the formula, the numpy oracle `naive`, and a frozen description of one kernel.

A description (`Spec`) holds sizes, dtype and options. It knows no target: `dispatch.kernel_for` finds a kernel for it.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Spec:
    """One kernel of a family, whatever the target: hashable, equal where the kernel is the same.

    `family` is the key of `dispatch.KERNELS`.
    """

    family: ClassVar[str]
