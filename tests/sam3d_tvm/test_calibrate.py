"""Integer layers of a pipeline: which models have them, what `calibrate` writes, what the commands say of it."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam3d_tvm import cli
from sam3d_tvm.artifacts import CALIBRATION, LOCK, MADE_FROM, Artifacts, SeededSource, compile_artifacts, is_made
from sam3d_tvm.calibrate import Calibrated, calibrate
from sam3d_tvm.lock import locked
from sam3d_tvm.models import MODELS
from sam3d_tvm.pipeline import Pipeline
from sam3d_tvm.validate import BOUNDS, Integers, Verdict
from sparse_ops.transform.precision import QUANTIZED, features_of
from tests.sam3d_tvm.tiny_pipeline import copied_artifacts, disc_photo, tiny_artifacts
from tests.sam3d_tvm.wide_pipeline import INTEGERS, WideSource, copied_wide_artifacts, wide_artifacts
from tir_kernels.cpu.isa import AVX512, AVX512_BF16, PORTABLE, Isa, forced_isa

FLOATS = features_of("int8")  # of layers that stay floats: "bfloat16" where this CPU multiplies it

LAYERS = {"ss_generator": 16, "slat_generator": 16}
OF_ONE_OBJECT = {"steps": 1, "seed": 3}


@pytest.fixture(autouse=True)
def on_integers():
    """On any machine: without such instructions they are emulated."""
    isa = Isa.of()
    if isa.integer:
        yield
    else:
        with forced_isa(replace(AVX512, integer=("vpdpbusd",), emulate_integer=True)):
            yield


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """Artifacts after `calibrate`; nobody writes into them."""
    folder = copied_wide_artifacts(tmp_path_factory.mktemp("calibrated") / "artifacts")
    told = []
    found = calibrate(
        WideSource(), folder, [(disc_photo(), None)], on_progress=lambda step: told.append(step.stage), **OF_ONE_OBJECT
    )
    assert found == {name: Calibrated(count, count) for name, count in LAYERS.items()}
    assert {"structure", "latents"} <= set(told)
    return folder


@pytest.fixture
def files(tmp_path) -> list[str]:
    """A photo and its mask."""
    rgba = disc_photo()
    Image.fromarray(rgba[..., :3]).save(tmp_path / "photo.png")
    Image.fromarray(rgba[..., 3]).save(tmp_path / "mask.png")
    return [str(tmp_path / "photo.png"), str(tmp_path / "mask.png")]


@pytest.fixture
def wide_preset(monkeypatch):
    """Commands take the wide models for the preset "random-tiny"."""
    monkeypatch.setattr("sam3d_tvm.presets.SeededSource", WideSource)


def runs_in(artifacts: Artifacts) -> dict[str, set[str]]:
    return {name: {spec.runs_in for spec in artifacts.layers(name).values()} for name in artifacts.config.models}


def test_which_models_take_integers():
    assert {name for name, model in MODELS.items() if model.integers} == {
        *INTEGERS,
        "slat_decoder_gs",
        "slat_decoder_gs_4",
        "slat_decoder_mesh",
    }
    model = MODELS["ss_generator"]
    for isa, float_type in ((AVX512, "float32"), (AVX512_BF16, "bfloat16")):
        with forced_isa(replace(isa, integer=("vpdpbusd",))):
            assert {model.precision(asked) for asked in QUANTIZED} == set(QUANTIZED)
            assert MODELS["ss_condition_embedder"].precision("int8") == float_type
        with forced_isa(isa):
            assert model.precision("int8") == float_type
    assert model.precision("float16") == MODELS["ss_decoder"].precision("float16") == "float16"


def test_in_which_numbers_layers_are():
    artifacts = wide_artifacts()
    numbers = {name: {"int8", FLOATS} for name in INTEGERS} | {"ss_decoder": {FLOATS}}
    assert runs_in(artifacts) == {name: numbers.get(name, {FLOATS, "float32"}) for name in artifacts.config.models}
    layers = artifacts.layers("ss_generator")
    assert layers["blocks.0.mlp.shape.mlp.0.weight"].runs_in == "int8"
    assert layers["blocks.0.self_attn.to_qkv.shape.weight (3 of 3)"].runs_in == "int8"
    for name in ("t_embedder.mlp.2.weight", "blocks.0.adaLN_modulation.1.weight", "latent_mapping.shape.input_layer.weight"):
        assert layers[name].runs_in == FLOATS
    assert artifacts.uncalibrated == list(INTEGERS)


def test_models_without_integers_are_those_of_floats():
    source, folder = WideSource(), wide_artifacts().folder
    models = set(source.config.models)
    assert {name for name in models if is_made(source, folder, name, FLOATS)} == models - set(INTEGERS)


def test_calibration_is_part_of_what_a_result_is_made_with(calibrated):
    before, after = wide_artifacts(), Artifacts(calibrated)
    assert after.uncalibrated == []
    assert {name for name in after.keys if after.keys[name] != before.keys[name]} == set(INTEGERS)
    results = [Pipeline(artifacts).generate(disc_photo(), formats=(), **OF_ONE_OBJECT) for artifacts in (before, after)]
    first, second = (result.made_with for result in results)
    assert first["structure"] != second["structure"] and first["latents"] != second["latents"]
    assert len(results[0].coords) and not np.array_equal(results[0].latents, results[1].latents)


def test_calibrated_again_it_is_the_same(calibrated, tmp_path):
    folder = copied_wide_artifacts(tmp_path / "again")
    for _ in range(2):
        calibrate(WideSource(), folder, [(disc_photo(), None)], **OF_ONE_OBJECT)
        for name in INTEGERS:
            for file in (calibrated / name).iterdir():
                assert file.read_bytes() == (folder / name / file.name).read_bytes(), file


def test_compiling_keeps_it(calibrated):
    before = {path: path.stat().st_mtime_ns for path in calibrated.rglob("*")}
    compile_artifacts(WideSource(), calibrated, "int8")
    assert {path: path.stat().st_mtime_ns for path in calibrated.rglob("*")} == before


def test_other_weights_lose_it_and_it_is_said(calibrated, tmp_path):
    folder = Path(shutil.copytree(calibrated, tmp_path / "artifacts"))
    made = json.loads((folder / "slat_generator" / MADE_FROM).read_text())
    (folder / "slat_generator" / MADE_FROM).write_text(json.dumps(made | {"weights": "others"}))
    with pytest.warns(UserWarning, match="slat_generator was compiled or packed anew, without the channels"):
        artifacts = compile_artifacts(WideSource(), folder, "int8")
    assert artifacts.uncalibrated == ["slat_generator"]


def test_who_writes_waits_for_the_lock(tmp_path, monkeypatch):
    """And finds that another process compiled meanwhile."""
    folder = copied_wide_artifacts(tmp_path / "artifacts")
    ran, failed = threading.Event(), []
    monkeypatch.setattr(Pipeline, "generate", lambda *args, **options: ran.set())

    def run():
        with pytest.raises(ValueError, match="ss_generator was compiled anew meanwhile: calibrate again"):
            calibrate(WideSource(), folder, [(disc_photo(), None)])
        failed.append(True)

    with locked(folder / LOCK):
        thread = threading.Thread(target=run)
        thread.start()
        assert ran.wait(60) and not failed
        file = folder / "ss_generator" / MADE_FROM
        file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": "others"}))
    thread.join(60)
    assert failed


def test_the_commands(wide_preset, files, calibrated, tmp_path, capsys):
    folder = copied_wide_artifacts(tmp_path / "artifacts")
    compiling = ["compile", "--preset", "random-tiny", "--precision", "int8", "-o", str(folder)]
    assert cli.main(compiling) == 0
    assert capsys.readouterr().err.count("note: int8 without calibration in ss_generator, slat_generator") == 1
    assert cli.main(["info", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "note: int8 without calibration in ss_generator, slat_generator" in err
    assert "16 int8" in out and "calibrated" not in out and "blocks.0" not in out
    options = ["--preset", "random-tiny", "--artifacts", str(folder), "--steps", "1", "--seed", "3"]
    assert cli.main(["calibrate", *files, *options]) == 0
    out, err = capsys.readouterr()
    assert "slat_generator 16 of 16 integer layers" in " ".join(out.split()) and f"calibrated {folder}" in out.replace("\n", "")
    assert "without calibration" not in err
    for name in INTEGERS:
        assert json.loads((folder / name / MADE_FROM).read_text())[CALIBRATION] == Artifacts(calibrated).keys[name][CALIBRATION]
    assert cli.main(["info", str(folder), "--layers"]) == 0
    out, err = capsys.readouterr()
    assert "without calibration" not in err and "16 int8 calibrated" in out
    assert "slat_generator: blocks.1.mlp.mlp.2.weight: int8 calibrated\n" in out
    assert f"slat_generator: blocks.1.adaLN_modulation.1.weight (1 of 6): {FLOATS}\n" in out
    assert cli.main(compiling) == 0  # and what is calibrated stays
    assert "without calibration" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "random-tiny"], "objects: expected a mask for each photo, given 1 files"),
        (
            ["mask", "--precision", "bfloat16", "--preset", "random-tiny"],
            "precision: expected one of int8, int7, given 'bfloat16'",
        ),
        (["mask"], "checkpoint: expected --checkpoint or --preset, whose weights are needed, given neither"),
        (["mask", "--preset", "random-tiny", "--checkpoint", "here"], "whose weights are needed, given both"),
        (["mask", "--preset", "random-tiny", "--steps", "0"], "steps: expected an integer of at least 1"),
        (
            ["photo", "--preset", "random-tiny", "--artifacts", "."],
            "artifacts: expected a new folder or one with pipeline.json",
        ),
        (["nothing.png", "--preset", "random-tiny"], "nothing.png"),
        (
            ["mask", "--preset", "random-tiny", "--depth-model", "model.pt"],
            "depth_model: expected random with --preset, given 'model.pt'",
        ),
        (["mask", "--preset", "huge"], "preset: expected one of 'tiny', 'random-tiny', 'full', given 'huge'"),
    ],
)
def test_wrong_options(files, options, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "elsewhere")
    names = {"mask": files[1], "photo": files[1]}
    assert cli.main(["calibrate", files[0], *[names.get(option, option) for option in options]]) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("depth_model", [[], ["--depth-model", "random"]])
def test_objects_are_seen_with_the_depth_model_that_was_compiled(files, depth_model, tmp_path, monkeypatch):
    """Without it there would be none in the artifacts any more, and other values in the layers."""
    given = []
    monkeypatch.setattr("sam3d_tvm.calibrate.calibrate", lambda source, *rest, **options: given.append(source) or {})
    assert cli.main(["calibrate", *files[:2], "--preset", "random-tiny", "--artifacts", str(tmp_path), *depth_model]) == 0
    assert (given[0].config.depth_model is not None) == bool(depth_model)


def test_no_objects(tmp_path):
    with pytest.raises(ValueError, match="objects: expected at least one photo with a mask, given none"):
        calibrate(WideSource(), tmp_path, [])


def test_a_cpu_that_gains_nothing_stays_in_floats_and_says_so(tmp_path, capsys):
    folder = copied_artifacts(tmp_path / "artifacts")
    with forced_isa(PORTABLE):
        artifacts = compile_artifacts(SeededSource("random-tiny"), folder, "int8")  # finds the models of float32
        assert artifacts.precision == "int8" and artifacts.keys == tiny_artifacts().keys
        assert cli.main(["info", str(folder)]) == 0
        assert "note: int8 gains nothing on this CPU: all layers are in float32" in capsys.readouterr().err
        with pytest.raises(ValueError, match="precision: expected one by which layers gain on this CPU, given 'int8'"):
            calibrate(SeededSource("random-tiny"), folder, [(disc_photo(), None)])


def test_models_of_small_layers_stay_in_floats_and_say_so(tmp_path, monkeypatch, capsys):
    folder = copied_artifacts(tmp_path / "artifacts")
    with forced_isa(PORTABLE):
        compile_artifacts(SeededSource("random-tiny"), folder, "int8")
        monkeypatch.setattr("sparse_ops.transform.precision.gains", lambda precision, target=None: True)
        monkeypatch.setattr("sam3d_tvm.calibrate.gains", lambda precision, target=None: True)
        assert cli.main(["info", str(folder)]) == 0
        assert "note: int8 gains nothing in these models: all layers are in float32" in capsys.readouterr().err
        with pytest.raises(ValueError, match="given 'int8': no layer of these models does"):
            calibrate(SeededSource("random-tiny"), folder, [(disc_photo(), None)])


def test_a_verdict_of_integers():
    most, most_l2 = BOUNDS["int8"]
    verdict = Verdict("some", "tiny", "int8", True, 0.1, most, 0.01, most_l2, 0.3, 0.1, Integers(4, 0.02, 0.01))
    assert verdict.ok
    assert verdict.as_json()["integers"] == {
        "layers": 4,
        "before": 0.02,
        "after": 0.01,
        "outliers_before": None,
        "outliers_after": None,
    }


def test_validate_reports_errors_before_and_after(capsys):
    assert cli.main(["validate", "--component", "structure_flow", "--precision", "int8", "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)
    found = verdict["integers"]
    assert verdict["precision"] == "int8" and found["layers"] == 2 * 16
    assert found["after"] == verdict["relative_l2"] < 0.02
    assert found["outliers_after"] < found["outliers_before"]


def test_validate_leaves_models_that_need_floats_in_them(capsys):
    assert cli.main(["validate", "--component", "point_patch_embed", "--precision", "int8", "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)
    assert verdict["precision"] in ("float32", "bfloat16") and verdict["integers"] is None
