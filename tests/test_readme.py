"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("source", EXAMPLES, ids=["eager", "graph", "imported", "ported"])
def test_example_runs(source, tmp_path, capsys):
    file = tmp_path / "example.py"
    file.write_text(source)
    exec(compile(source, str(file), "exec"), {"__name__": "example"})
    assert "32)" in capsys.readouterr().out
