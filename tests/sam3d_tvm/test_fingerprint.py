"""Fingerprints of models: every file that decides what is compiled changes them, whatever folder it lies in."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sam3d_tvm.fingerprint import ROOT, fingerprint, source_files
from sam3d_tvm.models import FOLDERS

PACKAGES = {folder: f"sam3d_tvm.models.{folder}" for folder in dict.fromkeys(FOLDERS.values())}


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """The sources of the package, to change; each test restores what it changed."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "sam3d_tvm", root / "sam3d_tvm", ignore=shutil.ignore_patterns("data", "__pycache__"))
    return root


def changed(root: Path, file: str) -> set[str]:
    """The models whose fingerprint a line more in `file` changes."""
    fingerprint.cache_clear()
    before = {folder: fingerprint(package, root) for folder, package in PACKAGES.items()}
    text = (root / file).read_text()
    (root / file).write_text(text + "# more\n")
    fingerprint.cache_clear()
    after = {folder: fingerprint(package, root) for folder, package in PACKAGES.items()}
    (root / file).write_text(text)
    fingerprint.cache_clear()
    return {folder for folder in PACKAGES if before[folder] != after[folder]}


@pytest.mark.parametrize(
    ("file", "models"),
    [
        ("splat/gaussians.py", {"gaussian_decoder"}),
        ("splat/cameras.py", {"gaussian_decoder"}),  # by way of the one above
        ("checks.py", set(PACKAGES)),
        ("models/descriptor.py", set(PACKAGES)),
        ("models/dinov2_torch.py", {"condition_embedder", "moge"}),
        ("models/torch_network.py", {"condition_embedder", "structure_flow", "structure_decoder", "moge"}),
        ("models/slat_decoder.py", {"gaussian_decoder", "mesh_decoder"}),
        ("models/sparse_blocks.py", {"structure_flow", "slat_generator", "gaussian_decoder", "mesh_decoder"}),
        ("models/condition_embedder/dinov2_torch.py", {"condition_embedder"}),
        ("models/structure_flow/network_torch.py", {"structure_flow"}),
        ("models/slat_generator/network.py", {"slat_generator"}),
        ("models/mesh_decoder/random_weights.py", {"mesh_decoder"}),
        ("models/__init__.py", set()),  # so that a line more for another model compiles none anew
        ("console.py", set()),
    ],
)
def test_a_changed_file_changes_those_that_it_decides(copied, file, models):
    assert changed(copied, f"sam3d_tvm/{file}") == models


def test_every_file_in_the_folder_of_a_model_counts(copied):
    for folder, package in PACKAGES.items():
        deeper = copied / package.replace(".", "/") / "deeper"
        deeper.mkdir()
        (deeper / "layers.py").write_text("WIDTH = 1\n")
        files = {file.relative_to(copied).as_posix() for file in deeper.parent.rglob("*.py")}
        assert files <= set(source_files(package, copied))
        assert changed(copied, f"sam3d_tvm/models/{folder}/deeper/layers.py") == {folder}
        shutil.rmtree(deeper)


def test_imports_of_every_form_are_followed(tmp_path):
    network = """
import top.plain
import json, elsewhere.top
from top import module, NAME
from top.deep import inner as other
from . import sibling
from ..up import thing
def late():
    from top.deep.late import x
"""
    sources = {
        "top/__init__.py": "",
        "top/models/__init__.py": "import top.unused",  # above the model, and nothing is imported from it
        "top/models/model/__init__.py": "",
        "top/models/model/network.py": network.replace("..up", "...up"),
        "top/models/model/sibling.py": "",
        "top/plain.py": "from top.chained import y",
        "top/chained.py": "import top.models.model.network",  # a circle
        "top/module.py": "",
        "top/up.py": "",
        "top/deep/__init__.py": "import top.on_the_way",
        "top/deep/inner.py": "",
        "top/deep/late.py": "",
        "top/on_the_way.py": "",
        "top/unused.py": "",
    }
    for file, text in sources.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert set(source_files("top.models.model", tmp_path)) == sources.keys() - {"top/unused.py", "top/models/__init__.py"}


def test_nothing_is_imported_that_cannot_be_followed():
    """What is imported by a name that is made at run time would be left out."""
    for package in PACKAGES.values():
        for file in source_files(package):
            nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
            names = {node.id for node in nodes if isinstance(node, ast.Name)}
            names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)} - {"eval"}  # of a torch module
            assert not names & {"import_module", "__import__", "exec", "eval", "run_path", "run_module"}, file


def test_what_a_process_imports_is_among_them():
    """Followed by Python itself, with torch; each model without the others, which the package of all models imports."""
    script = f"""
import json, sys, types
from importlib import import_module
from pathlib import Path
root, found = Path({str(ROOT)!r}), {{}}
for folder in {list(PACKAGES)!r}:
    for name in [name for name in sys.modules if name.startswith("sam3d_tvm")]:
        del sys.modules[name]
    sys.modules["sam3d_tvm.models"] = models = types.ModuleType("sam3d_tvm.models")
    models.__path__ = [str(root / "sam3d_tvm" / "models")]
    for file in (root / "sam3d_tvm" / "models" / folder).glob("*.py"):
        import_module(f"sam3d_tvm.models.{{folder}}.{{file.stem}}")
    del sys.modules["sam3d_tvm.models"]
    loaded = [module.__file__ for name, module in sys.modules.items() if name.startswith("sam3d_tvm.")]
    found[folder] = [Path(file).relative_to(root).as_posix() for file in loaded]
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for folder, loaded in json.loads(done.stdout).items():
        assert len(loaded) > 5 and set(loaded) <= set(source_files(PACKAGES[folder])), folder
