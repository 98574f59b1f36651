"""Checkpoint folders in the published layout: what is read, that it runs, and what each way to break one says."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sam3d_tvm import cli
from sam3d_tvm.artifacts import CheckpointSource, compile_artifacts, compile_model
from sam3d_tvm.checkpoint import OFFSETS, Checkpoint
from sam3d_tvm.config import preset
from sam3d_tvm.models import MODELS
from sam3d_tvm.notices import heard_by
from sam3d_tvm.pipeline import Pipeline
from sparse_ops.deploy.weights import check_arrays
from tests.sam3d_tvm.fake_checkpoint import (
    PUBLISHED,
    configs,
    states,
    write_checkpoint,
    write_hub_cache,
    write_repository,
    write_state,
    write_yaml,
)
from tests.sam3d_tvm.tiny_pipeline import copied_artifacts, disc_photo, tiny_artifacts

FLOW = ("module", "generator", "backbone", "reverse_fn", "backbone")
TENSOR = "out_layer.2.bias"  # [1], of the structure decoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "hf")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """For tests of what is refused: nothing is written into it."""
    return copied_artifacts(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture
def broken(checkpoint, tmp_path) -> Path:
    """A copy to break."""
    return shutil.copytree(checkpoint, tmp_path / "broken")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return disc_photo()


def edit(folder: Path, file: str, path: tuple, value) -> None:
    """Sets the value at `path` of a .yaml file."""
    node = tree = yaml.safe_load((folder / file).read_text())
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    write_yaml(folder / file, tree)


def test_the_config_is_that_of_the_preset(checkpoint):
    assert Checkpoint(checkpoint).config == preset("random-tiny")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_those_that_were_written(tmp_path, suffix, dtype):
    found = Checkpoint(write_checkpoint(tmp_path / "hf", suffix, dtype))
    for name in found.config.models:
        stem, _, prefix = MODELS[name].place
        written = {key: value for key, value in states()[stem].items() if key.startswith(prefix)}
        assert found.state(name).keys() == {key.removeprefix(prefix) for key in written} - {OFFSETS}
        for key, value in found.state(name).items():
            np.testing.assert_array_equal(np.asarray(value, np.float32), written[prefix + key].to(dtype).float().numpy())
    expected = states()["slat_decoder_gs"][OFFSETS].to(dtype).float().numpy()
    np.testing.assert_array_equal(found.offset_perturbation("slat_decoder_gs"), expected)


def test_runs_with_its_own_weights_whatever_holds_them(checkpoint, tmp_path, photo):
    options = {"steps": 1, "seed": 3, "formats": ("ply",)}
    first = Pipeline.from_checkpoint(checkpoint, copied_artifacts(tmp_path / "first")).generate(photo, **options)
    other = write_checkpoint(tmp_path / "hf", ".safetensors")
    second = Pipeline.from_checkpoint(other, copied_artifacts(tmp_path / "second")).generate(photo, **options)
    seeded = Pipeline(tiny_artifacts()).generate(photo, **options)
    for name in ("coords", "latents"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.coords, seeded.coords)


@pytest.mark.parametrize("file", ["pipeline.yaml", "slat_generator.yaml", "ss_decoder.ckpt"])
def test_a_file_is_missing(broken, file):
    (broken / file).unlink()
    with pytest.raises(ValueError, match=file):
        Checkpoint(broken)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_truncated_file(broken, artifacts, suffix):
    file = broken / f"ss_decoder{suffix}"
    write_state(file, states()["ss_decoder"])
    edit(broken, "pipeline.yaml", ("ss_decoder_ckpt_path",), file.name)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"ss_decoder{suffix}"):
        compile_model(CheckpointSource(broken), artifacts, "ss_decoder")


class _Code:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_does_not_run(broken, artifacts, tmp_path, save):
    save({TENSOR: _Code(tmp_path / "ran")}, broken / "ss_decoder.ckpt")
    with pytest.raises(ValueError, match=r"ss_decoder\.ckpt: not a file of weights alone"):
        compile_model(CheckpointSource(broken), artifacts, "ss_decoder")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "path"), [("pipeline.yaml", ("_target_",)), ("ss_generator.yaml", (*FLOW, "latent_mapping", "shape", "_target_"))]
)
def test_an_unknown_target_is_not_imported(broken, tmp_path, monkeypatch, file, path):
    (tmp_path / "imported_by_yaml.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nmake = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(broken, file, path, "imported_by_yaml.make")
    with pytest.raises(ValueError, match=rf"{file}.*_target_ 'imported_by_yaml.make' is not known"):
        Checkpoint(broken)
    assert "imported_by_yaml" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "!!python/object/apply:os.mkdir ['ran']\n", ""])
@pytest.mark.parametrize("file", ["pipeline.yaml", "ss_decoder.yaml"])
def test_a_file_that_is_no_mapping(broken, tmp_path, monkeypatch, file, text):
    monkeypatch.chdir(tmp_path)
    (broken / file).write_text(text)
    with pytest.raises(ValueError, match=f"{file}: (not a YAML file|expected names and values)"):
        Checkpoint(broken)
    assert not (tmp_path / "ran").exists()


BROKEN_TENSORS = {
    "extra": ({"extra": torch.ones(1)}, "extra: not a parameter"),
    "missing": ({TENSOR: None}, "missing, expected"),
    "misshapen": ({TENSOR: torch.ones(2)}, r"expected float32 \[1\], given float32 \[2\]"),
    "integers": ({TENSOR: torch.ones(1, dtype=torch.int32)}, "expected float32"),
    "nan": ({TENSOR: torch.tensor([torch.nan])}, "expected finite weights, given NaN or infinity"),
    "infinite": ({TENSOR: torch.tensor([torch.inf])}, "expected finite weights, given NaN or infinity"),
}


@pytest.mark.parametrize("kind", BROKEN_TENSORS)
def test_tensors_that_do_not_fit(broken, artifacts, kind):
    change, message = BROKEN_TENSORS[kind]
    state = {key: value for key, value in (states()["ss_decoder"] | change).items() if value is not None}
    write_state(broken / "ss_decoder.ckpt", state)
    before = {path: path.stat().st_mtime_ns for path in artifacts.rglob("*")}
    with pytest.raises(ValueError, match=message) as caught:
        compile_model(CheckpointSource(broken), artifacts, "ss_decoder")
    assert "ss_decoder.ckpt" in str(caught.value) and next(iter(change)) in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in artifacts.rglob("*")} == before


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("pipeline.yaml", ("ss_decoder_ckpt_path",), "../ss_decoder.ckpt", "expected files in the checkpoint's folder"),
        ("pipeline.yaml", ("ss_decoder_config_path",), "../ss_decoder.yaml", "expected files in the checkpoint's folder"),
        ("pipeline.yaml", ("pose_decoder_name",), "Other", "expected pose_decoder_name 'ScaleShiftInvariant', given 'Other'"),
        ("pipeline.yaml", ("ss_cfg_strength_pm",), 1.0, "expected ss_cfg_strength_pm 0, given 1.0"),
        ("pipeline.yaml", ("slat_mean",), [0.0] * 7, "slat_mean: expected 8 numbers"),
        ("pipeline.yaml", ("clip_pointmap_beyond_scale",), 0, "clip_pointmap_beyond_scale: expected a number above 0, given 0"),
        ("pipeline.yaml", ("clip_pointmap_beyond_scale",), "far", "clip_pointmap_beyond_scale: expected a number above 0"),
        ("pipeline.yaml", ("structure_sees_crop",), 1, "structure_sees_crop: expected true or false, given 1"),
        ("ss_generator.yaml", (*FLOW, "qk_rms_norm"), False, "qk_rms_norm: expected True, given False"),
        ("ss_decoder.yaml", ("norm_type",), "group", "norm_type: expected 'layer', given 'group'"),
        ("ss_generator.yaml", (*FLOW, "_target_"), ["a"], "is not known"),
        ("pipeline.yaml", ("ss_preprocessor", "normalize_pointmap"), False, "expected normalize_pointmap true, given False"),
        (
            "pipeline.yaml",
            ("ss_preprocessor", "pointmap_normalizer", "clip_beyond_scale"),
            2.0,
            "clip_beyond_scale: expected None, given 2.0",
        ),
        ("pipeline.yaml", ("ss_preprocessor",), "a name", "ss_preprocessor: expected a PreProcessor, given 'a name'"),
        ("ss_generator.yaml", ("module", "condition_embedder", "backbone", "embedder_list"), [[]], "ss_generator.yaml: "),
    ],
)
def test_values_that_no_published_model_has(broken, file, path, value, message):
    edit(broken, file, path, value)
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint(broken)
    assert file in str(caught.value)


def test_points_beyond_the_object_are_left_out_if_the_checkpoint_says_so(broken):
    assert Checkpoint(broken).config.preprocessing.clip_pointmap_beyond_scale is None
    edit(broken, "pipeline.yaml", ("clip_pointmap_beyond_scale",), 1.4)
    assert Checkpoint(broken).config.preprocessing.clip_pointmap_beyond_scale == 1.4


def test_an_option_of_ours_for_what_the_structure_sees(broken):
    assert Checkpoint(broken).config.preprocessing.structure_sees_crop is False
    edit(broken, "pipeline.yaml", ("structure_sees_crop",), True)
    assert Checkpoint(broken).config.preprocessing.structure_sees_crop is True


def test_the_command_line_says_it_in_one_line(broken, tmp_path, photo, capsys):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (broken / "ss_decoder.ckpt").unlink()
    code = cli.main(["generate", str(tmp_path / "photo.png"), "--checkpoint", str(broken), "-o", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2 and len(error.splitlines()) == 1 and "ss_decoder.ckpt is missing" in error


# Where a checkpoint may be, and what may stand in it.


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository") / "sam-3d-objects")


@pytest.fixture
def download(repository, tmp_path) -> Path:
    """A copy of its checkpoint to break."""
    return shutil.copytree(repository / "checkpoints", tmp_path / "checkpoints")


def notes_of_decoders(found: Checkpoint) -> list[str]:
    """Without that on the depth model, which is published apart and tested in test_depth_model."""
    assert found.notes[0].startswith("depth model 'Ruicheng/moge-vitl': not found at ")
    return found.notes[1:]


def test_the_published_layout_loads_with_all_its_weights(repository):
    found = Checkpoint(repository)
    assert found.config == PUBLISHED and [*found.missing] == ["depth_model"] and not notes_of_decoders(found)
    assert {path.name for path in (repository / "checkpoints").iterdir()} == {
        "pipeline.yaml",
        *(f"{stem}.{kind}" for stem in ("ss_generator", "slat_generator", "ss_decoder") for kind in ("yaml", "ckpt")),
        *(f"slat_decoder_{kind}" for name in ("gs", "gs_4", "mesh") for kind in (f"{name}.yaml", f"{name}.ckpt")),
        "ss_encoder.yaml",
    }
    for name, config in found.config.models.items():
        check_arrays(MODELS[name].shapes(config), found.state(name))
    assert found.offset_perturbation("slat_decoder_gs_4").shape == (2, 3)


def test_the_published_values_load(download):
    """The golden notes state them, as those of the published .yaml files."""
    for file, value in configs(preset("full")).items():
        write_yaml(download / file, value)
    config = Checkpoint(download).config
    assert config == preset("full")
    flow, slat, gs, mesh = config.ss_generator, config.slat_generator, config.slat_decoder_gs, config.slat_decoder_mesh
    assert (flow.num_blocks, flow.model_channels, flow.num_heads, flow.cond_channels) == (24, 1024, 16, 1024)
    assert [latent.token_len for latent in flow.latent_mapping.values()].count(1) == 4
    assert flow.latent_mapping["shape"].token_len == 16**3
    assert config.ss_decoder.channels == (512, 128, 32)
    assert (slat.io_block_channels, slat.resolution, slat.patch_size, slat.use_fp16) == ((128,), 64, 2, True)
    assert (gs.model_channels, gs.num_blocks, gs.num_heads, gs.window_size, gs.out_channels) == (768, 12, 12, 8, 448)
    assert config.slat_decoder_gs_4.out_channels == 56 and mesh.out_channels == 101 and mesh.out_resolution == 256
    assert gs.representation_config["voxel_size"] == 1.5 and gs.representation_config["scaling_bias"] == 0.004
    assert (config.preprocessing.size, config.preprocessing.box_size_factor, config.prune_distance) == (518, 1.2, 1)
    assert (config.slat_sampling.strength, config.slat_sampling.rescale_t) == (1, 1)
    assert (config.ss_sampling.steps, config.ss_sampling.strength, config.ss_sampling.interval) == (25, 7, (0, 500))


def test_a_checkpoint_by_any_of_its_paths(repository, tmp_path):
    folder = repository / "checkpoints"
    for path in (repository, folder, folder / "pipeline.yaml", str(folder)):
        assert Checkpoint(path).folder == folder
    moved = shutil.copytree(folder, tmp_path / "code" / "checkpoints" / "hf")
    assert Checkpoint(tmp_path / "code").folder == moved and Checkpoint(moved.parent).folder == moved
    labels = {CheckpointSource(path).label("float32") for path in (repository, folder, folder / "pipeline.yaml")}
    assert len(labels) == 1
    shutil.copy(folder / "pipeline.yaml", moved / "pipeline_no_depth.yaml")
    edit(moved, "pipeline_no_depth.yaml", ("depth_model",), None)
    assert Checkpoint(moved / "pipeline_no_depth.yaml").config == PUBLISHED
    edit(moved, "pipeline_no_depth.yaml", ("pose_decoder_name",), "Other")
    with pytest.raises(ValueError, match=r"pipeline_no_depth\.yaml: expected pose_decoder_name"):
        Checkpoint(moved / "pipeline_no_depth.yaml")


@pytest.mark.parametrize("path", ["", "nothing", "a\0b", "notes.txt", "x" * 300])
def test_paths_without_a_checkpoint(tmp_path, path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"checkpoint: .*(checkpoints/pipeline\.yaml|cannot read)"):
        Checkpoint(tmp_path / path)


def test_the_cache_of_a_hub(repository, tmp_path):
    name = "models--facebook--sam-3d-objects"
    one = write_hub_cache(tmp_path / "one" / name, repository, {"a1b2": True})
    assert (one / "snapshots/a1b2/checkpoints/ss_decoder.ckpt").is_symlink()
    for path in (one, one / "snapshots/a1b2", one / "snapshots/a1b2/checkpoints"):
        found = Checkpoint(path)
        assert found.config == PUBLISHED and found.folder == one / "snapshots/a1b2/checkpoints"
    assert found.state("ss_decoder").keys() == Checkpoint(repository).state("ss_decoder").keys()
    two = write_hub_cache(tmp_path / "two" / name, repository, {"a1b2": False, "c3d4": True})
    assert Checkpoint(two).folder == two / "snapshots/c3d4/checkpoints"
    for text in (None, "e5f6", "../blobs"):
        (two / "refs/main").unlink(missing_ok=True) if text is None else (two / "refs/main").write_text(text)
        with pytest.raises(ValueError, match=r"expected refs/main to name one of a1b2, c3d4, given .*: pass one of them"):
            Checkpoint(two)
    blob = (one / "snapshots/a1b2/checkpoints/ss_decoder.ckpt").resolve()
    blob.rename(blob.with_suffix(".incomplete"))
    with pytest.raises(ValueError, match=r"ss_decoder\.ckpt is missing: it links to .*\.incomplete is there: its download"):
        Checkpoint(one)


def test_a_weight_on_another_disk_is_read_through_its_link(download, tmp_path):
    (tmp_path / "disk").mkdir()
    for file in ("ss_generator.ckpt", "slat_decoder_gs.yaml"):
        shutil.move(download / file, tmp_path / "disk" / file)
        (download / file).symlink_to(tmp_path / "disk" / file)
    assert Checkpoint(download).config == PUBLISHED


OUTSIDE = [
    "/etc/passwd",
    "../ss_decoder.ckpt",
    "a/../../ss_decoder.ckpt",
    "a/b/../../../checkpoints/ss_decoder.ckpt",
    "./../checkpoints/ss_decoder.ckpt",
    "..",
    ".",
    "",
    "..\\ss_decoder.ckpt",
    "a\\ss_decoder.ckpt",
    "C:\\ss_decoder.ckpt",
    "C:ss_decoder.ckpt",
    "\\\\server\\share",
    "ss_decoder.ckpt\0.safetensors",
    "x" * 5000,
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("key", ["ss_decoder_ckpt_path", "ss_decoder_config_path", "slat_decoder_mesh_ckpt_path"])
def test_a_path_stays_inside_as_it_is_written(download, name, key):
    edit(download, "pipeline.yaml", (key,), name)
    with pytest.raises(ValueError, match=r"pipeline\.yaml: expected files in the checkpoint's folder, given"):
        Checkpoint(download)


def test_a_path_that_leads_back_is_the_file_that_it_says(download, tmp_path):
    """Not what a link on the way leads to."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "ss_decoder.ckpt").write_text("something else")
    (download / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    edit(download, "pipeline.yaml", ("ss_decoder_ckpt_path",), "link/../ss_decoder.ckpt")
    assert Checkpoint(download).file("ss_decoder") == download / "ss_decoder.ckpt"


def test_safetensors_in_place_of_ckpt(download):
    write_state(download / "ss_decoder.safetensors", states()["ss_decoder"])
    found = Checkpoint(download)
    assert found.file("ss_decoder").name == "ss_decoder.ckpt" and not notes_of_decoders(found)
    (download / "ss_decoder.ckpt").unlink()
    found = Checkpoint(download)
    assert notes_of_decoders(found) == ["took ss_decoder.safetensors for ss_decoder.ckpt, which is not there"]
    check_arrays(MODELS["ss_decoder"].shapes(found.config.ss_decoder), found.state("ss_decoder"))
    (download / "ss_decoder.safetensors").rename(download / "ss_decoder.ckpt")  # what it holds counts, not its name
    found = Checkpoint(download)
    check_arrays(MODELS["ss_decoder"].shapes(found.config.ss_decoder), found.state("ss_decoder"))
    assert not notes_of_decoders(found)
    (download / "ss_generator.ckpt").rename(download / "ss_generator.safetensors")  # but torch goes by the name
    with pytest.raises(ValueError, match=r"ss_generator\.safetensors: expected .*, given a file of torch: rename it to \.ckpt"):
        Checkpoint(download).state("ss_generator")


@pytest.mark.parametrize("kind", ["yaml", "ckpt"])
def test_a_decoder_is_missed_where_it_is_needed(download, kind):
    (download / f"slat_decoder_mesh.{kind}").unlink()
    for needed in (None, (), {"slat_decoder_gs"}):
        found = Checkpoint(download, needed)
        assert found.config.slat_decoder_mesh is None and found.config.slat_decoder_gs == PUBLISHED.slat_decoder_gs
        assert [*found.missing] == ["depth_model", "slat_decoder_mesh"]
        (note,) = notes_of_decoders(found)
        assert note.startswith("left out slat_decoder_mesh: ") and f"slat_decoder_mesh.{kind} is missing" in note
    with pytest.raises(ValueError, match=rf"slat_decoder_mesh\.{kind} is missing"):
        Checkpoint(download, {"slat_decoder_mesh"})
    with pytest.raises(ValueError, match=rf"slat_decoder_mesh\.{kind} is missing"):
        Pipeline.from_checkpoint(download, formats=["ply", "glb"])


def test_pipeline_yaml_may_name_no_decoder(download):
    for kind in ("config", "ckpt"):
        edit(download, "pipeline.yaml", (f"slat_decoder_mesh_{kind}_path",), None)
    assert Checkpoint(download).config.slat_decoder_mesh is None
    with pytest.raises(ValueError, match=r"pipeline\.yaml names no file at slat_decoder_mesh_config_path"):
        Checkpoint(download, {"slat_decoder_mesh"})


def test_artifacts_without_a_decoder_say_so_and_are_completed(checkpoint, tmp_path, photo):
    folder = shutil.copytree(checkpoint, tmp_path / "hf")
    (folder / "slat_decoder_mesh.ckpt").rename(tmp_path / "kept")
    place, heard = copied_artifacts(tmp_path / "artifacts"), []
    with heard_by(heard.append):
        pipeline = Pipeline.from_checkpoint(folder, place, formats=["ply"])
    assert len(heard) == 2 and "depth model" in heard[0] and "left out slat_decoder_mesh" in heard[1]
    with pytest.raises(ValueError, match=r"formats: .* given glb: the models were compiled without slat_decoder_mesh, compile"):
        pipeline.generate(photo, formats=["ply", "glb"])
    with pytest.raises(ValueError, match="compiled without slat_decoder_mesh"):
        Pipeline.from_artifacts(place).generate(photo, formats=["mesh.ply"])
    assert pipeline.generate(photo, steps=1, seed=3, formats=["ply"]).gaussians is not None
    (tmp_path / "kept").rename(folder / "slat_decoder_mesh.ckpt")
    told = []
    compile_artifacts(CheckpointSource(folder), place, on_model=lambda *what: told.append(what))
    assert [name for name, _, _ in told] == ["slat_decoder_mesh", ""]
    assert Pipeline.from_artifacts(place).config == Checkpoint(checkpoint).config


def archive(kind: str) -> bytes:
    """A small archive of another kind than torch's."""
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as file:
            file.writestr("ss_decoder.ckpt", b"weights")
    elif kind == "tar":
        with tarfile.open(fileobj=data, mode="w") as file:
            file.addfile(tarfile.TarInfo("ss_decoder.ckpt"))
    else:
        return {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}[kind](b"weights")
    return data.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 6690000000\n"
GATED = b'{"error":"Access to model facebook/sam-3d-objects is restricted. You must be authenticated to access it."}'
SIGN_IN = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
INSTEAD = {
    "git-lfs": (POINTER, "a Git LFS pointer, .*git lfs pull"),
    "html": (SIGN_IN, "an HTML page, 'Sign in': download it again.*licence"),
    "html-comment": (b"<!-- x -->\n<html lang='en'>", "an HTML page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML text .*download it again"),
    "json": (GATED, "an answer of a server in JSON, 'Access to model .*download it again"),
    "empty": (b"", "an empty file: download it again"),
    "zeros": (bytes(5000), "zeros: the download was not finished"),
    "zip": (archive("zip"), "an? .*archive.*: unpack it"),
    **{kind: (archive(kind), rf"an archive \({kind}\): unpack it") for kind in ("gzip", "bzip2", "xz", "tar")},
}


@pytest.mark.parametrize("kind", INSTEAD)
@pytest.mark.parametrize("file", ["ss_decoder.ckpt", "ss_decoder.yaml", "pipeline.yaml", "ss_decoder.safetensors"])
def test_what_stands_in_place_of_a_file_is_called_by_its_name(download, file, kind):
    data, words = INSTEAD[kind]
    if file == "ss_decoder.safetensors":
        (download / "ss_decoder.ckpt").unlink()
    (download / file).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{file}: expected .*, given {words}"):
        Checkpoint(download)


@pytest.mark.parametrize("text", ["Entry not found", "Invalid username or password."])
def test_a_line_in_place_of_a_file(download, text):
    (download / "ss_decoder.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"ss_decoder\.yaml: expected names and values, given the text '{text}'"):
        Checkpoint(download)
    write_yaml(download / "ss_decoder.yaml", configs(PUBLISHED)["ss_decoder.yaml"])
    (download / "ss_decoder.ckpt").write_text(text)
    with pytest.raises(ValueError, match=rf"ss_decoder\.ckpt: expected weights, given a text that begins '{text}': download"):
        Checkpoint(download)


def test_a_pointer_in_place_of_a_decoder_that_is_not_needed(download):
    (download / "slat_decoder_mesh.ckpt").write_bytes(INSTEAD["git-lfs"][0])
    assert "Git LFS pointer" in Checkpoint(download, {"slat_decoder_gs"}).missing["slat_decoder_mesh"]
    for needed in (None, {"slat_decoder_mesh"}):
        with pytest.raises(ValueError, match=r"slat_decoder_mesh\.ckpt: .* Git LFS pointer"):
            Checkpoint(download, needed)


def test_a_download_that_was_not_finished(download):
    (download / "ss_decoder.ckpt").rename(download / "ss_decoder.ckpt.incomplete")
    with pytest.raises(ValueError, match=r"ss_decoder\.ckpt is missing; ss_decoder\.ckpt\.incomplete is there: its down"):
        Checkpoint(download)
    (kept := download / ".cache/huggingface/download").mkdir(parents=True)
    (download / "ss_decoder.ckpt.incomplete").rename(kept / "ss_decoder.ckpt.0a1b.incomplete")
    with pytest.raises(ValueError, match=r"ss_decoder\.ckpt\.0a1b\.incomplete is there: its download was not finished"):
        Checkpoint(download)


def unsafe(path: Path) -> dict:
    """Files of weights that torch refuses, by what is wrong with them."""
    state = states()["ss_decoder"]
    return {
        "code": lambda: torch.save({TENSOR: _Code(path.parent / "ran")}, path),
        "code, old": lambda: torch.save({TENSOR: _Code(path.parent / "ran")}, path, _use_new_zipfile_serialization=False),
        "module": lambda: torch.save(torch.nn.Linear(2, 2), path),
        "path": lambda: torch.save({"state_dict": state, "folder": path}, path),
        "numpy": lambda: torch.save({"state_dict": state, "scalar": np.float64(1), "array": np.ones(2, object)}, path),
        "pickle": lambda: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)),
        "cut short": lambda: (torch.save(state, path), os.truncate(path, path.stat().st_size - 100)),
        "cut short, old": lambda: (torch.save(state, path, _use_new_zipfile_serialization=False), os.truncate(path, 3000)),
        "noise": lambda: path.write_bytes(b"\x80\2" + np.random.default_rng(0).bytes(5000)),
    }


@pytest.mark.parametrize("kind", unsafe(Path("none")))
def test_no_message_advises_unsafe_loading(broken, artifacts, kind):
    unsafe(broken / "ss_decoder.ckpt")[kind]()
    with pytest.raises(ValueError, match=r"ss_decoder\.ckpt") as caught:
        compile_model(CheckpointSource(broken), artifacts, "ss_decoder")
    errors, texts = [caught.value], []
    while errors:
        error = errors.pop()
        texts += [str(error), *getattr(error, "__notes__", ())]
        errors += [inner for inner in (error.__cause__, error.__context__) if inner is not None]
    for word in ("weights_only", "safe_globals", "trust", "serialization.", "allowlist"):
        assert word not in " ".join(texts)
    assert not (broken / "ran").exists()


def test_torch_before_1_6_wrote_weights_too(broken):
    torch.save(states()["ss_decoder"], broken / "ss_decoder.ckpt", _use_new_zipfile_serialization=False)
    found = Checkpoint(broken)
    for key, value in found.state("ss_decoder").items():
        np.testing.assert_array_equal(np.asarray(value), states()["ss_decoder"][key].numpy())
