"""`convert`: a model that was built with spconv's own layers computes through ours."""

import sys
from functools import cache, wraps
from types import ModuleType

import torch
from torch import nn

from . import spconv as ours
from .spconv.common import checked_axes
from .spconv.core import both_classes

OURS = (ours.conv, ours.pool, ours.modules, ours.tables, ours)
REAL = ("conv", "pool", "modules", "tables", None)  # of spconv.pytorch, in the same order
AS_THEY_ARE = ("SparseModule", "PrintTensorMeta", "PrintCurrentTime", "Identity")  # these compute nothing of their own


def convert(model: nn.Module) -> nn.Module:
    """Have every layer of spconv's in a model compute through ours. In place; the model is returned.

    Modules stay the objects that they are, so parameters, buffers, hooks, flags and what is shared stay too; only their class
    changes, to one that is ours and, for code that asks by `isinstance`, spconv's or the user's still. Modules of the user's
    keep what they define themselves: a SparseSequential with a `forward` of its own keeps it, and whatever it inherits from
    spconv is ours. Tensors of spconv's that user code makes are taken, and what comes back is one of these too.

    A model without layers of spconv's stays as it is. Raises ValueError that names the path of every module that cannot be
    converted, and why; nothing has been changed then.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, given {type(model).__name__}")
    spconv = sys.modules.get("spconv.pytorch")
    if spconv is None:  # nothing can be built of it
        return model
    counterparts, classes, wrong = _counterparts(spconv), [], []
    for path, module in model.named_modules():
        if hasattr(type(module), "_of"):  # it was converted before
            continue
        base = next((base for base in type(module).__mro__ if base in counterparts), None)
        reason = _refusal(module, base)
        if reason:
            wrong.append(f"{path or '(the model)'}: {type(module).__name__}: {reason}")
        elif base is not None:
            classes.append((module, _as_ours(type(module), base, counterparts[base])))
    if wrong:
        raise ValueError("model: cannot be converted, and nothing was changed: " + "; ".join(wrong))
    if classes:
        _make_tensors_traceable(spconv.SparseConvTensor)
    for module, made in classes:
        module.__class__ = made
    return model


def _make_tensors_traceable(real: type) -> None:
    """While torch.export traces, spconv's constructor makes tensors of ours, which keep extents that the data decide.

    It would ask for their numbers, which there are not then. At all other times it does what it did.
    """
    construct = real.__init__
    if getattr(construct, "_is_traceable", False):
        return

    @wraps(construct)
    def __init__(self, *args, **kwargs):
        if torch.compiler.is_compiling():
            self.__class__ = both_classes(real)
            ours.SparseConvTensor.__init__(self, *args, **kwargs)
        else:
            construct(self, *args, **kwargs)

    __init__._is_traceable = True
    real.__init__ = __init__


def _counterparts(spconv: ModuleType) -> dict[type, type]:
    """Our class for each of spconv's that has one."""
    found = {}
    for place, name in zip(OURS, REAL, strict=True):
        theirs = spconv if name is None else sys.modules[f"{spconv.__name__}.{name}"]
        for class_name, made in vars(place).items():
            real = getattr(theirs, class_name, None)
            if (
                isinstance(made, type)
                and isinstance(real, type)
                and issubclass(made, nn.Module)
                and class_name not in AS_THEY_ARE
            ):
                found[real] = made
    return found


def _refusal(module: nn.Module, base: type | None) -> str:
    """Why a module cannot be converted; nothing if it can, or need not."""
    own = type(module).__mro__
    own = own[: own.index(base)] if base is not None else own
    theirs = [cls for cls in own if cls.__module__.split(".")[0] == "spconv" and cls.__name__ not in AS_THEY_ARE]
    if theirs:
        return f"there is none of ours for {theirs[0].__module__}.{theirs[0].__name__}"
    if base is None or not issubclass(base, _with_kernel()):
        return ""
    if "forward" in vars(module) or any(name in vars(cls) for cls in own for name in ("forward", "_conv_forward")):
        return "it has a forward of its own, which may call spconv's functions"
    if getattr(module, "groups", 1) != 1:
        return f"groups: expected 1, given {module.groups}"
    try:
        checked_axes(base.__name__, module.ndim, module.kernel_size, module.subm)
    except ValueError as error:
        return str(error)
    expected = [module.out_channels, *module.kernel_size, module.in_channels] if hasattr(module, "in_channels") else None
    if expected is not None and (not module.weight.is_floating_point() or list(module.weight.shape) != expected):
        return f"weight: expected floats {expected}, given {module.weight.dtype} {list(module.weight.shape)}"
    return ""


def _with_kernel() -> tuple[type, ...]:
    """spconv's layers that compute on kernels."""
    conv, pool = (sys.modules[f"spconv.pytorch.{name}"] for name in ("conv", "pool"))
    return conv.SparseConvolution, pool.SparseMaxPool, pool.SparseAvgPool


@cache
def _as_ours(cls: type, base: type, made: type) -> type:
    """A class that is `cls`, spconv's `base` or a user's of it, and has from `made` of ours what `cls` leaves to `base`."""
    named = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    both = type(base.__name__, (made, base), named | {"_of": cls, "__reduce_ex__": _reduced})
    return both if cls is base else type(cls.__name__, (cls, both), named)


def _reduced(module: nn.Module, protocol: int):
    """For copies and pickles, which find classes by their names: the class that there was, to be converted again."""
    return _restored, (module._of,), module.__getstate__()


def _restored(cls: type) -> nn.Module:
    counterparts = _counterparts(sys.modules["spconv.pytorch"])
    base = next(base for base in cls.__mro__ if base in counterparts)
    return object.__new__(_as_ours(cls, base, counterparts[base]))
