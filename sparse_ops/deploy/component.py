"""A compiled component: functions over one set of named parameters, in memory and as an artifact folder. It needs no torch.

    manifest.json            what there is, for which versions and target, see `manifest`
    library.so               the code; or module.json, which is compiled on loading, where no C compiler can link a library
    parameters.safetensors   the packed parameters, as kernels read them: mapped into memory, not read

`from_torch.port_component` makes components from PyTorch modules, `from_nn.component_from_nn` from those of `sparse_ops.nn`.
"""

import errno
import mmap
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from sparse_ops.build import unchecked
from sparse_ops.deploy.files import DTYPES, save_safetensors, write_bytes
from sparse_ops.deploy.manifest import MANIFEST, FunctionSpec, Manifest, PackedSpec, TensorSpec, build, leaves
from sparse_ops.deploy.reading import JSON_BYTES, brief, digest, read_bytes, safetensors_header
from sparse_ops.deploy.weights import LISTED, State, check_arrays
from sparse_ops.devices import placed
from sparse_ops.eager.arrays import as_kind, as_tensor, kind_of
from sparse_ops.program import Program, pack_each, tensors_of

LIBRARY, MODULE, PARAMETERS = "library.so", "module.json", "parameters.safetensors"
FORMS = {"library": LIBRARY, "module": MODULE}
SWAP_SECONDS = 5.0  # a folder that another process replaces is away for less


class Component:
    """Functions of a ported module, and its parameters.

        component = Component.load("artifacts/autoencoder")
        result = component(image)              # the function "forward"
        code = component["encode"](image)      # another one

    Arguments are numpy, torch or TVM tensors, named or by position, in lists and dicts where the module took such. Results are
    built as the module built them, of tensors of the kind of the first argument, without copies on a CPU. Threads may share it.
    Its parameters are packed copies: what is written into the originals afterwards does not count.
    """

    def __init__(
        self,
        manifest: Manifest,
        code: tvm.runtime.Module | None,
        packed: Sequence[tvm.runtime.Tensor],
        write: Callable[[Path, str | None], str],
    ):
        """`code`: None if this CPU cannot run it. `packed`: as `manifest.packed`. `write(folder, form)`: writes the code and
        returns the name of its file."""
        self.manifest = manifest
        self._code, self._write = code, write
        self._program = code and Program(code)
        self._packed = list(placed(list(packed), self._program.device)) if code else packed
        self._functions = {name: Function(self, name) for name in manifest.functions} if code else {}

    @property
    def name(self) -> str:
        return self.manifest.name

    def __getitem__(self, function: str) -> "Function":
        """The function of that name. ValueError if there is none, or if the component is for another CPU."""
        if self._code is None:
            self.manifest.check_runs_here()
        if function not in self._functions:
            raise ValueError(f"function: expected one of {', '.join(self._functions)}, given {function!r}")
        return self._functions[function]

    def __call__(self, *args, **kwargs):
        return self["forward"](*args, **kwargs)

    @property
    def program(self) -> Program:
        """What runs the code, for callers that check and pass arguments themselves, see `Function.packed`. ValueError if the
        component is for another CPU."""
        if self._code is None:
            self.manifest.check_runs_here()
        return self._program

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed parameters."""
        return sum(_nbytes(spec) for spec in self.manifest.packed)

    def with_parameters(self, state: State) -> "Component":
        """The same code with other parameters: arrays by name, float32, float16 or bfloat16, cast to what the model has. What
        `calibrate` found with the parameters before is forgotten.

        ValueError that names every parameter that is missing, not known, or of another shape or dtype, and for a component
        that is for another CPU.
        """
        self.manifest.check_runs_here()
        check_arrays({spec.name: spec.shape for spec in self.manifest.parameters}, state)
        manifest = replace(self.manifest, packed=tuple(replace(spec, apart=()) for spec in self.manifest.packed))
        return Component(manifest, self._code, pack(self._program, manifest, state), self._write)

    def with_packed(self, packed: Mapping[int, tuple[PackedSpec, np.ndarray]]) -> "Component":
        """The same with other packed parameters, by their numbers: arrays of the same dtype and shape."""
        specs, tensors = list(self.manifest.packed), list(self._packed)
        for number, (spec, array) in packed.items():
            specs[number], tensors[number] = spec, tvm.runtime.tensor(array)
        return Component(replace(self.manifest, packed=tuple(specs)), self._code, tensors, self._write)

    def packed_array(self, number: int) -> np.ndarray:
        """The memory of a packed parameter, not to be written into."""
        return as_kind(self._packed[number], "numpy")

    def packed_address(self, number: int) -> int:
        """Where the memory of a packed parameter begins."""
        return self._packed[number].data_ptr()

    def save(
        self,
        folder: str | os.PathLike,
        form: str | None = None,
        finish: Callable[[Path], None] = lambda folder: None,
    ) -> Path:
        """Write the artifact folder, whole or not at all; an artifact that is there already is replaced. Processes may save to
        one place at once, of which the last counts, and load from it meanwhile.

        `form`: "library", "module", or by default a library where a C compiler can link one, else a module. `finish`: called
        with the folder when all is written, before it takes its place, for files of the caller's. Raises ValueError for a
        folder that holds something else, and for a form that is not possible.
        """
        if form is not None and form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, given {form!r}")
        folder = Path(folder).absolute()
        if folder.exists() and not (folder / MANIFEST).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"folder: expected a new folder or an artifact to replace, given {str(folder)!r}")
        with _replacing(folder) as temporary:
            file = self._write(temporary, form)
            code = {"file": file, "sha256": digest(temporary / file)}
            arrays = [as_kind(tensor, "numpy") for tensor in self._packed]
            tensors = {spec.name: array for spec, array in zip(self.manifest.packed, arrays, strict=True)}
            save_safetensors(temporary / PARAMETERS, tensors)
            write_bytes(temporary / MANIFEST, self.manifest.to_json(code).encode())
            finish(temporary)
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Component":
        """The component of an artifact folder. Its parameters are mapped into memory: they are read when they are used.

        Raises ValueError for a folder that is no artifact, one of another version of TVM or for instructions that this CPU
        lacks, a file that is missing, truncated or changed, and for parameters that are missing, not known or of another shape
        or dtype.
        """
        folder, end = Path(folder), time.monotonic() + SWAP_SECONDS
        while True:
            before = _identity(folder)
            try:
                return cls._load(folder)
            except ValueError:
                # Files of two artifacts, or none, if another process put its own in place of this one meanwhile: look again.
                swapped = _identity(folder) != before or (before is None and next(leftovers(folder), None) is not None)
                if not swapped or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    @classmethod
    def _load(cls, folder: Path) -> "Component":
        try:
            manifest, code = Manifest.from_json(read_bytes(folder / MANIFEST, JSON_BYTES))
            try:
                manifest.check_runs_here()
            except ValueError as error:
                raise ValueError(f"{MANIFEST}: {error}") from error
            file = folder / code["file"]
            if code["file"] not in FORMS.values() or digest(file) != code["sha256"]:
                raise ValueError(f"{code['file']}: not what {MANIFEST} says, it is damaged or of another artifact")
            packed = _mapped(folder / PARAMETERS, manifest.packed)
            module = tvm.runtime.load_module(str(file)) if file.name == LIBRARY else compile_json(file, manifest)
            return cls(manifest, module, packed, partial(_copy_code, file.absolute()))
        except (OSError, ValueError) as error:
            raise ValueError(f"artifact {str(folder)!r}: {brief(error, 4000)}") from error


class Function:
    """One function of a component; call it as the method of the module that it was. `packed`: the parameters that its code
    takes behind the inputs."""

    def __init__(self, component: Component, name: str):
        self.name = name
        self.spec: FunctionSpec = component.manifest.functions[name]
        self._call = component._program[self.spec.code or name]
        self.packed = [component._packed[i] for i in self.spec.packed]

    def __call__(self, *args, **kwargs):
        """ValueError for arguments that do not fit: names, structure, kinds, dtypes, shapes, sizes that should be equal."""
        given = self._leaves(args, kwargs)
        sizes: dict[str, int] = {}
        inputs = []
        for spec, value in zip(self.spec.inputs, given, strict=True):
            shape = tuple(sizes.get(n, n) if isinstance(n, str) else n for n in spec.shape)
            inputs.append(tensor := as_tensor(value, spec.name, (spec.dtype,), shape))
            sizes |= {n: int(size) for n, size in zip(spec.shape, tensor.shape, strict=True) if isinstance(n, str)}
        result = self._call(*inputs, *self.packed)
        outputs = tensors_of(result)
        kind = kind_of(given[0]) if given else "numpy"
        return build(self.spec.result, [as_kind(output, kind) for output in outputs])

    def _leaves(self, args: tuple, kwargs: Mapping[str, Any]) -> list:
        names = list(self.spec.arguments)
        named = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or named.keys() != set(names) or len(named) != len(args) + len(kwargs):
            given = ", ".join([f"{len(args)} by position", *kwargs])
            raise ValueError(f"{self.name}: expected the arguments {', '.join(names)}, given {given}")
        found = [leaf for name in names for leaf in leaves(self.spec.arguments[name], named[name], name)]
        return found


def pack(program: Program, manifest: Manifest, state: State) -> list[tvm.runtime.Tensor]:
    """The packed parameters in the order of the manifest; what several functions read is kept once."""
    packed: dict[int, tvm.runtime.Tensor] = {}
    for name, function in manifest.functions.items():
        if all(number in packed for number in function.packed):
            continue

        def store(index: int, value: tvm.runtime.Tensor, function: FunctionSpec = function) -> None:
            if function.packed[index] not in packed:
                packed[function.packed[index]] = value.copyto(value.device)  # its memory is used again by the next ones

        pack_function(program, manifest, state, name, store)
    return [packed[i] for i in range(len(manifest.packed))]


def pack_function(
    program: Program, manifest: Manifest, state: State, name: str, store: Callable[[int, tvm.runtime.Tensor], None]
) -> None:
    """Calls `store(i, value)` with the packed parameters of a function, one at a time, which is i in its list of them."""
    function = manifest.functions[name]

    @lru_cache(maxsize=2)  # a layer that is cut reads its weight and bias for every part
    def read(index: int) -> tvm.runtime.Tensor:
        spec = manifest.parameters[function.parameters[index]]
        return tvm.runtime.tensor(np.ascontiguousarray(np.asarray(state[spec.name]), np.dtype(spec.dtype)))

    pack_each(program, function.code or name, read, store)


def compile_lowered(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Executable:
    """Code from a module that all passes have been applied to. `Function` checks arguments."""
    with unchecked():
        return tvm.compile(module, target=target, relax_pipeline=tvm.transform.Sequential([]))


def compile_json(file: Path, manifest: Manifest) -> tvm.runtime.Executable:
    """Code from the module in `file`."""
    return compile_lowered(tvm.ir.load_json(file.read_text()), tvm.target.Target(dict(manifest.target)))


def _copy_code(file: Path, folder: Path, form: str | None) -> str:
    """How a component that was loaded writes its code."""
    if form is not None and FORMS[form] != file.name:
        raise ValueError(f"form: expected that of the loaded artifact, which holds {file.name}, given {form!r}")
    shutil.copyfile(file, folder / file.name)
    return file.name


def _mapped(file: Path, specs: Sequence[TensorSpec]) -> list[tvm.runtime.Tensor]:
    """The tensors of a .safetensors file over its mapped memory. ValueError unless they are those of `specs`."""
    header, start = safetensors_header(file)  # with the length of the file
    names = set(header)
    with open(file, "rb") as opened:
        memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) if names else b""
    expected = {spec.name: spec for spec in specs}
    problems = [f"{brief(name, 200)}: missing, expected {spec}" for name, spec in expected.items() if name not in names]
    problems += [f"{brief(name, 200)}: not a parameter of this component" for name in names - expected.keys()]
    found = {}
    for name in names & expected.keys():
        spec, entry = expected[name], header[name]
        if entry["dtype"] != DTYPES[spec.dtype] or tuple(entry["shape"]) != spec.shape:
            problems.append(f"{brief(name, 200)}: expected {spec}, given {entry['dtype']} {entry['shape']}")
            continue
        count = int(np.prod(spec.shape, dtype=np.int64))
        array = np.frombuffer(memory, np.dtype(spec.dtype), count, start + entry["data_offsets"][0]).reshape(spec.shape)
        found[name] = as_tensor(array, name, (spec.dtype,), spec.shape)
    if problems:
        more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise ValueError(f"{file.name}: not what {MANIFEST} says: " + "; ".join(sorted(problems)[:LISTED] + more))
    return [found[spec.name] for spec in specs]


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends, and leaves no trace if it raises."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    temporary.mkdir(parents=True)
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        for tries_left in reversed(range(100)):
            with suppress(FileNotFoundError):
                os.replace(folder, old)
            try:
                os.replace(temporary, folder)
                break
            except OSError as error:
                if not tries_left or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            shutil.rmtree(old, ignore_errors=True)  # another process put its own there in between: it makes way, too
    except BaseException:
        with suppress(OSError):  # there is no old one, or another process put its own there
            os.replace(old, folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def leftovers(folder: Path) -> Iterator[Path]:
    """Folders beside `folder` that are being written or replaced by `Component.save`, or were when its process died."""
    pattern = re.compile(re.escape(f".{folder.name}.") + r"[0-9a-f]{16}\.(tmp|old)")
    with suppress(FileNotFoundError, NotADirectoryError):
        yield from (path for path in folder.parent.iterdir() if pattern.fullmatch(path.name))


def _identity(folder: Path) -> tuple[int, int] | None:
    """What differs between a folder and one that took its place; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _nbytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
