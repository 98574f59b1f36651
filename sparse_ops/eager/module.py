"""Eager face, modules: what layers, containers and networks of a user's own share: children, and parameters by name."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .arrays import TORCH, Portable, as_kind, as_tensor, cast_hint, describe, dtype_of, kind_of

WIDENED = ("bfloat16", "float16")  # what float32 holds exactly


class Entry(NamedTuple):
    """What a module holds under a name: an array of this shape, of one of these dtypes."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]


class Place(NamedTuple):
    """One entry of a state: what checks a value and returns what will be held, and what puts it there."""

    check: Callable[[Any], Any]
    put: Callable[[Any], None]


class SparseModule(Portable):
    """Base of layers and containers, and of networks of them. It need not be initialised.

        class Block(sparse_ops.SparseModule):
            def __init__(self):
                self.conv = sparse_ops.SubMConv3d(8, 8, 3)
                self.more = [sparse_ops.SubMConv3d(8, 8, 3), torch.nn.BatchNorm1d(8)]

            def forward(self, x):
                return x + self.conv(x)

    Its children are the attributes that are modules, and the members of attributes that are lists, tuples or dicts of them:
    names of a state are as torch has them, `conv.weight` and `more.0.weight` here. Modules of torch are children too. A module
    may be copied and pickled; what was compiled and packed stays behind.
    """

    name: str | None = None
    ignored: tuple[str, ...] = ()  # entries of a state that are accepted and not kept

    def __init__(self, name: str | None = None):
        self.name = name

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def entries(self) -> dict[str, Entry]:
        """What this module holds itself, without its children, by the names of its attributes."""
        return {}

    def named_children(self) -> Iterator[tuple[str, Any]]:
        """Modules that this one holds, with their names."""
        for name, value in vars(self).items():
            members = {}
            if isinstance(value, list | tuple):
                members = {f"{name}.{i}": member for i, member in enumerate(value)}
            elif isinstance(value, Mapping):
                members = {f"{name}.{key}": member for key, member in value.items()}
            for child_name, child in (members or {name: value}).items():
                if is_module(child):
                    yield child_name, child

    def children(self) -> Iterator[Any]:
        """Modules that this one holds."""
        for _, child in self.named_children():
            yield child

    def eval(self):
        """This module. There is no training here: it is for the modules of torch among the children."""
        for child in self.children():
            child.eval()
        return self

    def state_dict(self, prefix: str = "") -> dict[str, Any]:
        """All parameters by name, as they are held: without a copy, and of the kind that was loaded."""
        state = {prefix + name: getattr(self, name) for name in self.entries()}
        for name, child in self.named_children():
            if isinstance(child, SparseModule):
                state |= child.state_dict(f"{prefix}{name}.")
            else:
                state |= {f"{prefix}{name}.{key}": value for key, value in child.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Hold the arrays of a state, numpy, torch or TVM. Returns the names that are missing and that are not known.

        Arrays are kept as they are, without a copy, except that: what is not contiguous is made so, what need be float32 is
        widened from bfloat16 or float16, and of a torch tensor that records gradients its values are taken. Raises ValueError
        that names every entry of another dtype or shape, and if `strict` every one that is missing or not known; nothing has
        changed then.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"state: expected arrays by name, given {describe(state)}")
        places = dict(self._places(""))
        known = set(places) | set(self._ignored(""))
        missing = [name for name in places if name not in state]
        unexpected = [name for name in state if name not in known]
        wrong, fitting = [], []
        if strict:
            wrong += [f"{name}: missing" for name in missing] + [f"{name}: not known" for name in unexpected]
        for name, place in places.items():
            if name in state:
                try:
                    fitting.append((place.put, place.check(state[name])))
                except ValueError as error:
                    wrong.append(f"{name}: {error}")
        if wrong:
            raise ValueError(f"state: expected the entries {', '.join(places)}; " + "; ".join(wrong))
        for put, value in fitting:
            put(value)
        return missing, unexpected

    def _ignored(self, prefix: str) -> Iterator[str]:
        yield from (prefix + name for name in self.ignored)
        for name, child in self.named_children():
            if isinstance(child, SparseModule):
                yield from child._ignored(f"{prefix}{name}.")

    def _places(self, prefix: str) -> Iterator[tuple[str, Place]]:
        """Where every entry of a state goes, by its name."""
        for name, entry in self.entries().items():
            yield prefix + name, Place(partial(_fitting, entry), partial(setattr, self, name))
        for name, child in self.named_children():
            if isinstance(child, SparseModule):
                yield from child._places(f"{prefix}{name}.")
                continue
            for key, held in child.state_dict().items():
                yield f"{prefix}{name}.{key}", _place_in_torch(child, key, held)


def is_module(value) -> bool:
    """One of ours, or of torch: what has a state."""
    if isinstance(value, SparseModule):
        return True
    methods = ("state_dict", "load_state_dict", "eval")
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in methods)


def _place_in_torch(module, key: str, held) -> Place:
    """An entry of a module of torch, which copies values into its own."""

    def check(value):
        value = np.asarray(value) if isinstance(value, np.generic) else value
        if kind_of(value) == "other" or tuple(value.shape) != tuple(held.shape):
            raise ValueError(f"expected shape {list(held.shape)}, given {describe(value)}")
        if kind_of(value) in TORCH:
            return value
        value = np.asarray(value, order="C") if kind_of(value) == "numpy" else value
        return as_kind(as_tensor(value, key, (dtype_of(value),), value.shape), "torch")

    return Place(check, lambda value: module.load_state_dict({key: value}, strict=False))


def _fitting(entry: Entry, value):
    """`value` as a module may hold it; ValueError with what is expected and given."""
    wanted = f"{' or '.join(entry.dtypes)} {list(entry.shape)}"
    if kind_of(value) == "other":
        raise ValueError(f"expected {wanted}, given {describe(value)}: neither a numpy array nor a torch or TVM tensor")
    if tuple(value.shape) != entry.shape:
        raise ValueError(f"expected {wanted}, given {describe(value)}")
    kind, dtype = kind_of(value), dtype_of(value)
    if kind in TORCH:
        if value.device.type != "cpu":
            raise ValueError(f"expected {wanted}, given {describe(value)} on {value.device}: pass tensor.cpu()")
        value = value.detach().contiguous()
    elif kind == "numpy":
        value = value if value.flags.c_contiguous else np.ascontiguousarray(value)
    if dtype in entry.dtypes:
        return value
    if "float32" in entry.dtypes and dtype in WIDENED and kind != "tvm":
        return value.float() if kind in TORCH else value.astype("float32")
    raise ValueError(f"expected {wanted}, given {describe(value)}{cast_hint(value, entry.dtypes)}")
