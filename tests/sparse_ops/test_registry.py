"""Every row of the registry: against its oracle with poisoned outputs, under every instruction set, with any threads."""

from dataclasses import replace

import pytest
import tvm
from tvm import relax

from sparse_ops.build import build, unchecked
from sparse_ops.testing.examples import OPS, OpRow
from tests.instruction_sets import ISAS
from tests.poison import compile_poisoned, poisoned
from tests.sparse_ops.walk import CASES, case_id, digest, example_module, example_of, run, run_with
from tests.tolerance import assert_close
from tir_kernels.cpu.isa import Isa, forced_isa, host_target

# Rows of other ops use the kernels of these: each is walked under every instruction set.
ISA_ROWS = (
    *("sparse_conv", "grouped_conv", "depthwise_conv", "sparse_conv_weight_gradient"),
    *("conv3d", "conv_transpose3d", "linear", "int8_linear", "int8_sparse_conv", "attention"),
)
ISA_KERNELS = (
    *("gather_gemm_", "depthwise_conv_", "weight_gradient_", "depthwise_weight_gradient_"),
    *("conv3d_", "conv_transpose3d_", "linear_", "int8_linear_", "int8_gather_gemm_", "attention_"),
)
COPIES = ("gather_rows", "to_dense", "from_dense")  # cast nothing


def differs(row: OpRow, dtype: str, isa: Isa) -> bool:
    """Whether kernels of an instruction set are like those of no other.

    float16 has the register tiles that widen bfloat16. Its own are the casts, in every kernel, where they are spelled out.
    """
    if dtype == "float16":
        return not isa.converts_half and row.name not in COPIES
    if row.name.startswith("int8_"):  # without integer products it is another row
        return bool(isa.integer)
    if replace(isa, integer=(), emulate_integer=False) == replace(Isa.of(), integer=(), emulate_integer=False):
        return False
    return row.name in ISA_ROWS and (dtype == "bfloat16" or not isa.bf16_dot)


ISA_CASES = [(row, dtype, isa) for row, dtype in CASES for isa in ISAS.values() if isa != Isa.of() and differs(row, dtype, isa)]


def legalized(row, dtype):
    with host_target():
        return relax.transform.LegalizeOps()(example_module(row, dtype))


def compiled(mod):
    """A legalized module with poisoned outputs."""
    return compile_poisoned(poisoned(mod), host_target())


def check(row, dtype, executable):
    """Compare every size with the oracle."""
    for rows in row.sizes:
        example = example_of(row, dtype, rows)
        outputs = run(executable, example.inputs)
        for i, (out, expected) in enumerate(zip(outputs, example.expected, strict=True)):
            # Sums are float32: a narrower type is rounded once, when it is stored.
            depth = example.depth if out.dtype.itemsize > 2 else 1
            assert_close(out, expected, depth, dtype=out.dtype, name=f"{row.name} {dtype}, {rows} rows, output {i}")


@pytest.fixture(scope="module", params=CASES, ids=case_id)
def walked(request) -> tuple[OpRow, str, tvm.IRModule, tvm.runtime.Executable]:
    """A row and a dtype, its legalized module and what that compiles to, for the tests of a case, which follow each other."""
    mod = legalized(*request.param)
    return *request.param, mod, compiled(mod)


@pytest.mark.parametrize("row", OPS, ids=lambda row: row.name)
def test_examples_print_their_op(row):
    assert "R.sparse_ops." in example_module(row, row.dtypes[0]).script()


def test_oracle(walked):
    row, dtype, mod, executable = walked
    for_isa = {name for name in (gv.name_hint for gv in mod.get_global_vars()) if f"__{Isa.of().name}" in name}
    assert all(name.startswith(ISA_KERNELS) for name in for_isa), "kernels for one CPU: their rows belong to ISA_ROWS"
    check(row, dtype, executable)


def test_same_bits_with_any_number_of_threads(walked):
    """And from the whole pipeline, which folds and fuses. 1000 rows give every kernel several tasks."""
    row, dtype, _, executable = walked
    with unchecked():
        piped = build(example_module(row, dtype))
    for rows in (97, 1000):
        inputs = example_of(row, dtype, rows).inputs
        bits = {digest(run_with(count, piped, inputs)) for count in (1, 2)}
        assert bits == {digest(run(executable, inputs))}


@pytest.mark.parametrize("case", ISA_CASES, ids=lambda case: f"{case_id(case[:2])}-{case[2].name}")
def test_instruction_sets(case):
    row, dtype, isa = case
    with forced_isa(isa):
        mod = legalized(row, dtype)
    assert ("reinterpret" if dtype == "float16" else f"__{isa.name}") in mod.script()
    executable = compiled(mod)
    with forced_isa(isa):  # what is expected of integers depends on their bits
        check(row, dtype, executable)
