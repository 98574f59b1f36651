"""Every golden file whose case is registered: all `out.*` and `mid.*` tensors within their bounds.

Those of networks are in `sparse_ops/torch/test_networks.py`, beside what else shares their compiled functions.
"""

import pytest

from tests import DATA
from tests.golden import CASES, case_networks
from tests.golden.runner import case_of, check_file

FILES = sorted(path for path in (DATA / "golden").glob("*.safetensors") if case_of(path) in CASES.keys() - case_networks.CASES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path):
    report = check_file(path)
    assert report.ok, report.table()
