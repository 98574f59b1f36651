"""What is known of a compiled component beside its code: functions, parameters, versions and target, as JSON and back.

    {"format": 3, "name": "classifier", "precision": "float32",
     "versions": {"apache-tvm": ..., "apache-tvm-ffi": ...},
     "target": {...}, "system": "Linux x86_64", "cpu_features": [...],
     "code": {"file": "library.so", "sha256": ...},
     "parameters": [{"name": "norm.weight", "dtype": "float32", "shape": [1024]}, ...],    as the module has them
     "packed": [{"name": "pack_weight(fc.weight)", ..., "runs_in": "int8", "apart": [3, ...]}, ...],    as kernels read them
     "functions": {"forward": {"inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}, ...], "outputs": [...],
                               "arguments": {"x": 0}, "result": 0, "parameters": [0, ...], "packed": [0, ...],
                               "code": ""}}}

`arguments` and `result` are structures: the number of a tensor, or a list or an object of structures. In a shape a string is a
size that every call chooses, or is computed from such sizes. `code` names the function whose code this one shares, with other
parameters: of layers that are alike one is compiled. `runs_in`: in which numbers a layer multiplies by this weight, "" of what
is no weight; "int8" and "int7" are integers of at least as many bits. `apart`: the input channels that `calibrate` has kept
apart from integers.
"""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, TypeAlias

import tvm

from sparse_ops.deploy.files import DTYPES
from sparse_ops.deploy.reading import brief, parse_json, shown
from sparse_ops.devices import CUDA, cuda_target
from sparse_ops.transform.precision import PRECISIONS, QUANTIZED
from tir_kernels.cuda.gpu import Gpu
from tir_kernels.dispatch import host_target

MANIFEST = "manifest.json"
FORMAT = 3
PACKAGES = ("apache-tvm", "apache-tvm-ffi")  # those that decide whether code can be loaded
Structure: TypeAlias = "int | list[Structure] | dict[str, Structure]"


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def from_json(cls, value: Mapping) -> "TensorSpec":
        name, dtype, shape = value["name"], value["dtype"], value["shape"]
        if not isinstance(name, str) or not isinstance(shape, list) or dtype not in DTYPES:
            raise ValueError(f"expected name, dtype and shape of a tensor, given {shown(value)}")
        if not all(isinstance(n, str) or (type(n) is int and n >= 0) for n in shape):
            raise ValueError(f"{name}: expected sizes of 0 or more, or names of them, given {shown(shape)}")
        return cls(name, dtype, tuple(shape))

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class PackedSpec(TensorSpec):
    """One that kernels read. `runs_in`, of the weight of a layer: "float32", "bfloat16", "float16", "int8" or "int7"; `apart`:
    see `calibrate`."""

    runs_in: str = ""
    apart: tuple[int, ...] = ()

    @property
    def is_quantized(self) -> bool:
        return self.runs_in in QUANTIZED

    @classmethod
    def from_json(cls, value: Mapping) -> "PackedSpec":
        tensor, runs_in, apart = TensorSpec.from_json(value), value["runs_in"], value["apart"]
        if runs_in not in ("", *PRECISIONS):
            raise ValueError(f"{tensor.name}: expected runs_in of {', '.join(PRECISIONS)}, or none, given {shown(runs_in)}")
        if not isinstance(apart, list) or not all(type(channel) is int and channel >= 0 for channel in apart):
            raise ValueError(f"{tensor.name}: expected apart to list channels, given {shown(apart)}")
        return cls(tensor.name, tensor.dtype, tensor.shape, runs_in, tuple(apart))


@dataclass(frozen=True)
class FunctionSpec:
    """One function: its inputs and outputs, how arguments and result are made of them, and the numbers of the parameters and
    of the packed tensors that it reads. `products_only`: all but what its linear layers multiply is float32, whatever the
    precision of the component."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arguments: Mapping[str, Structure]
    result: Structure
    parameters: tuple[int, ...]
    packed: tuple[int, ...]
    code: str = ""
    products_only: bool = False

    @classmethod
    def from_json(cls, value: Mapping) -> "FunctionSpec":
        inputs, outputs = (tuple(map(TensorSpec.from_json, value[key])) for key in ("inputs", "outputs"))
        parameters, packed = (tuple(value[key]) for key in ("parameters", "packed"))
        if not isinstance(value["arguments"], Mapping) or not isinstance(value["code"], str):
            raise ValueError(f"expected arguments by name and the name of a function as code, given {shown(value)}")
        _check_numbers(value["arguments"], len(inputs), "inputs")
        _check_numbers(value["result"], len(outputs), "outputs")
        only = value.get("products_only", False)
        if not isinstance(only, bool):
            raise ValueError(f"expected products_only to be true or false, given {shown(only)}")
        return cls(inputs, outputs, value["arguments"], value["result"], parameters, packed, value["code"], only)


@dataclass(frozen=True)
class Manifest:
    """All of it but the code, see the top of this file."""

    name: str
    precision: str
    versions: Mapping[str, str]
    target: Mapping[str, Any]
    system: str
    cpu_features: tuple[str, ...]
    parameters: tuple[TensorSpec, ...]
    packed: tuple[PackedSpec, ...]
    functions: Mapping[str, FunctionSpec]

    @classmethod
    def of(cls, name: str, precision: str, target: tvm.target.Target, **rest) -> "Manifest":
        """One that is made here and now."""
        features = tuple(sorted(_cpu_features(target.host or target)))
        return cls(name, precision, versions(), json.loads(str(target)), system(), features, **rest)

    def to_json(self, code: Mapping[str, str]) -> str:
        return json.dumps({"format": FORMAT, "code": dict(code)} | asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> tuple["Manifest", dict[str, str]]:
        """The manifest and its entry "code". ValueError that names manifest.json for anything else."""
        value = parse_json(text, MANIFEST)
        try:
            if value["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}, given {value['format']!r}")
            functions = {str(name): FunctionSpec.from_json(function) for name, function in value["functions"].items()}
            parameters = tuple(map(TensorSpec.from_json, value["parameters"]))
            packed = tuple(map(PackedSpec.from_json, value["packed"]))
            manifest = cls(
                str(value["name"]),
                str(value["precision"]),
                {package: str(value["versions"][package]) for package in PACKAGES},
                {**value["target"]},
                str(value["system"]),
                tuple(map(str, value["cpu_features"])),
                parameters,
                packed,
                functions,
            )
            for name, function in functions.items():
                _check_numbers(list(function.parameters), len(parameters), "parameters")
                _check_numbers(list(function.packed), len(packed), "packed tensors")
                if function.code and function.code not in functions:
                    raise ValueError(f"{shown(name)}: expected the name of a function as code, given {shown(function.code)}")
            return manifest, {key: str(value["code"][key]) for key in ("file", "sha256")}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
            raise ValueError(f"{MANIFEST}: not the manifest of a component: {brief(reason)}") from error

    def check_runs_here(self) -> None:
        """ValueError that says which version, system or instructions another one was made for."""
        for package, here in versions().items():
            made = self.versions[package]
            if made != here:
                raise ValueError(f"made by {package} {made}, this is {here}: port the component again")
        if self.system != system():
            raise ValueError(f"made for {self.system}, this is {system()}: port the component again, here or for this target")
        if problem := self.problem_here():
            raise ValueError(f"made for the target {json.dumps(self.target)}, {problem}")

    def problem_here(self) -> str | None:
        """Why this machine cannot run the code: instructions of the CPU, or a device, that it lacks. None if it can."""
        if lacking := set(self.cpu_features) - _cpu_features(host_target()):
            found = f"this CPU lacks {', '.join(sorted(lacking))}"
            return f"{found}: port the component again, for a target of instructions that it has"
        if self.target.get("kind") == CUDA:
            try:
                here = Gpu.of(cuda_target())
            except ValueError as error:
                return f"and this machine has no such device: {error}"
            made = Gpu.of(tvm.target.Target(dict(self.target)))
            if here.capability < made.capability:
                return f"this device has compute capability {here}: port the component again, for the target 'cuda'"
        return None


def _cpu_features(target: tvm.target.Target) -> set[str]:
    return {str(feature) for feature in tvm.target.codegen.llvm_get_cpu_features(target)}


def versions() -> dict[str, str]:
    return {package: version(package) for package in PACKAGES}


def system() -> str:
    return f"{platform.system()} {platform.machine()}"


def leaves(structure: Structure, value: Any, where: str) -> Iterator[Any]:
    """The tensors of `value` in the order of their numbers within `structure`. ValueError if it is built otherwise."""
    if isinstance(structure, int):
        yield value
    elif isinstance(structure, Mapping):
        if not isinstance(value, Mapping) or value.keys() != structure.keys():
            given = f"a dict of {', '.join(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"{where}: expected a dict of {', '.join(structure)}, given {given}")
        for key, part in structure.items():
            yield from leaves(part, value[key], f"{where}.{key}")
    else:
        if not isinstance(value, Sequence) or len(value) != len(structure):
            given = f"{len(value)} of them" if isinstance(value, Sequence) else type(value).__name__
            raise ValueError(f"{where}: expected a sequence of {len(structure)}, given {given}")
        for i, (part, element) in enumerate(zip(structure, value, strict=True)):
            yield from leaves(part, element, f"{where}.{i}")


def _check_numbers(structure: Any, count: int, what: str) -> None:
    """ValueError unless a structure is one, of numbers of `count` tensors."""
    if isinstance(structure, (Mapping, list)):
        for part in structure.values() if isinstance(structure, Mapping) else structure:
            _check_numbers(part, count, what)
    elif type(structure) is not int or not 0 <= structure < count:
        raise ValueError(f"expected numbers of {count} {what}, given {shown(structure)}")


def names(structure: Structure, name: str) -> Iterator[tuple[int, str]]:
    """The number and the dotted name of every tensor in `structure`."""
    if isinstance(structure, int):
        yield structure, name
    else:
        parts = structure.items() if isinstance(structure, Mapping) else enumerate(structure)
        for key, part in parts:
            yield from names(part, f"{name}.{key}")


def build(structure: Structure, tensors: Sequence) -> Any:
    """`structure` with the tensors in place of their numbers."""
    if isinstance(structure, int):
        return tensors[structure]
    if isinstance(structure, Mapping):
        return {key: build(part, tensors) for key, part in structure.items()}
    return tuple(build(part, tensors) for part in structure)
