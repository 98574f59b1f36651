"""Every golden file whose case is registered: all `out.*` and `mid.*` tensors within their bounds."""

import pytest

from tests import DATA
from tests.golden import CASES
from tests.golden.runner import case_of, check_file

FILES = sorted(path for path in (DATA / "golden").glob("*.safetensors") if case_of(path) in CASES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path):
    report = check_file(path)
    assert report.ok, report.table()
