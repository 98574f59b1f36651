"""Every row of the registry: against its oracle with poisoned outputs, under every instruction set, with any threads."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tvm import relax

from sparse_ops.registry import OPS
from tests.poison import compile_poisoned, poisoned
from tests.sparse_ops.walk import CASES, SIZES, THREADS, case_id, digest, example_module, example_of, run
from tests.tolerance import assert_close
from tir_kernels.isa import AVX2, AVX512, AVX512_BF16, PORTABLE, Isa, forced_isa, host_target

ISAS = [PORTABLE, AVX2, AVX512, replace(AVX512_BF16, name="avx512bf16_emulated", emulate_dot=True)]
# Rows of other ops use the kernels of these: each is walked under every instruction set.
ISA_ROWS = ("sparse_conv", "conv3d", "linear", "attention")
ISA_KERNELS = ("gather_gemm_", "conv3d_", "linear_", "attention_")
ISA_CASES = [
    (row, dtype, isa)
    for row, dtype in CASES
    for isa in ISAS
    if row.name in ISA_ROWS and isa != Isa.of() and (dtype == "bfloat16" or not isa.bf16_dot)
]


def legalized(row, dtype):
    with host_target():
        return relax.transform.LegalizeOps()(example_module(row, dtype))


def check(row, dtype, mod):
    """Compile a legalized module with poisoned outputs and compare every size; returns the digest of one."""
    executable = compile_poisoned(poisoned(mod), host_target())
    digests = {}
    for rows in row.sizes:
        example = example_of(row, dtype, rows)
        outputs = run(executable, example.inputs)
        digests[rows] = digest(outputs)
        for i, (out, expected) in enumerate(zip(outputs, example.expected, strict=True)):
            # Sums are float32: bfloat16 is rounded once, when it is stored.
            depth = example.depth if out.dtype != "bfloat16" else 1
            assert_close(out, expected, depth, dtype=out.dtype, name=f"{row.name} {dtype}, {rows} rows, output {i}")
    return digests


@pytest.fixture(scope="module")
def walked():
    """Digests that the walk of this process left behind: {case: {rows: digest}}."""
    return {}


@pytest.fixture(scope="module", autouse=True)
def other_threads():
    """The digests of `walk.main`, which runs beside the tests of this file until they are asked for."""
    command, root = [sys.executable, "-m", "tests.sparse_ops.walk"], Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    found = []

    def wait() -> list[dict]:
        if not found:
            out, _ = process.communicate(timeout=900)
            assert process.returncode == 0
            found.extend(json.loads(line) for line in out.splitlines())
        return found

    yield wait
    process.kill()


@pytest.mark.parametrize("row", OPS, ids=lambda row: row.name)
def test_examples_print_their_op(row):
    assert "R.sparse_ops." in example_module(row, row.dtypes[0]).script()


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_oracle(case, walked):
    row, dtype = case
    mod = legalized(row, dtype)
    for_isa = {name for name in (gv.name_hint for gv in mod.get_global_vars()) if f"__{Isa.of().name}" in name}
    assert all(name.startswith(ISA_KERNELS) for name in for_isa), "kernels for one CPU: their rows belong to ISA_ROWS"
    walked[case_id(case)] = check(row, dtype, mod)


@pytest.mark.parametrize("case", ISA_CASES, ids=lambda case: f"{case_id(case[:2])}-{case[2].name}")
def test_instruction_sets(case):
    row, dtype, isa = case
    with forced_isa(isa):
        mod = legalized(row, dtype)
    assert f"__{isa.name}" in mod.script()
    check(row, dtype, mod)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_same_bits_with_any_number_of_threads(case, other_threads, walked):
    name = case_id(case)
    runs = other_threads()
    assert len(runs) == len(THREADS)
    for rows in SIZES:
        assert len({run[name][str(rows)] for run in runs}) == 1
    if name in walked:  # the poisoned module, run with all cores
        assert walked[name][SIZES[0]] == runs[0][name][str(SIZES[0])]
