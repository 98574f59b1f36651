"""The file of the depth model: where it is found, in folders and caches of a hub, and what is refused."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sam3d_tvm.artifacts import CheckpointSource, DepthModelSource
from sam3d_tvm.checkpoint import Checkpoint
from sam3d_tvm.checkpoint_files import MissingFile
from sam3d_tvm.models import MODELS
from sam3d_tvm.models.moge import checkpoint as files
from sam3d_tvm.models.moge.config import HUB
from sparse_ops.deploy.weights import check_arrays
from tests.sam3d_tvm.fake_checkpoint import write_checkpoint, write_hub_cache
from tests.sam3d_tvm.test_checkpoint import edit
from tests.sam3d_tvm.tiny_depth import CONFIG, DEPTH, ENCODER, model_config, weights, write_model

NAME = ("depth_model", "model", "pretrained_model_name_or_path")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1257\n"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """The cache of a hub, where nothing is yet; and the encoder of the tiny model by a name."""
    monkeypatch.setitem(HUB, ENCODER, CONFIG.encoder)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("moge") / "repository" / files.FILE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "hf")


@pytest.fixture
def folder(plain, tmp_path) -> Path:
    """A checkpoint that names `Ruicheng/moge-vitl`."""
    return shutil.copytree(plain, tmp_path / "checkpoints" / "hf")


def test_beside_the_checkpoint(folder, published):
    shutil.copy(published, folder / "model.pt")
    found = Checkpoint(folder)
    assert found.config.depth_model == CONFIG and DEPTH not in found.missing and not found.notes
    assert found.file(DEPTH) == folder / "model.pt"
    state = found.state(DEPTH)
    check_arrays(MODELS[DEPTH].shapes(CONFIG), state)
    np.testing.assert_array_equal(np.asarray(state["head.projects.0.weight"]), weights()["head.projects.0.weight"].numpy())


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.pt", "model.pt"),
        ("./depth/moge.pt", "depth/moge.pt"),
        ("checkpoints/hf/moge.pt", "moge.pt"),  # upstream's paths begin where it is started
        ("/data/models/moge.pt", "moge.pt"),
        ("Ruicheng/moge-vitl", "model.pt"),
    ],
)
def test_by_a_path_that_pipeline_yaml_names(folder, published, name, place):
    edit(folder, "pipeline.yaml", NAME, name)
    (folder / place).parent.mkdir(exist_ok=True)
    shutil.copy(published, folder / place)
    assert Checkpoint(folder).file(DEPTH) == folder / place


@pytest.mark.parametrize("name", ["/elsewhere/model.pt", "../elsewhere/model.pt", "..\\elsewhere\\model.pt"])
def test_a_path_out_of_the_folder_is_not_followed(folder, published, tmp_path, name):
    outside = tmp_path / "elsewhere" / "model.pt"
    outside.parent.mkdir()
    shutil.copy(published, outside)
    shutil.copy(published, folder.parent / "model.pt")
    edit(folder, "pipeline.yaml", NAME, str(outside) if name.startswith("/") else name)
    found = Checkpoint(folder)
    assert found.config.depth_model is None and "not found at" in found.missing[DEPTH]
    assert Checkpoint(folder, depth_model=outside).file(DEPTH) == outside


@pytest.mark.parametrize("revisions", [{"a1": True}, {"a1": False}, {"a1": False, "b2": True}])
def test_in_the_cache_of_the_hub(folder, published, hub, revisions):
    cached = write_hub_cache(hub / "models--Ruicheng--moge-vitl", published.parent, revisions)
    expected = cached / "snapshots" / list(revisions)[-1] / "model.pt"
    assert expected.is_symlink()
    assert Checkpoint(folder).file(DEPTH) == expected
    for given in (expected, expected.parent, cached):
        assert files.find_given(given) == expected
        assert DepthModelSource(given).config.depth_model == CONFIG


def test_where_the_cache_of_the_hub_is(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_CACHE")
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.hub_cache() == tmp_path / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.hub_cache() == tmp_path / "xdg" / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert files.hub_cache() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "own"))
    assert files.hub_cache() == tmp_path / "own"


def test_a_cache_that_does_not_say_which_snapshot_is_meant(folder, published, hub):
    write_hub_cache(hub / "models--Ruicheng--moge-vitl", published.parent, {"a1": False, "b2": False})
    found = Checkpoint(folder)
    assert found.config.depth_model is None and "expected refs/main to name one of a1, b2" in found.missing[DEPTH]
    with pytest.raises(ValueError, match="expected refs/main to name one of a1, b2"):
        Checkpoint(folder, depth_model=hub / "models--Ruicheng--moge-vitl")


def test_a_download_that_was_not_finished(folder, published, hub):
    cached = write_hub_cache(hub / "models--Ruicheng--moge-vitl", published.parent, {"a1": True})
    (link,) = cached.glob("snapshots/a1/model.pt")
    blob = link.resolve()
    blob.rename(blob.with_suffix(".incomplete"))
    (note,) = Checkpoint(folder).notes
    assert "links to" in note and "its download was not finished" in note and "going on without it" in note


def test_where_it_is_not_found_that_is_said_and_what_is_lost(folder, hub):
    found = Checkpoint(folder)
    assert found.config.depth_model is None
    (note,) = found.notes
    assert note.startswith(f"depth model 'Ruicheng/moge-vitl': not found at {folder / 'model.pt'} or {hub}")
    assert "pose is in units of the object" in note and "--depth-model" in note
    with pytest.raises(MissingFile, match=r"model\.pt is missing"):
        files.find_given(folder)
    with pytest.raises(ValueError, match=r"depth model .*nothing\.pt is missing"):
        Checkpoint(folder, depth_model=folder / "nothing.pt")
    for path in ("a\0b", ""):
        with pytest.raises(ValueError, match="depth model"):
            Checkpoint(folder, depth_model=path)


def test_a_checkpoint_that_names_none(folder, published):
    edit(folder, "pipeline.yaml", ("depth_model",), None)
    found = Checkpoint(folder)
    assert found.config.depth_model is None and not found.notes and DEPTH not in found.missing
    assert Checkpoint(folder, depth_model=published).config.depth_model == CONFIG


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Ruicheng/moge-vitl", "expected the name of a model at depth_model"),
        ({"_target_": "os.system"}, "_target_ 'os.system' is not known"),
        ({"_target_": "moge.model.v1.MoGeModel.from_pretrained"}, "pretrained_model_name_or_path: expected the name"),
        ({"_target_": "sam3d_objects.pipeline.depth_models.moge.MoGe", "model": 3}, "model: expected a depth model"),
        ({"_target_": "sam3d_objects.pipeline.depth_models.moge.MoGe", "scale": 2}, "expected names among .*scale"),
        ([1], "expected the name of a model at depth_model"),
    ],
)
def test_what_pipeline_yaml_may_not_say_of_it(folder, value, message):
    edit(folder, "pipeline.yaml", ("depth_model",), value)
    if value == "Ruicheng/moge-vitl":  # a plain name says enough
        assert Checkpoint(folder).missing
        return
    with pytest.raises(ValueError, match=message):
        Checkpoint(folder)


class CodeRunner:
    def __reduce__(self):
        return os.system, ("touch never",)


def wrong_files(published: Path, folder: Path) -> dict[str, tuple[bytes | dict, str]]:
    whole = published.read_bytes()
    config, state = model_config(), weights()
    first = next(iter(state))
    return {
        "truncated": (whole[: len(whole) // 2], r"model\.pt: .*cut short|model\.pt: .*not finished"),
        "empty": (b"", r"model\.pt: expected weights, given an empty file"),
        "pointer": (LFS, r"model\.pt: expected weights, given a Git LFS pointer"),
        "page": (b"<!doctype html><title>Login</title>", r"model\.pt: expected weights, given an HTML page"),
        "code": ({"model_config": config, "model": CodeRunner()}, r"model\.pt: not a file of weights alone: .*system"),
        "other": ({"state_dict": state}, r"model\.pt: expected model_config and model of a depth model, given .*state_dict"),
        "list": ([state], r"model\.pt: expected model_config and model of a depth model, given .*list"),
        "tensor": (state[first], r"model\.pt: expected model_config and model of a depth model"),
        "no config": ({"model_config": None, "model": state}, r"expected model_config and model"),
        "no weights": ({"model_config": config, "model": 3}, r"model\.pt: expected tensors by name, given int"),
        "numbers": ({"model_config": config, "model": {1: state[first]}}, r"expected strings as names of tensors"),
        "version 2": (
            {"model_config": {"encoder": {}, "neck": {}}, "model": state},
            r"model\.pt: model_config: expected version 1",
        ),
        "encoder": (
            {"model_config": config | {"encoder": "resnet"}, "model": state},
            r"model_config: encoder: expected one of",
        ),
        "unknown": ({"model_config": config | {"depth": 3}, "model": state}, r"model_config: .*depth"),
        "remap": ({"model_config": config | {"remap_output": "sinh"}, "model": state}, r"model_config: remap_output"),
        "wide": ({"model_config": config | {"dim_proj": 1 << 20}, "model": state}, r"dim_proj: expected at most 131,072"),
        "long": ({"model_config": config | {"dim_upsample": [32] * 40}, "model": state}, r"dim_upsample: expected at most 16"),
        "area": ({"model_config": config | {"trained_area_range": "all"}, "model": state}, r"trained_area_range: expected two"),
    }


KINDS = [*wrong_files(Path(__file__), Path())]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_none_of_the_model(folder, published, kind):
    value, message = wrong_files(published, folder)[kind]
    if isinstance(value, bytes):
        (folder / "model.pt").write_bytes(value)
    else:
        torch.save(value, folder / "model.pt")
    with pytest.raises(ValueError, match=message):
        Checkpoint(folder)
    with pytest.raises(ValueError, match=message):
        DepthModelSource(folder / "model.pt")
    assert not Path("never").exists()


def test_something_in_its_place_is_passed_over_where_formats_are_named(folder):
    """As for decoders that no format needs."""
    (folder / "model.pt").write_bytes(LFS)
    found = Checkpoint(folder, {"slat_decoder_gs"})
    assert found.config.depth_model is None and "Git LFS pointer" in found.notes[0]


def test_safetensors_have_no_config(folder, tmp_path):
    shutil.copy(folder / "ss_decoder.ckpt", tmp_path / "renamed.pt")
    with pytest.raises(ValueError, match=r"renamed\.pt: expected model_config and model of a depth model"):
        DepthModelSource(tmp_path / "renamed.pt")
    other = write_checkpoint(tmp_path / "safe", ".safetensors")
    with pytest.raises(ValueError, match=r"ss_decoder\.safetensors: expected a file of torch, given \.safetensors"):
        DepthModelSource(other / "ss_decoder.safetensors")


def test_names_shapes_and_values_are_strict(folder, tmp_path):
    state, shapes = weights(), MODELS[DEPTH].shapes(CONFIG)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    first = "head.output_block.0.2.bias"
    for change, message in (
        ({name: tensor for name, tensor in state.items() if name != first}, f"{first}: missing"),
        (state | {"head.extra": state[first]}, "head.extra: not a parameter"),
        (state | {first: state[first][:2]}, rf"{first}: expected float32 \[3\], given float32 \[2\]"),
        (state | {first: state[first].long()}, rf"{first}: expected float32 \[3\]"),
    ):
        source = DepthModelSource(write_model(tmp_path / "model.pt", model=change))
        with pytest.raises(ValueError, match=message):
            check_arrays(shapes, source.state(DEPTH))
    source = DepthModelSource(write_model(tmp_path / "model.pt", model=state | {first: state[first] * float("nan")}))
    with pytest.raises(ValueError, match=rf"model\.pt: expected finite weights, given NaN or infinity in {first}"):
        np.asarray(source.state(DEPTH)[first])


def test_its_identity_follows_the_file(folder, published):
    shutil.copy(published, folder / "model.pt")
    before = CheckpointSource(folder).identity(DEPTH)
    write_model(folder / "model.pt", model=weights(1))
    assert CheckpointSource(folder).identity(DEPTH) != before
    alone = DepthModelSource(folder / "model.pt")
    assert alone.identity(DEPTH) == CheckpointSource(folder).identity(DEPTH)
    assert (
        alone.label("float32") != DepthModelSource(published).label("float32") != DepthModelSource(published).label("bfloat16")
    )
