"""What the rows of the dispatch table are made of: implementations of a family, and the kernels that they make."""

from collections.abc import Callable
from dataclasses import dataclass

import tvm

from .layout import MapLayout, WeightLayout
from .spec import Spec

Target = tvm.target.Target


@dataclass(frozen=True, eq=False)
class Kernel:
    """What an implementation makes: `function` takes the buffers that its `Spec` lists.

    `weight`: how it reads its weight, None where there is none to pack. `map`: how it reads or writes kernel maps, None where
    it has none. `name`: that of the implementation. `bits`: of the integers that it multiplies, those of x and of the weight,
    None where it multiplies floats.
    """

    name: str
    function: tvm.tirx.PrimFunc
    weight: WeightLayout | None = None
    map: MapLayout | None = None
    bits: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Implementation:
    """One way to compute a family.

    accepts(spec, target) -> None, or the reason why not. make(spec, target) -> Kernel, for what it accepts.
    """

    name: str
    accepts: Callable[[Spec, Target], str | None]
    make: Callable[[Spec, Target], Kernel]
