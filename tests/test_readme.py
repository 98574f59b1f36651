"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

from sam3d_tvm.outputs import Result
from sam3d_tvm.pipeline import Pipeline
from tests.sam3d_tvm.tiny_pipeline import tiny_artifacts

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) == 5


PRINTED = {"pipeline": "True", "eager": "32)", "graph": "32)", "imported": "32)", "ported": "32)"}


@pytest.mark.parametrize(("source", "printed"), list(zip(EXAMPLES, PRINTED.values(), strict=False)), ids=PRINTED)
def test_example_runs(source, printed, tmp_path, capsys, monkeypatch):
    # The artifacts of the preset are those that all tests share; files go elsewhere.
    monkeypatch.setattr(Pipeline, "from_preset", lambda name: Pipeline(tiny_artifacts()))
    monkeypatch.setattr(Result, "save", lambda self, folder, formats, save=Result.save: save(self, tmp_path / folder, formats))
    monkeypatch.chdir(Path(__file__).parent.parent)
    file = tmp_path / "example.py"
    file.write_text(source)
    exec(compile(source, str(file), "exec"), {"__name__": "example"})
    assert printed in capsys.readouterr().out
