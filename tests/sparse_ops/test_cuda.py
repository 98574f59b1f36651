"""Every row of the registry for CUDA, on the emulated device: against its oracle, with the same bits whatever runs first.

The emulator poisons memory and reports what is read before it is written, what races, and what lies outside of buffers.
"""

import pytest
import tvm
from tvm import relax

from sparse_ops.build import build
from tests.cuda_device import cuda_target, device
from tests.cuda_emulator import schedule
from tests.sparse_ops.walk import CASES, case_id, digest, example_module, example_of
from tests.tolerance import assert_close


def run(machine, inputs):
    """The outputs of a compiled module on the device."""
    result = machine["main"](*(tvm.runtime.tensor(array, device()) for array in inputs))
    return [out.numpy() for out in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]


INTEGER_ROWS = tuple(case for case in CASES if case[0].name.startswith("int8_"))  # no kernel multiplies integers there
WALKED = [case for case in CASES if case not in INTEGER_ROWS]


@pytest.mark.parametrize("case", WALKED, ids=case_id)
def test_oracle(case):
    row, dtype = case
    device()
    machine = relax.VirtualMachine(build(example_module(row, dtype), cuda_target()), device(), memory_cfg="naive")
    for rows in row.sizes:
        example = example_of(row, dtype, rows)
        with schedule(1):
            outputs = run(machine, example.inputs)
        for i, (out, expected) in enumerate(zip(outputs, example.expected, strict=True)):
            depth = example.depth if out.dtype.itemsize > 2 else 1
            assert_close(out, expected, depth, dtype=out.dtype, name=f"{row.name} {dtype}, {rows} rows, output {i}")
    with schedule(2):
        assert digest(run(machine, example.inputs)) == digest(outputs)
