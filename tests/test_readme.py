"""The examples of the README and of docs/ run as they stand, and what they link to is there."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam3d_tvm.outputs import Result
from sam3d_tvm.pipeline import Pipeline
from tests.sam3d_tvm.tiny_pipeline import disc_photo, tiny_artifacts

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Of each page's examples in their order: what they print.
PRINTED = {
    "README.md": {"pipeline": "True", "spconv": "True", "eager": "32)"},
    "bridge.md": {"backbone": "torch.Size([1, 32, 4, 16, 16])", "ops": "torch.Size([12, 8])", "converter": "0.0"},
    "cuda.md": {"target": "cuda sm_90"},
    "frames.md": {"poses": "True"},
    "ops.md": {"graph": "32)"},
    "pipeline.md": {"evaluations": "{'structure': 13, 'latents': 19}", "labels": "[True, True]"},
    "porting.md": {"imported": "(2, 100, 32)", "ported": "(1, 32)"},
}


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def labels(folder: Path) -> dict:
    """A photo, a picture of two labels and points as OpenCV has them, and the pipeline that the example calls."""
    rows, columns = np.mgrid[:48, :64]
    photo = disc_photo()[..., :3]
    found = 3 * ((rows - 24) ** 2 + (columns - 16) ** 2 < 150) + 7 * ((rows - 24) ** 2 + (columns - 46) ** 2 < 150)
    Image.fromarray(photo).save(folder / "photo.jpg")
    Image.fromarray(found.astype(np.uint8)).save(folder / "labels.png")
    z = 2 + 0.01 * rows
    np.savez(folder / "moge.npz", points=np.stack([(columns - 32) / 64 * z, (rows - 24) / 64 * z, z], -1))
    return {"pipeline": Pipeline(tiny_artifacts())}


def poses(folder: Path) -> dict:
    """A run in the folder out."""
    Pipeline(tiny_artifacts()).generate(disc_photo(), steps=1).save(folder / "out", ("ply", "glb"))
    return {}


def nothing(folder: Path) -> dict:
    """An example that writes."""
    return {}


GIVEN = {
    "labels": labels,
    "poses": poses,
    "spconv": nothing,
}  # what an example finds in its folder, and as variables; others run in the project
CASES = {
    name: (name, source, printed)
    for page in PAGES
    for source, (name, printed) in zip(examples(page), PRINTED.get(page.name, {}).items(), strict=False)
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_is_known(page):
    assert len(examples(page)) == len(PRINTED.get(page.name, {}))


@pytest.mark.filterwarnings("ignore::sam3d_tvm.notices.Notice")
@pytest.mark.parametrize(("name", "source", "printed"), CASES.values(), ids=CASES)
def test_example_runs(name, source, printed, tmp_path, capsys, monkeypatch):
    # The artifacts of the preset are those that all tests share; files go elsewhere.
    monkeypatch.setattr(Pipeline, "from_preset", lambda name: Pipeline(tiny_artifacts()))
    monkeypatch.setattr(Result, "save", lambda self, folder, formats, save=Result.save: save(self, tmp_path / folder, formats))
    given = GIVEN[name](tmp_path) if name in GIVEN else {}
    monkeypatch.chdir(tmp_path if name in GIVEN else ROOT)
    file = tmp_path / "example.py"
    file.write_text(source)
    exec(compile(source, str(file), "exec"), {"__name__": "example", **given})
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    for link in re.findall(r"\[[^\]\"]+\]\(([^)]+)\)", page.read_text("utf-8")):  # code has quotes between its brackets
        assert "://" in link or (page.parent / link.split("#")[0]).exists(), link


def test_the_first_page_is_short():
    assert len(PAGES[0].read_text("utf-8").splitlines()) <= 150
