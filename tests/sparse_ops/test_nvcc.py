"""Every CUDA kernel of the registry by NVIDIA's compiler, for three architectures: spills, and registers that are stated.

Skipped where nvcc is not installed. Sources that are the same for all architectures are compiled for all of them at once.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tvm
import tvm_ffi
from tvm import relax

from sparse_ops.build import unchecked
from tests.cuda_device import cuda_target
from tests.sparse_ops.walk import CASES, example_module
from tir_kernels.cuda.gpu import ON_DEVICE, REGISTERS

ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
BATCH = 12  # kernels of one source: more would make nvcc slower than it starts
# Rows whose kernels differ by dtype in more than how they load and store; of others one dtype stands for all.
PRODUCTS = (
    *("sparse_conv", "grouped_conv", "sparse_conv_weight_gradient", "linear", "conv3d", "conv_transpose3d", "attention"),
    "upsampled_conv",
)
DTYPE = "float16"
AT_A_STEP = 16  # bytes
FEW = 0.03  # of all launches

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


def kernels_for(arch: str) -> dict[str, tvm.tirx.PrimFunc]:
    """Every kernel for a device that the registry's rows come to, by a name of its own."""
    found: dict[int, tvm.tirx.PrimFunc] = {}
    target = cuda_target(arch)
    for row, dtype in CASES:
        stands_for_all = dtype == DTYPE or DTYPE not in row.dtypes or row.name in PRODUCTS
        if stands_for_all and not row.name.startswith("int8_"):
            with target:
                mod = relax.transform.LegalizeOps()(example_module(row, dtype))
            for gv, function in mod.functions_items():
                if ON_DEVICE in (function.attrs or {}):
                    found.setdefault(tvm_ffi.structural_hash(function), function.with_attr("global_symbol", gv.name_hint))
    return {f"k{number}_{function.attrs['global_symbol']}": function for number, function in enumerate(found.values())}


def source_of(kernels: dict[str, tvm.tirx.PrimFunc], arch: str) -> str:
    functions = {name: function.with_attr("global_symbol", name) for name, function in kernels.items()}
    with unchecked():
        module = tvm.compile(tvm.IRModule(functions), target=cuda_target(arch))
    return (module.mod if isinstance(module, tvm.runtime.Executable) else module).imports[0].inspect_source()


def properties(source: str, architectures: tuple[str, ...], folder: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """(bytes that spill, registers) of every kernel and architecture, as ptxas reports them."""
    file = folder / "kernels.cu"
    file.write_text(source)
    codes = [f"-gencode=arch=compute_{arch[3:]},code={arch}" for arch in architectures]
    command = [
        "nvcc",
        "-std=c++17",
        "-O3",
        *codes,
        "--threads=2",
        "-Xptxas=-v",
        "-fatbin",
        "-o",
        str(folder / "out"),
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    found = {}
    pattern = r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    for name, arch, spilled, registers in re.findall(pattern, done.stderr, re.DOTALL):
        found[name, arch] = int(spilled), int(registers)
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> tuple[dict[tuple[str, str], tuple[int, int]], dict[str, dict[str, tvm.tirx.PrimFunc]]]:
    """What ptxas says of all kernels, and the kernels by architecture."""
    found, kernels = {}, {arch: kernels_for(arch) for arch in ARCHITECTURES}
    first, *others = ARCHITECTURES
    same = [arch for arch in others if kernels[arch].keys() == kernels[first].keys()]
    alike = {n: all(tvm_ffi.structural_equal(f, kernels[arch][n]) for arch in same) for n, f in kernels[first].items()}
    jobs = [((first, *same), {name: f for name, f in kernels[first].items() if alike[name]})]
    for arch in ARCHITECTURES:
        jobs.append(((arch,), {n: f for n, f in kernels[arch].items() if arch not in (first, *same) or not alike[n]}))
    for architectures, group in jobs:
        names = list(group)
        for start in range(0, len(names), BATCH):
            batch = {name: group[name] for name in names[start : start + BATCH]}
            folder = tmp_path_factory.mktemp("nvcc")
            found |= properties(source_of(batch, architectures[0]), architectures, folder)
    return found, kernels


def test_nothing_spills(compiled):
    """But for the few bytes that ptxas rather spills than take the next step of registers."""
    found, kernels = compiled
    for arch in ARCHITECTURES:
        assert {name.split("_kernel")[0] for name, of in found if of == arch} == kernels[arch].keys()
    assert not {key: spilled for key, (spilled, _) in found.items() if spilled > AT_A_STEP}
    assert sum(spilled > 0 for spilled, _ in found.values()) <= FEW * len(found)


def test_registers_are_those_stated(compiled):
    found, kernels = compiled
    stated = 0
    for arch, functions in kernels.items():
        for name, function in functions.items():
            if REGISTERS in function.attrs:
                entries = [entry for entry, of in found if of == arch and entry.startswith(f"{name}_kernel")]
                used = max(found[entry, arch][1] for entry in entries)
                assert used <= int(function.attrs[REGISTERS]), f"{name} for {arch}"
                stated += 1
    assert stated
