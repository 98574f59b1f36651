"""Upper bounds of the sizes that only a running kernel knows, as functions of the rows of its first argument.

Such a size is an element of an int64 tensor that the kernel writes; what is allocated next has that size. The bound stands
beside the kernel that chooses it, as an attribute, for whoever plans memory before anything runs.
"""

from typing import NamedTuple

import tvm

BOUNDS = "tir_kernels.bounds"  # attribute of a kernel: {name of an output: a list of `LinearBound` for each of its elements}


class LinearBound(NamedTuple):
    """min(per_row * rows + plus, most); of several, the largest counts."""

    per_row: int
    plus: int = 0
    most: int = 2**63 - 1


def with_bounds(kernel: tvm.tirx.PrimFunc, **bounds: list[list[LinearBound]]) -> tvm.tirx.PrimFunc:
    """`kernel`, which writes nothing larger than these bounds into the elements of its outputs of these names.

    Raises ValueError for a name that is no parameter of the kernel.
    """
    names = [param.name for param in kernel.params]
    for name in bounds:
        if name not in names:
            raise ValueError(f"bounds: expected names of parameters, of {', '.join(names)}, given {name!r}")
    return kernel.with_attr(
        BOUNDS, {name: [[list(linear) for linear in element] for element in elements] for name, elements in bounds.items()}
    )


def bounds_of(kernel: tvm.tirx.PrimFunc, rows: int) -> dict[str, list[int]]:
    """{name of an output: the most that each of its elements can be}, for `rows` rows of the kernel's first argument."""
    bounds = kernel.attrs.get(BOUNDS, {}) if kernel.attrs else {}
    return {
        str(name): [
            max(min(int(per_row) * rows + int(plus), int(most)) for per_row, plus, most in element) for element in elements
        ]
        for name, elements in bounds.items()
    }
