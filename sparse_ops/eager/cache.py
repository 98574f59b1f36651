"""Compiled functions of the eager face: built once per configuration and target, kept in memory and on disk.

The name of a file is a hash over the configuration, the target, the versions of TVM and tvm-ffi and the source of our
packages, so a file never has to be invalidated. Files are written under another name and then moved, so that several
processes can fill one folder. Where no C compiler is found, which TVM needs to link a library, functions are compiled in
the process and not kept.

The folder is `sparse_ops` in $SPARSE_OPS_CACHE, else in the user's cache folder; SPARSE_OPS_CACHE=off keeps nothing on disk.
"""

import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi

import tir_kernels
from tir_kernels.dispatch import choice, current_target, fingerprint, kernel_for
from tir_kernels.spec import Spec

from ..build import build, unchecked
from ..devices import cuda_graphs_in_use, device_in_use
from ..program import Program

TEMPORARY = "tmp"  # names of files that are being written begin so; all others are hashes, of hexadecimal digits
STALE_SECONDS = 24 * 3600


def cache_folder(package: str = "sparse_ops") -> Path | None:
    """Where `package` keeps what it compiled, or None: each has a folder of its own in $SPARSE_OPS_CACHE, else in the user's
    cache folder."""
    chosen = os.environ.get("SPARSE_OPS_CACHE")
    if chosen == "off":
        return None
    if chosen:
        base = Path(chosen)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / package


@cache
def source_digest() -> str:
    """Hash of the source files that decide what is compiled."""
    digest = hashlib.sha256()
    for package in (Path(tir_kernels.__file__).parent, Path(__file__).parents[1]):
        for file in sorted(package.rglob("*.py")):
            digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


_lock = threading.Lock()  # of the next line
_one_at_a_time: dict[tuple, threading.Lock] = {}  # for each function that is being compiled
_compiled: dict[tuple, Any] = {}  # programs and kernels


def _forget_locks() -> None:
    """In the child of a fork: who held them is not there to give them back."""
    global _lock, _one_at_a_time
    _lock, _one_at_a_time = threading.Lock(), {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def compiled(identity: tuple, make_module: Callable[[], tvm.IRModule], precision: str = "float32") -> Program:
    """The compiled function of a module. `identity`, nested tuples of numbers, strings and None, must determine what
    `make_module` returns; `precision` as in `build`. Callers check arguments, see `build.unchecked`.

    Threads may call it at once: a function is compiled by the first that asks for it, and others go on.
    """

    def make(target: tvm.target.Target) -> Program:
        return build(make_module(), target, lift_params=True, precision=precision)

    return _kept(identity, precision, lambda target: Program(_load_or_build(identity, make, target, precision)))


def kernel(spec: Spec) -> Callable:
    """The kernel of a description as a function of TVM tensors, with no virtual machine around it."""

    def make(target: tvm.target.Target) -> tvm.runtime.Executable:
        return tvm.compile(tvm.IRModule({spec.family: kernel_for(spec, target).function}), target)

    identity = (spec.family, *dataclasses.astuple(spec))
    return _kept(identity, "kernel", lambda target: _load_or_build(identity, make, target, "kernel")[spec.family])


def scope() -> tuple:
    """What a function is compiled for here and now, besides its identity: the target in scope, and what decides on kernels."""
    target = tvm.target.Target.current(allow_none=True)
    return (None, choice()) if target is None else (str(target), choice(), device_in_use(), cuda_graphs_in_use())


def _kept(identity: tuple, form: str, make: Callable[[tvm.target.Target], Any]):
    """What `make` returned for these the first time."""
    key = (identity, form, scope())
    found = _compiled.get(key)
    if found is None:
        with _lock:
            one = _one_at_a_time.setdefault(key, threading.Lock())
        with one:
            found = _compiled.get(key)
            if found is None:
                found = _compiled[key] = make(current_target())
        with _lock:
            _one_at_a_time.pop(key, None)
    return found


def _file_name(identity: tuple, target: tvm.target.Target, form: str) -> str:
    """A hash over all that decides what is compiled."""
    everything = {
        "identity": identity,
        "form": form,
        "target": str(target),
        "kernels": fingerprint(target),
        "tvm": tvm.__version__,
        "tvm_ffi": tvm_ffi.__version__,
        "source": source_digest(),
        "graphs": cuda_graphs_in_use(),
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _load_or_build(
    identity: tuple, make: Callable[[tvm.target.Target], tvm.runtime.Executable], target: tvm.target.Target, form: str
) -> tvm.runtime.Module | tvm.runtime.Executable:
    """What `make` makes, from the folder if it is there."""
    folder = cache_folder()
    file = folder / f"{_file_name(identity, target, form)}.so" if folder else None
    if file is not None and file.exists():
        try:
            return tvm.runtime.load_module(str(file))
        except Exception:  # a damaged file, or one of another machine: build it anew
            with suppress(OSError):  # in a folder that is read-only it stays
                file.unlink()
    with unchecked():
        executable = make(target)
    if file is not None and _keep(executable, file):
        # What is linked already: to generate its code a second time takes long. Unless another process, which found a damaged
        # file here before this one, removes it.
        with suppress(Exception):
            return tvm.runtime.load_module(str(file))
    return executable


@cache  # once a process
def _sweep(folder: Path) -> None:
    """Removes the temporary files of processes that died while they wrote: those of a day ago."""
    for path in folder.glob(f"{TEMPORARY}*.so"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def _keep(executable, file: Path) -> bool:
    """Write a library under its final name in one step; without a compiler or a writable folder, keep nothing and say so."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _sweep(file.parent)
        handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, suffix=".so", dir=file.parent)
        os.close(handle)
        executable.export_library(temporary)
        os.replace(temporary, file)
        temporary = None
        return True
    except Exception:  # TVM raises TypeError where there is no compiler, RuntimeError where linking fails
        return False  # the function works all the same, it will be compiled again in the next process
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
