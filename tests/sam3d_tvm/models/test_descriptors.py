"""The descriptors of models are complete, all that lists models follows from them, and a model is a folder and a line more."""

import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from sam3d_tvm import checkpoint, validate
from sam3d_tvm.artifacts import GAUSSIAN_DECODERS
from sam3d_tvm.config import PRESETS, PipelineConfig
from sam3d_tvm.fingerprint import ROOT
from sam3d_tvm.memory import estimate
from sam3d_tvm.models import FOLDERS, MODELS
from sam3d_tvm.models.descriptor import OwnFile

FOLDER = ROOT / "sam3d_tvm" / "models"
FULL = PRESETS["full"]


@pytest.mark.parametrize("name", MODELS)
def test_a_descriptor_is_complete(name):
    model, config = MODELS[name], getattr(FULL, name)
    assert isinstance(config, model.config) and config == model.presets["full"]
    assert model.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    for what, given, expected in model.fits(name, config, FULL):
        assert what and given == expected
    shapes, state = model.shapes(config), model.random_weights(config, 0)
    assert {key: value.shape for key, value in state.items()} == dict(shapes) != {}
    assert model.memory(config, FULL, 1000) > 0
    json.dumps(model.options(FULL))
    assert model.stage in (1, 2) and model.targets


def test_all_that_lists_models_follows_from_the_descriptors():
    assert MODELS.keys() == FOLDERS.keys() == FULL.models.keys()
    fields = {field.name: field for field in dataclasses.fields(PipelineConfig)}
    assert list(fields)[: len(MODELS)] == list(MODELS)
    assert {name for name in MODELS if fields[name].default is None} == {name for name in MODELS if MODELS[name].optional}
    assert all(checkpoint.TARGETS[target] is make for model in MODELS.values() for target, make in model.targets.items())
    places = [
        place if isinstance(place, OwnFile) else (place.files, place.prefix) for place in (m.place for m in MODELS.values())
    ]
    assert len(set(places)) == len(places)
    assert list(validate.EXAMPLES) == [example for model in MODELS.values() for example in model.examples]
    assert list(estimate(FULL, {}, 1000)) == list(MODELS)
    assert set(estimate(FULL, {}, 1000, stage1_only=True)) == {n for n in MODELS if MODELS[n].stage == 1}
    assert [MODELS[name].offset_perturbation is not None for name in GAUSSIAN_DECODERS] == [True, True]


def test_every_folder_is_a_model():
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(FOLDERS.values())


def test_models_that_do_not_fit_together():
    other = dataclasses.replace(FULL.slat_generator, resolution=32)
    with pytest.raises(ValueError, match=r"slat_generator.resolution: expected 64, as the model before it has, given 32"):
        dataclasses.replace(FULL, slat_generator=other)
    with pytest.raises(ValueError, match=r"not the config of a pipeline: .*ss_decoder"):
        PipelineConfig.from_json({key: value for key, value in PRESETS["random-tiny"].to_json().items() if key != "ss_decoder"})
    with pytest.raises(ValueError, match="ss_decoder: expected a StructureDecoderConfig, given None"):
        PipelineConfig.from_json(PRESETS["random-tiny"].to_json() | {"ss_decoder": None})


def test_torch_is_imported_only_where_a_network_is_compiled():
    """At the top of files only by those named so, and these only by each other."""
    for file in FOLDER.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in modules:
                needs_torch = module.partition(".")[0] == "torch" or module.endswith(("_torch", ".port_component"))
                assert file.stem.endswith("_torch") or not needs_torch, f"{file.relative_to(ROOT)} imports {module}"


ECHO = """
from dataclasses import dataclass
import numpy as np
from tvm.relax.frontend.nn import spec
from sam3d_tvm.models.descriptor import Model, Place
from sam3d_tvm.models.random_weights import seeded_arrays, shapes_of
from sparse_ops.deploy import component_from_nn
from sparse_ops.nn import Linear, Module

@dataclass(frozen=True)
class EchoConfig:
    width: int

class Echo(Module):
    def __init__(self, config):
        self.layer = Linear(config.width, config.width)
    def forward(self, x):
        return self.layer(x)

def compile_echo(config, state, name, precision, target, scale):
    model = Echo(config)
    method = spec.MethodSpec(model.forward, ["x"], [spec.Tensor([scale, config.width], "float32")], "plain", "none")
    return component_from_nn(model, {"forward": method}, name, state, precision=precision, target=target)

def example(size):
    import torch
    from sam3d_tvm.models.example_torch import Example, seeded
    layer, x = seeded(lambda: torch.nn.Linear(4, 4)), torch.ones(2, 4)
    return Example(layer, {"forward": (x,)}, lambda: {"y": layer(x)}, lambda component: lambda: {"y": component(x)})

shapes = lambda config: shapes_of(Echo(config))
DESCRIPTORS = {"echo": Model(
    config=EchoConfig,
    from_json=lambda values: EchoConfig(**values),
    presets={"tiny": EchoConfig(4)},
    stage=2,
    optional=True,
    shapes=shapes,
    random_weights=lambda config, seed: seeded_arrays(shapes(config), seed),
    compile=compile_echo,
    options=lambda pipeline: {"scale": 3},
    open=lambda component, config: component,
    memory=lambda config, pipeline, voxels: config.width * voxels,
    place=Place("echo", ("inner",), "net."),
    targets={"some.Echo": lambda values: EchoConfig(**values)},
    examples={"echo": example},
)}
"""
WALK = """
import dataclasses, json, sys
from pathlib import Path
import numpy as np
import sam3d_tvm
from sam3d_tvm.artifacts import Artifacts, CheckpointSource, SeededSource, begin, compile_model, is_made
from sam3d_tvm.config import PipelineConfig, preset
from sam3d_tvm.memory import estimate
from sam3d_tvm.models import MODELS
from sam3d_tvm.validate import validate
from tests.sam3d_tvm.fake_checkpoint import write_checkpoint, write_yaml

folder = Path(sys.argv[1])
assert Path(sam3d_tvm.__file__).is_relative_to(folder)
tiny = preset("random-tiny")
assert list(tiny.models)[-1] == "echo" and preset("full").echo is None
assert PipelineConfig.from_json(json.loads(json.dumps(tiny.to_json()))) == tiny
assert estimate(tiny, {"echo": 1}, 1000)["echo"] - estimate(tiny, {"echo": 1}, 0)["echo"] == 4 * 4 * 1000

checkpoint = write_checkpoint(folder / "hf", ".safetensors")
write_yaml(checkpoint / "echo.yaml", {"inner": {"_target_": "some.Echo", "width": 4}})
source = CheckpointSource(checkpoint)
assert source.config == tiny
weights = {name: np.asarray(value) for name, value in source.state("echo").items()}
assert weights.keys() == MODELS["echo"].shapes(tiny.echo).keys()

artifacts = begin(source, folder / "artifacts")
assert not is_made(source, artifacts, "echo")
compile_model(source, artifacts, "echo")
assert is_made(source, artifacts, "echo") and not is_made(SeededSource("random-tiny"), artifacts, "echo")
from sparse_ops.deploy import Component
echo, x = MODELS["echo"].open(Component.load(artifacts / "echo"), tiny.echo), np.ones((3, 4), np.float32)
np.testing.assert_allclose(echo(x), x @ weights["layer.weight"].T + weights["layer.bias"], rtol=1e-5, atol=1e-6)

(verdict,) = validate(["echo"])
assert verdict.ok, verdict
print("walked")
"""


def test_a_model_more_is_a_folder_and_a_line(tmp_path):
    """A copy of the package with one is walked by all that knows models: config, checkpoint, artifacts, memory, validate."""
    shutil.copytree(ROOT / "sam3d_tvm", tmp_path / "sam3d_tvm", ignore=shutil.ignore_patterns("data", "__pycache__"))
    models = tmp_path / "sam3d_tvm" / "models"
    (models / "echo").mkdir()
    (models / "echo" / "__init__.py").write_text("")
    (models / "echo" / "descriptor.py").write_text(ECHO)
    last = '    "slat_decoder_mesh": "mesh_decoder",\n'
    text = (models / "__init__.py").read_text()
    assert text.count(last) == 1
    (models / "__init__.py").write_text(text.replace(last, last + '    "echo": "echo",\n'))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WALK, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.endswith("walked\n"), done.stderr
