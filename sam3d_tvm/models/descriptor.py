"""All that the rest of the package knows of a model of the pipeline, in one place.

A model is a folder here, whose `descriptor.py` has a `Model` for each place that it takes in a pipeline. From these everything
else is derived: the fields of `PipelineConfig` and its presets, what a checkpoint is read by, artifacts, the estimate of
memory, and what `validate` compares.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tvm

from sparse_ops.deploy.component import Component
from sparse_ops.deploy.weights import State
from sparse_ops.transform.precision import features_of, gains


class Place(NamedTuple):
    """Where a model lies in a published checkpoint: `files`, by which pipeline.yaml names its .yaml and its weights
    (`<files>_config_path`, `<files>_ckpt_path`); the path to it in that .yaml; how the names of its weights begin there."""

    files: str
    path: tuple[str, ...] = ()
    prefix: str = ""


class OwnFile(NamedTuple):
    """Where a model lies that is published apart from the checkpoint, in a file that holds its config beside its weights.

    key: where pipeline.yaml has it, of which the model's targets make its name. find(name, folder): its file, of that name and
    the checkpoint's folder; find_given(path): where a user says that it is; both raise `MissingFile` where none is found.
    read(file): its config, and its weights by upstream's names. lost: what a pipeline cannot do without it, in words.
    """

    key: str
    find: Callable[[str, Path], Path]
    find_given: Callable[[str | os.PathLike], Path]
    read: Callable[[Path], tuple[Any, State]]
    lost: str


class Compile(Protocol):
    """Compiles the network of a config with the weights of `state`; `options`: what `Model.options` found."""

    def __call__(
        self, config: Any, state: State, name: str, precision: str, target: tvm.target.Target | None, **options: Any
    ) -> Component: ...


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the pipeline. `pipeline` below is a `PipelineConfig`.

    config, from_json: the type of its config, and what makes one of JSON.
    presets: its config in each preset of the pipeline that has it.
    stage: 1 or 2, the half of the pipeline that runs it.
    optional: whether a pipeline may be without it; optional_in_checkpoint: whether a published one may.
    fits(name, config, pipeline): of what other models decide, its name, what this one has and what it should have.

    shapes(config): of its parameters, by upstream's names. random_weights(config, seed): such parameters.
    compile, options(pipeline): what is compiled, and all that it depends on beside the model's own config, as JSON.
    open(component, config): what runs it, without torch.
    memory(config, pipeline, voxels): numbers that it keeps at its peak, beside its weights; memory_of_view(config, pipeline):
    those that each photo of the object behind the first one adds.
    integers: whether its layers may have integer products, "int8" or "int7". A model that has no layers that gain, or whose
    activations such numbers are not enough for, is compiled in the fastest floats where a pipeline is asked for them.

    place: in a published checkpoint, or the file that it has of its own. targets: what makes something of the values beside a
    `_target_`, by upstream's name.
    read_as, complete(read, models): for a model whose config takes more than the values beside its `_target_`: the type of what
    these make, and what makes the config of that and of what was read of all models, by name.
    offset_perturbation(config): where Gaussians of random weights begin, for models of which a checkpoint holds that.

    examples: what `validate` compares with PyTorch, by name; each makes an `example_torch.Example` of a size.
    """

    config: type
    from_json: Callable[[Mapping[str, Any]], Any]
    presets: Mapping[str, Any]
    stage: int
    optional: bool = False
    optional_in_checkpoint: bool = False
    fits: Callable[[str, Any, Any], Iterable[tuple[str, Any, Any]]] = lambda name, config, pipeline: ()

    shapes: Callable[[Any], Mapping[str, tuple[int, ...]]]
    random_weights: Callable[[Any, int], State]
    compile: Compile
    options: Callable[[Any], Mapping[str, Any]] = lambda pipeline: {}
    open: Callable[[Component, Any], Any]
    memory: Callable[[Any, Any, int], int]
    memory_of_view: Callable[[Any, Any], int] = lambda config, pipeline: 0
    integers: bool = False

    place: Place | OwnFile
    targets: Mapping[str, Callable[[Mapping[str, Any]], Any]]
    read_as: type | None = None
    complete: Callable[[Any, Mapping[str, Any]], Any] = lambda read, models: read
    offset_perturbation: Callable[[Any], np.ndarray] | None = None

    examples: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)

    def precision(self, asked: str, target: tvm.target.Target | None = None) -> str:
        """The precision that it is compiled in for `target`, by default this CPU, in a pipeline of the precision `asked`."""
        return asked if self.integers and gains(asked, target) else features_of(asked, target)
