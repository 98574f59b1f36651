"""Which input channels of integer layers are kept in floats, found on real inputs.

A layer of integer products rounds each row of its input to as many steps as its largest value allows. A rotation spreads what
single channels hold, but where these are hundreds of times as large as the others, as in many transformers, little is left of
the rest. Such channels stand out on any input, so a few inputs tell them: they are multiplied apart, as floats.

    calibrated = calibrate(component, [(photo,) for photo in photos], weights)
    calibrated.save("artifacts/classifier")
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import tvm

from sparse_ops.deploy.component import Component, pack_function
from sparse_ops.deploy.weights import State, check_arrays
from sparse_ops.devices import CUDA
from sparse_ops.eager.arrays import as_kind
from sparse_ops.transform.precision import QUANTIZED
from tir_kernels.dispatch import kernel_for
from tir_kernels.layout import WeightLayout
from tir_kernels.spec.int8_linear import APART
from tir_kernels.spec.linear import Linear

Call = tuple | Mapping[str, Any]


class Largest:
    """The largest |x| of every input channel of the integer layers of a component: float32 [Cin] by the number of the layer's
    weight in `manifest.packed`, for those that had rows. Values that are not finite do not count."""

    def __init__(self):
        self.by_layer: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def note(self, layer: int, x: np.ndarray) -> None:
        """x [N, Cin], the input of a layer."""
        if not len(x):
            return
        sizes = np.abs(x.astype(np.float32, copy=False))
        largest = np.where(np.isfinite(sizes), sizes, np.float32(0)).max(0)
        with self._lock:
            before = self.by_layer.get(layer)
            self.by_layer[layer] = largest if before is None else np.maximum(before, largest)

    def channels(self, layer: int) -> list[int]:
        """The `APART` channels of a layer with the largest values, in ascending order; of equal ones the lowest, and none that
        had no values but 0."""
        sizes = self.by_layer[layer]
        order = np.argsort(-sizes, kind="stable")
        return sorted(int(channel) for channel in order[:APART] if sizes[channel] > 0)


def calibrate(component: Component, inputs: Sequence[Call] | Mapping[str, Sequence[Call]], weights: State) -> Component:
    """The component with the eight largest input channels of each of its integer layers kept in floats, as `inputs` tell them.

    `inputs`: calls of its function "forward", or of functions by name, each a tuple of arguments by position or a dict by name;
    a few that are as those that will come, and all of them in memory. `weights`: the parameters that it was made with, arrays
    by name, as `with_parameters` takes them. The result has the same code, and saves and loads as any component; layers that no
    input reaches stay as they are without calibration. Channels are found on the component as it is without: equal inputs
    give equal bits, calibrated before or not.

    Raises ValueError for what is no component, one without integer layers or for another CPU, no inputs, inputs that are no
    calls or do not fit, and weights that are missing, not known, misshapen, or in an integer layer others than those that it
    was made with.
    """
    _check_integers(component)
    check_arrays({spec.name: spec.shape for spec in component.manifest.parameters}, weights, "weights")
    calls = list(_calls(component, inputs))
    plain, largest = uncalibrated(component, weights), Largest()
    watch(plain, largest)
    for function, call in calls:
        if isinstance(call, Mapping):
            plain[function](**call)
        else:
            plain[function](*call)
    return with_channels(component, largest, weights)


def is_integer(component: Component) -> bool:
    """Whether it has layers that can be calibrated."""
    return any(spec.is_quantized for spec in component.manifest.packed)


def is_calibrated(component: Component) -> bool:
    return any(spec.apart for spec in component.manifest.packed)


def uncalibrated(component: Component, weights: State) -> Component:
    """The component without channels apart, as one that nobody else runs. `weights` as in `calibrate`."""
    return component.with_parameters(weights) if is_calibrated(component) else component.with_packed({})


def watch(component: Component, largest: Largest) -> None:
    """All that this component computes from now on adds to `largest`."""
    specs = component.manifest.packed
    layers = {component.packed_address(i): i for i, spec in enumerate(specs) if spec.is_quantized}

    def note(name: str, arguments: tuple) -> None:
        for argument in arguments[1:]:
            layer = layers.get(argument.data_ptr()) if isinstance(argument, tvm.runtime.Tensor) else None
            if layer is not None:
                x = as_kind(arguments[0], "numpy")
                largest.note(layer, x.reshape(-1, x.shape[-1]))

    component.program.watch(note)


def with_channels(component: Component, largest: Largest, weights: State) -> Component:
    """The component with the channels of `largest` apart. ValueError as `calibrate`."""
    manifest, changed = component.manifest, {}
    target = tvm.target.Target(dict(manifest.target))

    @cache
    def layout_of(shape: tuple[int, int], dtype: str, products: str) -> WeightLayout:
        return kernel_for(Linear(shape[1], shape[0], dtype, products=products), target).weight

    for name, function in manifest.functions.items():
        wanted = {number for number in function.packed if manifest.packed[number].is_quantized} - changed.keys()
        if not wanted:
            continue
        kernels = {manifest.packed[number].name.partition("(")[0] for number in wanted}
        packed_from: dict[int, np.ndarray] = {}  # weights by the address of what they were packed into

        def note(kernel: str, arguments: tuple, kernels=kernels, packed_from=packed_from) -> None:
            if kernel in kernels:
                packed_from[arguments[1].data_ptr()] = np.array(as_kind(arguments[0], "numpy"))

        def store(index: int, value: tvm.runtime.Tensor, function=function, wanted=wanted, packed_from=packed_from) -> None:
            number = function.packed[index]
            weight = packed_from.pop(value.data_ptr(), None)
            if number not in wanted or number in changed or weight is None:
                return
            spec, plain = manifest.packed[number], as_kind(value, "numpy")
            layout = layout_of(weight.shape, str(weight.dtype), spec.runs_in)
            weight = weight.astype(np.float32, copy=False)
            made_with = layout.with_apart(plain, weight, spec.apart) if spec.apart else plain
            if not np.array_equal(made_with, component.packed_array(number)):
                raise ValueError(f"weights: expected those that the component was made with, given others for {spec.name}")
            apart = largest.channels(number) if number in largest.by_layer else []
            changed[number] = replace(spec, apart=tuple(apart)), layout.with_apart(plain, weight, apart)

        with component.program.observed(note):
            pack_function(component.program, manifest, weights, name, store)
    return component.with_packed(changed)


def _check_integers(component: Component) -> None:
    if not isinstance(component, Component):
        raise ValueError(f"component: expected a Component, given {type(component).__name__}")
    if not is_integer(component):
        precision = component.manifest.precision
        advice = "port it by precision='int8', where the CPU gains by that"
        if component.manifest.target["kind"] == CUDA:
            advice = "CUDA devices have none, port it for a CPU"
        elif precision in QUANTIZED:
            advice = "no layer of it gains by them on its CPU"
        raise ValueError(
            f"component: expected one with layers of integer products, given {component.name!r} of precision "
            f"{precision}: {advice}"
        )


def _calls(component: Component, inputs: Any) -> Iterable[tuple[str, Call]]:
    """(function, call) of all inputs. ValueError if there are none, and for what is no call."""
    by_function = inputs if isinstance(inputs, Mapping) else {"forward": inputs}
    count = 0
    for function, calls in by_function.items():
        component[function]  # is there
        if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
            raise ValueError(f"inputs: expected a list of calls of {function}, given {type(calls).__name__}")
        for call in calls:
            if not isinstance(call, tuple) and not (isinstance(call, Mapping) and all(isinstance(name, str) for name in call)):
                given = f"a dict of {', '.join(map(repr, call))}" if isinstance(call, Mapping) else type(call).__name__
                raise ValueError(f"inputs: expected a tuple of arguments of {function}, or a dict by name, given {given}")
            count += 1
            yield function, call
    if not count:
        raise ValueError("inputs: expected at least one call, given none")
