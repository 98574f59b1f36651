"""The examples of the README and of docs/ run as they stand, and what they link to is there."""

import re
from pathlib import Path

import pytest

from sam3d_tvm.outputs import Result
from sam3d_tvm.pipeline import Pipeline
from tests.sam3d_tvm.tiny_pipeline import tiny_artifacts

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Of each page's examples in their order: what they print.
PRINTED = {
    "README.md": {"pipeline": "True", "eager": "32)", "graph": "32)"},
    "porting.md": {"imported": "(2, 100, 32)", "ported": "(1, 32)"},
}


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


CASES = {
    name: (source, printed)
    for page in PAGES
    for source, (name, printed) in zip(examples(page), PRINTED.get(page.name, {}).items(), strict=False)
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_is_known(page):
    assert len(examples(page)) == len(PRINTED.get(page.name, {}))


@pytest.mark.parametrize(("source", "printed"), CASES.values(), ids=CASES)
def test_example_runs(source, printed, tmp_path, capsys, monkeypatch):
    # The artifacts of the preset are those that all tests share; files go elsewhere.
    monkeypatch.setattr(Pipeline, "from_preset", lambda name: Pipeline(tiny_artifacts()))
    monkeypatch.setattr(Result, "save", lambda self, folder, formats, save=Result.save: save(self, tmp_path / folder, formats))
    monkeypatch.chdir(ROOT)
    file = tmp_path / "example.py"
    file.write_text(source)
    exec(compile(source, str(file), "exec"), {"__name__": "example"})
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    for link in re.findall(r"\[[^\]\"]+\]\(([^)]+)\)", page.read_text("utf-8")):  # code has quotes between its brackets
        assert "://" in link or (page.parent / link.split("#")[0]).exists(), link


def test_the_first_page_is_short():
    assert len(PAGES[0].read_text("utf-8").splitlines()) <= 150
