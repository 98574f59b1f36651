"""Builds the emulator's runtime and translated kernels by g++, and keeps them under a hash of all that they are made of."""

import fcntl
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import tvm
import tvm_ffi

from .translate import translate

HERE = Path(__file__).parent
RUNTIME = HERE / "runtime"
COMPILER = ("g++", "-std=c++17", "-fPIC", "-shared", "-w")
# Every load and store becomes a call of the runtime, registers that nothing was written to hold garbage, and an index beyond a
# local array is found. Nothing may be moved across a barrier because of types or `restrict`.
KERNEL_FLAGS = (
    "-O1",
    "-g1",
    "-fsanitize=thread,bounds,integer-divide-by-zero",
    "--param=tsan-distinguish-volatile=1",
    "--param=tsan-instrument-func-entry-exit=0",
    "-ftrivial-auto-var-init=pattern",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fno-math-errno",
    # The runtime has what the sanitizer calls; its own library stays out.
    "-nodefaultlibs",
)
RUNTIME_FILES = ("interface.h", "memory.h", "memory.cc", "machine.h", "machine.cc", "graphs.h", "graphs.cc", "tvm_device.cc")
KERNEL_HEADERS = ("interface.h", "device.h", "half.h", "ptx.h")
KERNEL_LIBRARIES = ("-lm", "-lc", "-lgcc")


def cache_folder() -> Path:
    """CUDA_EMULATOR_CACHE, or a folder beside the project that git ignores."""
    folder = Path(os.environ.get("CUDA_EMULATOR_CACHE") or HERE.parent.parent / "build" / "cache" / "cuda_emulator")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _fingerprint(*files: str) -> str:
    """Hash of some files of the runtime and of what they are compiled against and by."""
    digest = hashlib.sha256()
    for name in files:
        digest.update(name.encode() + (RUNTIME / name).read_bytes())
    version = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout
    digest.update(f"{tvm.__version__} {tvm_ffi.__version__} {version} {_machine_flags()} {KERNEL_FLAGS}".encode())
    return digest.hexdigest()


@functools.cache
def _machine_flags() -> tuple[str, ...]:
    """What makes conversions of half fast, where the CPU has it."""
    try:
        return ("-mf16c",) if " f16c " in Path("/proc/cpuinfo").read_text() else ()
    except OSError:
        return ()


def _compile(path: Path, arguments: list[str]) -> Path:
    """Runs the compiler unless `path` is there. Of processes that want it at once, one works and the others wait."""
    if path.exists():
        return path
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however that ends
            if path.exists():
                return path
            done = subprocess.run([*COMPILER, *arguments, "-o", temporary], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"g++ failed on {path.stem}:\n{done.stderr[:4000]}")
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def runtime_library() -> Path:
    """The emulator's runtime, as a shared library against TVM's."""
    lib, ffi = Path(tvm.__file__).parent, Path(tvm_ffi.__file__).parent
    arguments = ["-O3", *_machine_flags(), *map(str, sorted(RUNTIME.glob("*.cc")))]
    arguments.append(f"-idirafter{RUNTIME / 'stand_ins'}")  # for headers that the wheel lacks
    for root in (lib, ffi):
        arguments += [f"-I{root / 'include'}", f"-L{root / 'lib'}"]
    return _compile(
        cache_folder() / f"runtime_{_fingerprint(*RUNTIME_FILES)[:16]}.so", [*arguments, "-ltvm_runtime", "-ltvm_ffi"]
    )


@functools.cache
def _headers() -> Path:
    """A folder of what kernels include, compiled beforehand: of most kernels that would take longer than their own source."""
    folder = cache_folder() / f"headers_{_fingerprint(*KERNEL_HEADERS)[:16]}"
    folder.mkdir(exist_ok=True)
    for name in KERNEL_HEADERS:
        handle, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write((RUNTIME / name).read_bytes())
        os.replace(temporary, folder / name)
    # g++ takes it in place of device.h, if it was compiled with the same flags
    _compile(folder / "device.h.gch", [*KERNEL_FLAGS, *_machine_flags(), "-x", "c++-header", str(folder / "device.h")])
    return folder


def kernel_library(source: str, kernel: str) -> str:
    """The path of a kernel's library, compiled if it is new. Its translated source lies beside it."""
    text = translate(source, kernel)
    name = hashlib.sha256((_fingerprint(*KERNEL_HEADERS) + text).encode()).hexdigest()[:20]
    path = cache_folder() / f"{name}.so"
    if not path.exists():
        handle, temporary = tempfile.mkstemp(suffix=".cc", dir=path.parent)
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path.with_suffix(".cc"))
        try:
            source = [f"-I{_headers()}", str(path.with_suffix(".cc")), *KERNEL_LIBRARIES]
            _compile(path, [*KERNEL_FLAGS, *_machine_flags(), *source])
        except RuntimeError as error:
            raise NotImplementedError(f"kernel {kernel}: the CUDA emulator does not know all of its source. {error}") from None
    return str(path)
