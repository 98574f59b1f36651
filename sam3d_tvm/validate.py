"""The protocol of the port, component by component: shapes, errors and time of what is compiled, against PyTorch.

Weights are random: each component is the PyTorch network of a model, or a part of it, seeded, at a tiny size that keeps its
structure or at the size of SAM-3D-Objects. With int8 or int7 the models that take integers are looked at before and after
calibration, and a second time with channels that stand out; what is tiny is wide enough then for layers to gain by integers.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from sam3d_tvm.checks import check_choice
from sam3d_tvm.models import MODELS
from sparse_ops.deploy.calibrate import Largest, is_integer, watch, with_channels
from sparse_ops.deploy.component import Component
from sparse_ops.eager.arrays import as_kind, kind_of
from sparse_ops.transform.precision import QUANTIZED

# What makes an example of a size, by the name of a component, and the model that this is of.
EXAMPLES = {name: example for model in MODELS.values() for name, example in model.examples.items()}
MODEL_OF = {name: model for model in MODELS.values() for name in model.examples}
SIZES = ("tiny", "full")
WIDE = "wide"  # the size of tiny examples of models with integer layers
# Allowed: the largest error, in units of the largest value, and relative L2. bfloat16 has 8 bits: two dozen blocks of a
# transformer whose features are rounded to it differ by one percent from float32 ones, in torch as well.
BOUNDS = {"float32": (1e-4, 1e-5), "bfloat16": (0.1, 0.02), "float16": (0.1 / 8, 0.02 / 8)}  # three bits more
# A layer of integers differs by 1.2% or 2.3%, one of bfloat16 by 0.24%; see `sparse_ops.deploy.importer.compare`.
BOUNDS |= {"int8": (0.5, 0.1), "int7": (1.0, 0.2)}
ENOUGH = 2.0  # seconds; of calls that take longer one each has to do


@dataclass(frozen=True)
class Integers:
    """Of a component with integer layers: how many these are, and relative L2 errors of its worst output, before and after
    calibration; on the example, and with channels that stand out, None where an example has no such."""

    layers: int
    before: float
    after: float
    outliers_before: float | None = None
    outliers_after: float | None = None


@dataclass(frozen=True)
class Verdict:
    """One component against PyTorch. Errors are those of its worst output, times in seconds. `precision`: what it runs in;
    with `integers` errors are those after calibration, without outliers."""

    component: str
    size: str
    precision: str
    shapes_equal: bool
    max_error: float
    max_error_bound: float
    relative_l2: float
    relative_l2_bound: float
    torch_seconds: float
    seconds: float
    integers: Integers | None = None

    @property
    def ratio(self) -> float:
        """How many times faster than PyTorch."""
        return self.torch_seconds / self.seconds

    @property
    def ok(self) -> bool:
        # written so that NaN is not
        return self.shapes_equal and self.max_error <= self.max_error_bound and self.relative_l2 <= self.relative_l2_bound

    def as_json(self) -> dict[str, Any]:
        """Its fields and what follows from them; errors are None where shapes differ or values are not finite."""
        return _finite(asdict(self) | {"ratio": self.ratio, "ok": self.ok})


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """With None for floats that JSON does not have."""
    return {
        key: _finite(value)
        if isinstance(value, Mapping)
        else None
        if isinstance(value, float) and not np.isfinite(value)
        else value
        for key, value in values.items()
    }


def validate(
    components: Sequence[str] = (),
    size: str = "tiny",
    precision: str = "float32",
    progress: Callable[[str], Any] = lambda message: None,
) -> Iterator[Verdict]:
    """The verdicts of `components`, by default all of `EXAMPLES`, one after the other; `progress` is told what is being done.

    Raises ValueError for another name, size or precision, and where torch is not installed.
    """
    for name in components:
        check_choice("component", name, EXAMPLES)
    check_choice("size", size, SIZES)
    check_choice("precision", precision, tuple(BOUNDS))
    if find_spec("torch") is None:
        raise ValueError("torch: expected to be installed, as PyTorch is what is compared with: pip install 'sam3d-tvm[torch]'")
    return (_verdict(name, size, precision, progress) for name in components or EXAMPLES)


def _verdict(name: str, size: str, precision: str, progress: Callable[[str], Any]) -> Verdict:
    import torch

    from sparse_ops.deploy.from_torch import port_component

    precision = MODEL_OF[name].precision(precision)
    example = EXAMPLES[name](WIDE if size == "tiny" and precision in QUANTIZED else size)
    progress(f"{name}: compiling")
    options = {"dynamic": example.dynamic, "precision": precision, "products_only": example.products_only}
    options["check"] = False  # it is compared here, see below
    component = port_component(example.module, example.inputs, name, **options)
    integers = None
    with torch.no_grad():
        progress(f"{name}: comparing")
        if is_integer(component):
            component, integers = _calibrated(example, component)
        ours = example.run(component)
        equal, max_error, relative_l2 = _errors(example.reference(), ours())
        progress(f"{name}: timing")
        torch_seconds, seconds = _times(example.reference, ours)
        if integers is not None and example.make_outliers is not None:
            progress(f"{name}: with outliers")
            example.make_outliers()
            _, with_outliers = _calibrated(example, component)
            integers = replace(integers, outliers_before=with_outliers.before, outliers_after=with_outliers.after)
    bounds = BOUNDS[precision]
    gc.collect()  # the next one may be large
    return Verdict(name, size, precision, equal, max_error, bounds[0], relative_l2, bounds[1], torch_seconds, seconds, integers)


def _calibrated(example: Any, component: Component) -> tuple[Component, Integers]:
    """The component with the parameters that the module of an example has now, calibrated on that; and errors."""
    state = {name: value.detach().numpy() for name, value in example.module.state_dict().items()}
    state = {spec.name: state[spec.name] for spec in component.manifest.parameters}
    expected, largest = example.reference(), Largest()
    component = component.with_parameters(state)
    watch(component, largest)
    _, _, before = _errors(expected, example.run(component)())
    component = with_channels(component, largest, state)
    _, _, after = _errors(expected, example.run(component)())
    layers = sum(spec.is_quantized for spec in component.manifest.packed)
    return component, Integers(layers, before, after)


def _errors(expected: Mapping, actual: Mapping) -> tuple[bool, float, float]:
    """Whether names and shapes are equal; the largest error by the largest value, and relative L2, of the worst output."""
    expected, actual = (
        {name: np.asarray(as_kind(array, "numpy") if kind_of(array) == "tvm" else array) for name, array in given.items()}
        for given in (expected, actual)
    )
    shapes = [{name: array.shape for name, array in given.items()} for given in (expected, actual)]
    if shapes[0] != shapes[1]:
        return False, np.nan, np.nan
    errors = [relative_errors(actual[name], expected[name]) for name in expected]
    return True, *(float(max(column)) if np.isfinite(column).all() else np.nan for column in zip(*errors, strict=True))


def relative_errors(actual: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest error in units of the largest value, and relative L2; absolute where all that is expected are zeros."""
    error, size = np.abs(actual.astype(np.float64) - expected), np.abs(expected.astype(np.float64))
    return (
        float(error.max(initial=0.0) / (size.max(initial=0.0) or 1.0)),
        float(np.linalg.norm(error) / (np.linalg.norm(size) or 1.0)),
    )


def _times(*calls: Callable[[], Any]) -> Iterable[float]:
    """Medians of calls in turn."""
    times: list[list[float]] = [[] for _ in calls]
    while not times[0] or (sum(map(sum, times)) < ENOUGH and len(times[0]) < 5):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return map(statistics.median, times)
