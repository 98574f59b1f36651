"""Kernels for an AArch64 CPU with NEON, compiled here and run by an emulator, against their oracles.

An op is legalized for that CPU; what it becomes is a row of kernels, compiled into one library. `aarch64_driver.c`, run by
qemu, calls one of them; sizes that a kernel counts come back here, as nothing of TVM but its code runs there.
"""

import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tvm
import tvm_ffi.libinfo
from tvm import relax
from tvm.sym import Analyzer

from sparse_ops.testing.examples import OPS
from tests.poison import INTEGER
from tests.sparse_ops.walk import case_id, example_module, example_of
from tests.tolerance import assert_close

EMULATOR, COMPILER, DUMP = "qemu-aarch64", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objdump"
SYSTEM = "/usr/aarch64-linux-gnu"  # where Debian keeps its libraries
CODES = {"i": 0, "u": 1, "f": 2, "b": 6, "V": 4}  # of kinds of dtypes in DLPack; numpy takes bfloat16 for "V"
# The families with register tiles, by way of which kernel maps run too; and coordinates with rows that data decide.
CASES = [
    (row, dtype)
    for row in OPS
    for dtype in row.dtypes
    if row.name
    in ("sparse_conv", "depthwise_conv", "conv3d", "conv_transpose3d", "linear", "int8_linear", "int8_sparse_conv", "attention")
]
CASES += [(row, row.dtypes[0]) for row in OPS if row.name == "unique"]
SIZES = (0, 1, 97)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """The compiled driver. Skips where programs are missing."""
    if missing := [program for program in (EMULATOR, COMPILER, DUMP) if shutil.which(program) is None]:
        pytest.skip(f"none of {', '.join(missing)} is on the PATH")
    program = tmp_path_factory.mktemp("aarch64") / "driver"
    includes = [f"-I{path}" for path in tvm_ffi.libinfo.include_paths()]
    source = Path(__file__).with_name("aarch64_driver.c")
    subprocess.run([COMPILER, "-O1", "-rdynamic", *includes, source, "-o", program, "-ldl"], check=True)
    return program


class Emulated:
    """A legalized module: `main` is walked here, its kernels run on the emulated CPU."""

    def __init__(self, module: tvm.IRModule, target: tvm.target.Target, driver: Path, folder: Path):
        self._main, self._driver, self._folder = module["main"], driver, folder
        kernels = {gv: f for gv, f in module.functions_items() if not isinstance(f, relax.Function)}
        public = {gv: f.with_attr("global_symbol", gv.name_hint) for gv, f in kernels.items()}
        tvm.compile(tvm.IRModule(public), target=target).mod.write_to_file(str(folder / "kernels.o"), "o")
        self.library = folder / "kernels.so"
        subprocess.run([COMPILER, "-shared", folder / "kernels.o", "-o", self.library], check=True)

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """The results of `main`."""
        values: dict[relax.Var, object] = {}
        sizes: dict[tvm.tirx.Var, int] = {}
        for var, array in zip(self._main.params, inputs, strict=True):
            values[var] = array
            _bind(sizes, var.ty.shape.values, array.shape)
        for block in self._main.body.blocks:
            for binding in block.bindings:
                values[binding.var] = self._value(values, sizes, binding.value)
                if isinstance(binding, relax.MatchCast):
                    ty, value = binding.ty, values[binding.var]
                    if isinstance(ty, relax.ShapeType):
                        _bind(sizes, ty.values, value)
                    else:
                        _bind(sizes, ty.shape.values, value.shape)
        result = self._value(values, sizes, self._main.body.body)
        return result if isinstance(result, list) else [result]

    def _value(self, values, sizes, expr):
        if isinstance(expr, relax.Var):
            return values[expr]
        if isinstance(expr, tvm.ir.GenericConst):
            return expr.value.numpy()
        if isinstance(expr, relax.Tuple):
            return [self._value(values, sizes, part) for part in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return self._value(values, sizes, expr.tuple_value)[expr.index]
        if expr.op.name == "relax.tensor_to_shape":
            return tuple(self._value(values, sizes, expr.args[0]).tolist())
        assert expr.op.name == "relax.call_tir", expr.op.name
        (ty,) = expr.ty_args
        outputs = [_garbage(out, sizes) for out in (ty.fields if isinstance(ty, relax.TupleType) else [ty])]
        tensors = [self._value(values, sizes, arg) for arg in expr.args[1].fields] + outputs
        results = self._run(expr.args[0].name_hint, tensors)[-len(outputs) :]
        return results if isinstance(ty, relax.TupleType) else results[0]

    def _run(self, name: str, tensors: list[np.ndarray]) -> list[np.ndarray]:
        """All tensors after the kernel `name` ran."""
        head = [len(tensors)]
        for array in tensors:
            head += [CODES[array.dtype.kind], 8 * array.dtype.itemsize, array.ndim, *array.shape]
        given, taken = self._folder / "tensors.in", self._folder / "tensors.out"
        given.write_bytes(np.array(head, "<i8").tobytes() + b"".join(array.tobytes() for array in tensors))
        command = [EMULATOR, "-L", SYSTEM, self._driver, self.library, name, given, taken]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        ends = np.cumsum([array.nbytes for array in tensors])
        parts = [taken.read_bytes()[end - array.nbytes : end] for array, end in zip(tensors, ends, strict=True)]
        return [np.frombuffer(part, array.dtype).reshape(array.shape) for part, array in zip(parts, tensors, strict=True)]


def _bind(sizes: dict, named, given) -> None:
    for dim, size in zip(named, given, strict=True):
        if isinstance(dim, tvm.tirx.Var):
            assert sizes.setdefault(dim, int(size)) == size


def _garbage(ty: relax.TensorType, sizes: dict) -> np.ndarray:
    """An output before its kernel runs."""
    analyzer = Analyzer()
    for var, size in sizes.items():
        analyzer.bind(var, tvm.tirx.IntImm("int64", size))
    shape = [int(analyzer.simplify(dim)) for dim in ty.shape.values]
    dtype = ml_dtypes.bfloat16 if str(ty.dtype) == "bfloat16" else np.dtype(str(ty.dtype))
    return np.full(shape, np.nan if "float" in str(ty.dtype) else INTEGER, dtype)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_on_an_emulated_cpu(case, driver, tmp_path):
    row, dtype = case
    cpu = {"kind": "llvm", "mtriple": "aarch64-unknown-linux-gnu", "mcpu": "neoverse-n1"}
    target = tvm.target.Target(cpu, host=cpu)
    with target:
        module = relax.transform.LegalizeOps()(example_module(row, dtype))
    emulated = Emulated(module, target, driver, tmp_path)
    for rows in SIZES:
        with target:  # what is expected of integers depends on their bits
            example = example_of(row, dtype, rows)
        for i, (out, expected) in enumerate(zip(emulated(*example.inputs), example.expected, strict=True)):
            # Sums are float32: a narrower type is rounded once, when it is stored.
            depth = example.depth if out.dtype.itemsize > 2 else 1
            assert_close(out, expected, depth, dtype=out.dtype, name=f"{row.name} {dtype}, {rows} rows, output {i}")
    if row.name != "unique":
        code = subprocess.run([DUMP, "-d", emulated.library], capture_output=True, text=True, check=True).stdout
        assert ("sdot\tv" if row.name == "int8_linear" else "fmla\tv") in code  # multiply-adds on vectors
