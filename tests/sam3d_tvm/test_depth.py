"""The depth model in the pipeline and alone: what it writes is read back to the same bytes, and photos of all shapes run."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import plyfile
import pytest
from PIL import Image

from sam3d_tvm import cli, memory, outputs
from sam3d_tvm import pipeline as pipelines
from sam3d_tvm.batch import read_jobs, run_batch
from sam3d_tvm.bench import peak_bytes, reset_peak
from sam3d_tvm.checks import Failure
from sam3d_tvm.config import preset
from sam3d_tvm.depth import DepthEstimator, depth_picture, save_depth
from sam3d_tvm.models.moge.config import HUB
from sam3d_tvm.models.moge.infer import DepthMap
from sam3d_tvm.notices import Notice, heard_by
from sam3d_tvm.photo.pointmaps import load_point_map
from sam3d_tvm.pipeline import OpenModels, Pipeline, PointMaps, Progress, Run
from sam3d_tvm.runs import generate_into
from tests import NO_TORCH
from tests.sam3d_tvm.batch.photos import contents
from tests.sam3d_tvm.fake_checkpoint import write_checkpoint
from tests.sam3d_tvm.tiny_depth import CONFIG, DEPTH, ENCODER, tiny_depth_artifacts, weights, write_model
from tests.sam3d_tvm.tiny_pipeline import disc_photo, tiny_artifacts

FILES = ["points.npz", "points.ply", "depth.png", "intrinsics.json"]
FIRST = {"steps": 1, "stage1_only": True}
QUICK = {"steps": 1, "formats": ["ply"], "seed": 3}


def small_overview(gaussians, mesh, *rest, camera=None, **options) -> Image.Image:
    """In place of views.png, which takes seconds."""
    return Image.new("RGB", (len(gaussians) % 99 + 2, 1 if camera is None else 2))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_depth_artifacts())


@pytest.fixture(scope="module")
def estimator() -> DepthEstimator:
    return DepthEstimator.from_artifacts(tiny_depth_artifacts().folder)


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(disc_photo()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def counted(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the photos that the depth model has looked at since."""
    found, make = [], pipelines.point_map
    monkeypatch.setattr(pipelines, "point_map", lambda model, rgb, *rest: found.append(rgb.shape) or make(model, rgb, *rest))
    return found


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def run(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_writes_files_that_other_programs_read(capsys, photo, tmp_path, estimator):
    given = ["depth", photo, "--artifacts", tiny_depth_artifacts().folder, "-o"]
    code, out, _ = run(capsys, *given, tmp_path / "out")
    assert code == 0 and "64 x 48 pixels" in out and all(f"wrote {tmp_path / 'out' / name}" in out for name in FILES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert run(capsys, *given, tmp_path / "again")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")

    found = estimator(photo)
    with np.load(tmp_path / "out" / "points.npz") as file:
        arrays = dict(file)
    known = arrays["mask"]
    assert known.dtype == bool and 0.9 < known.mean() < 1
    assert np.array_equal(arrays["points"][known], found.points[known]) and arrays["points"].dtype == np.float32
    assert np.isnan(arrays["points"][~known]).all() and np.isnan(arrays["depth"][~known]).all()
    assert np.array_equal(arrays["depth"][known], arrays["points"][known][:, 2]) and (arrays["depth"][known] > 0).all()
    camera = json.loads((tmp_path / "out" / "intrinsics.json").read_text())
    assert camera["size"] == [64, 48] and np.array_equal(np.float32(camera["intrinsics"]), arrays["intrinsics"])
    assert camera["fov_x"] == pytest.approx(found.fov_x) and 30 < camera["fov_y"] < camera["fov_x"] < 120
    # Square pixels: one focal length.
    assert camera["intrinsics"][0][0] * 64 == pytest.approx(camera["intrinsics"][1][1] * 48, rel=1e-6)

    cloud = plyfile.PlyData.read(tmp_path / "out" / "points.ply")
    vertices = cloud["vertex"]
    assert np.array_equal(np.stack([vertices[axis] for axis in "xyz"], -1), found.points[known])
    colours = np.stack([vertices[name] for name in ("red", "green", "blue")], -1)
    assert np.array_equal(colours, disc_photo()[known][:, :3]) and "axes: x right, y down, z away" in cloud.comments
    picture = np.asarray(Image.open(tmp_path / "out" / "depth.png"))
    assert picture.shape == (48, 64, 3) and (picture[~known] == 255).all() and not (picture[known] == 255).all(1).any()


def test_near_is_red_and_far_is_blue(estimator):
    found = estimator(noise(40, 60))
    picture = depth_picture(found).astype(int)
    near, far = (np.where(found.mask, found.depth, fill) for fill in (np.inf, -np.inf))
    red, blue = picture[np.unravel_index(near.argmin(), near.shape)], picture[np.unravel_index(far.argmax(), far.shape)]
    assert red[0] > red[2] + 100 and blue[2] > blue[0] + 100


def test_a_photo_alone_comes_to_what_its_point_map_comes_to(pipeline, photo, tmp_path, estimator):
    result = generate_into(pipeline, tmp_path / "alone", photo, **QUICK)[0][0]
    save_depth(tmp_path / "depth", estimator(photo), photo)
    notes = []
    with heard_by(notes.append):
        again = generate_into(pipeline, tmp_path / "given", photo, pointmap=tmp_path / "depth" / "points.npz", **QUICK)[0][0]
    assert not notes  # the file says its axes
    assert contents(tmp_path / "alone") == contents(tmp_path / "given")
    assert "depth" in result.seconds and "depth" not in again.seconds and result.in_pointmap_units
    camera = json.loads((tmp_path / "alone" / "pose.json").read_text())["camera"]
    assert camera["size"] == [64, 48] and camera["units"] == "those of the point map"
    assert camera["intrinsics"] == json.loads((tmp_path / "depth" / "intrinsics.json").read_text())["intrinsics"]


def test_without_it_everything_is_as_before(pipeline, photo, tmp_path, counted):
    generate_into(pipeline, tmp_path / "no_depth", photo, depth_model=False, **FIRST)
    generate_into(Pipeline(tiny_artifacts()), tmp_path / "plain", photo, **FIRST)
    assert contents(tmp_path / "no_depth") == contents(tmp_path / "plain") and not counted
    assert "intrinsics" not in json.loads((tmp_path / "plain" / "pose.json").read_text())["camera"]
    points = np.dstack([np.mgrid[24:-24:-1, 32:-32:-1][::-1].transpose(1, 2, 0) / 32, np.full((48, 64), 2)]).astype(np.float32)
    for options in ({"pointmap": points}, {"depth": points[..., 2], "intrinsics": [64, 64, 32, 24]}):
        found = pipeline.generate(photo, **options, **FIRST)
        assert not counted and "depth" not in found.seconds
    assert found.camera.intrinsics == pytest.approx(np.array([[1, 0, 32.5 / 64], [0, 64 / 48, 24.5 / 48], [0, 0, 1]]))


def test_several_masks_of_a_photo_have_it_run_once_and_are_a_scene(pipeline, tmp_path, counted, monkeypatch):
    monkeypatch.setattr(outputs, "overview", small_overview)
    rgba = disc_photo()
    masks, told = [rgba[..., 3] > 0, np.roll(rgba[..., 3] > 0, 12, 1)], []
    with heard_by(told.append):
        results, written = generate_into(pipeline, tmp_path / "out", rgba[..., :3], masks, on_progress=told.append, **QUICK)
    assert counted == [(48, 64, 4)] and not [note for note in told if isinstance(note, str)]
    assert [told.index(Progress(f"object {n}: depth", done, 1)) for n in (1, 2) for done in (0, 1)]
    names = {path.relative_to(tmp_path / "out").as_posix() for path in written}
    assert {"scene_splat.ply", "scene_views.png", "object_1/pose.json", "object_2/views.png"} <= names
    count = sum(len(result.gaussians) for result in results)
    assert Image.open(tmp_path / "out" / "scene_views.png").size == (count % 99 + 2, 2)
    assert all(np.array_equal(result.camera.intrinsics, results[0].camera.intrinsics) for result in results)
    pipeline.generate_scene(rgba[..., :3], masks, **FIRST)
    assert len(counted) == 2
    # In a batch too, whose objects go through a stage together.
    folder = tmp_path / "photos" / "lamp"
    folder.mkdir(parents=True)
    Image.fromarray(rgba[..., :3]).save(folder / "image.png")
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{number}.png")
    rows = run_batch(pipeline, read_jobs(tmp_path / "photos", tmp_path / "all"), tmp_path / "all", **FIRST)
    assert [row.error for row in rows] == ["", ""] and len(counted) == 3 and "depth" in rows[1].seconds


def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(pipeline, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "overview", small_overview)
    generate_into(pipeline, tmp_path / "out", photo, seed=3, **FIRST)
    generate_into(pipeline, tmp_path / "out", photo, resume=True, **QUICK)
    generate_into(pipeline, tmp_path / "whole", photo, **QUICK)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"resume: expected the options of the run .*: pointmap \w+\.\.\., given none"):
        generate_into(pipeline, tmp_path / "out", photo, resume=True, depth_model=False, **QUICK)


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (53, 37), (37, 53)])
def test_photos_of_any_shape(estimator, pipeline, tmp_path, shape):
    """Where axes show by no signs the file says them."""
    rgb = noise(*shape)
    found = estimator(rgb)
    assert found.size == shape[::-1] and np.isfinite(found.points[found.mask]).all() and found.mask.any()
    save_depth(tmp_path, found, rgb)
    back = load_point_map(tmp_path / "points.npz", size=found.size)
    assert np.array_equal(back.points, found.pointmap, equal_nan=True)
    assert np.array_equal(back.intrinsics, found.intrinsics)
    mask = np.ones(shape, bool)  # touches the border
    mask[:, : shape[1] // 2] = shape[1] == 1
    result = pipeline.generate(rgb, mask, **FIRST)
    assert result.in_pointmap_units and result.camera.size == found.size


def test_a_photo_of_less_than_a_patch_is_refused(estimator, pipeline):
    """The tiny model takes 40 patches along a row, the published one 2,551."""
    for call in (estimator, lambda rgb: pipeline.generate(rgb, rgb[..., 0] >= 0, **FIRST)):
        with pytest.raises(ValueError, match="image: expected sides that differ by at most 40 times"):
            call(noise(1, 1000))
    result = pipeline.generate(noise(1, 1000), np.ones((1, 1000), bool), depth_model=False, **FIRST)
    assert not result.in_pointmap_units


def test_the_command_needs_no_torch(photo, tmp_path):
    given = ["depth", str(photo), "--artifacts", str(tiny_depth_artifacts().folder), "-o", str(tmp_path / "out")]
    script = NO_TORCH + f"from sam3d_tvm import cli; sys.exit(cli.main({given!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and (tmp_path / "out" / "points.npz").exists(), done.stderr


def test_a_point_map_of_another_model_is_not_taken(pipeline, counted):
    kept, others = PointMaps(), copy.copy(pipeline.artifacts)
    others.keys = others.keys | {DEPTH: {"code": "the same", "weights": "others"}}
    for artifacts in (pipeline.artifacts, others, others):
        run = Run(artifacts, models=_OpenModels(artifacts, _Flat()), point_maps=kept)
        run.looked_at(disc_photo(), 50.0)
    assert len(counted) == 2


def test_files_are_of_the_photo_that_was_looked_at(tmp_path):
    ones = np.ones((4, 5), np.float32)
    found = DepthMap(np.ones((4, 5, 3), np.float32), ones, ones > 0, ones, np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match="image: expected the photo that was looked at, of 5 x 4 pixels, given one of 4 x 5"):
        save_depth(tmp_path, found, noise(5, 4))
    assert not list(tmp_path.iterdir())


def test_transparent_pixels_and_masks_take_no_part(estimator, pipeline, photo, tmp_path):
    opaque = disc_photo()
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    maps = [estimator(image) for image in (photo, tmp_path / "opaque.png", opaque, opaque[..., :3], Image.fromarray(opaque))]
    assert all(np.array_equal(found.points, maps[0].points) for found in maps)
    Image.fromarray(opaque[..., :3].swapaxes(0, 1)).save(tmp_path / "turned.png", exif=_orientation(5))
    assert np.array_equal(estimator(tmp_path / "turned.png").points, maps[0].points)


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_a_photo_of_12_megapixels_stays_within_the_estimate(estimator):
    rgb = np.repeat(np.repeat(noise(30, 40), 100, 0), 100, 1)  # 3000 x 4000
    reset_peak()
    before = peak_bytes()
    found = estimator(rgb)
    pointmap = found.pointmap
    if before is None:
        pytest.skip("the system does not tell peaks of memory")
    assert pointmap.shape == (3, 3000, 4000)
    assert peak_bytes() - before < memory.WITH_DEPTH_MODEL * rgb[..., 0].size + (64 << 20)


class _Flat:
    """A depth model that sees one point everywhere."""

    config = CONFIG

    def __init__(self, seen: float = 1.0):
        self.seen = seen

    def forward(self, image, tokens):
        return np.ones((*image.shape[1:], 3), np.float32), np.full(image.shape[1:], self.seen, np.float32)


class _OpenModels(OpenModels):
    def __init__(self, artifacts, model):
        super().__init__(artifacts)
        self.depth_model = model

    def __getitem__(self, name):
        return self.depth_model if name == DEPTH else super().__getitem__(name)


def test_a_uniform_photo(pipeline, estimator, photo):
    """Points that are those of no camera are a failure with a message; a photo without any surface goes on, which is said."""
    grey = np.full((48, 64, 4), 128, np.uint8)
    assert pipeline.generate(grey[..., :3], disc_photo()[..., 3], **FIRST).camera is not None
    with pytest.raises(Failure, match=r"depth: no focal length is found for this photo .*--fov"):
        pipeline.generate(photo, models=_OpenModels(pipeline.artifacts, _Flat()), **FIRST)
    with pytest.raises(Failure, match="depth: no focal length is found"):
        estimator(noise(1, 1))
    with pytest.warns(Notice) as heard:
        found = pipeline.generate(photo, models=_OpenModels(pipeline.artifacts, _Flat(0.0)), **FIRST)
    assert found.pose.scale.min() > 0 and any("too few for a focal length" in str(note.message) for note in heard)


def test_a_field_of_view(pipeline, estimator, photo, tmp_path):
    found = estimator(photo, fov=50)
    assert found.fov_x == pytest.approx(50, rel=1e-5)
    assert pipeline.generate(photo, fov=50.0, **FIRST).camera.fov[0] == pytest.approx(50, rel=1e-5)
    with pytest.raises(ValueError, match=r"image .*photo\.png.*focal length"):
        estimator(photo, fov="exif")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 36  # of film of 36 x 24 mm
    Image.fromarray(disc_photo()[..., :3]).save(tmp_path / "exif.jpg", exif=exif)
    assert 45 < estimator(tmp_path / "exif.jpg", fov="exif").fov_x < 60
    for fov in (0, 180, -5, "wide", True, float("nan")):
        with pytest.raises(ValueError, match="fov: expected degrees above 0 and below 180, or exif, given"):
            pipeline.generate(photo, fov=fov, **FIRST)
    for options in ({"depth_model": False}, {"pointmap": found.pointmap}):
        with pytest.raises(ValueError, match="fov: expected with a depth model that makes the point map, given 50 without one"):
            pipeline.generate(photo, fov=50, **options, **FIRST)
    pipeline.steps(photo, pointmap=found.pointmap, views=[photo], fov=50, **FIRST)  # that of the other view


def test_a_field_of_view_beside_a_point_map_is_that_of_further_views(pipeline, estimator, photo):
    """The point map that is given is of the first photo; of the others the model makes them."""
    pointmap = estimator(photo).pointmap
    found, other, free = (
        pipeline.generate(photo, pointmap=pointmap, views=[photo], fov=fov, **FIRST) for fov in (50, 90, None)
    )
    assert found.camera is other.camera is free.camera is None
    assert len({result.made_with["structure"]["views"] for result in (found, other, free)}) == 3


def test_estimates_of_memory_know_it(pipeline, photo):
    assert next(iter(pipeline.memory())) == DEPTH and DEPTH not in pipeline.memory(depth_model=False)
    beside = pipeline.memory(photo=memory.of_photo(photo, None, False, True))
    assert beside[DEPTH] > pipeline.memory()[DEPTH] and beside[memory.IMAGE] > memory.BASE
    large = np.broadcast_to(np.uint8(0), (16_000, 16_000, 4))
    least = memory.of_photo(large, None, False, True)
    assert least - memory.BASE == 72 * 16_000**2
    with pytest.raises(ValueError, match="max_memory: expected at least"):
        pipeline.generate(large, max_memory=least - 1, **FIRST)


def test_the_file_and_the_checkpoint_of_a_model(monkeypatch, tmp_path, photo, estimator, capsys):
    """Each in artifacts that have its code already, so that only weights are packed."""
    monkeypatch.setitem(HUB, ENCODER, CONFIG.encoder)
    file = write_model(tmp_path / "moge" / "model.pt", model=weights(0))
    shutil.copytree(tiny_depth_artifacts().folder / DEPTH, tmp_path / "alone" / DEPTH)
    expected = estimator(photo).points
    told = []
    for _ in range(2):
        alone = DepthEstimator.from_file(file.parent, tmp_path / "alone", on_model=lambda *what: told.append(what))
        assert np.array_equal(alone(photo).points, expected)
    assert told == [(DEPTH, 0, 1), ("", 1, 1), ("", 0, 0)]
    folder = write_checkpoint(tmp_path / "hf")
    with pytest.raises(ValueError, match=r"depth model 'Ruicheng/moge-vitl': not found at"):
        DepthEstimator.from_checkpoint(folder, tmp_path / "artifacts")
    shutil.copytree(tiny_depth_artifacts().folder, tmp_path / "artifacts")
    found = DepthEstimator.from_checkpoint(folder, tmp_path / "artifacts", depth_model=file)
    assert np.array_equal(found(photo).points, expected)
    with pytest.raises(ValueError, match="compiled without a depth model"):
        DepthEstimator.from_artifacts(tiny_artifacts().folder)
    bad = write_model(tmp_path / "bad" / "model.pt", model={})
    with pytest.raises(ValueError, match=r"depth_model in model\.pt: state: .*: missing"):
        DepthEstimator.from_file(bad, tmp_path / "alone")
    code, _, err = run(capsys, "depth", photo, "--depth-model", file, "--artifacts", tmp_path / "alone", "-o", tmp_path / "out")
    assert code == 0, err


def test_a_model_alone_leaves_other_artifacts_as_they_are(monkeypatch, tmp_path, photo, pipeline):
    monkeypatch.setitem(HUB, ENCODER, CONFIG.encoder)
    file = write_model(tmp_path / "model.pt", model=weights(1))
    folder = shutil.copytree(pipeline.artifacts.folder, tmp_path / "artifacts")
    before = contents(folder)
    with pytest.raises(ValueError, match="artifacts: expected a folder of no pipeline with another depth_model, given"):
        DepthEstimator.from_file(file, folder)
    assert contents(folder) == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cup.jpg").touch()
    with pytest.raises(ValueError, match=r"artifacts: expected a new folder or one with pipeline\.json, given"):
        DepthEstimator.from_file(file, tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cup.jpg"]
    # Beside the models of a pipeline without one, which may come later too.
    (folder / "pipeline.json").unlink()
    DepthEstimator.from_file(file, folder)
    shutil.copy(tiny_artifacts().folder / "pipeline.json", folder)
    DepthEstimator.from_file(file, folder)
    assert not Pipeline.from_artifacts(folder).runs_depth_model({})


def test_a_preset_has_one_where_it_is_asked_for():
    assert preset("random-tiny").depth_model is None and preset("full").depth_model is None
    assert preset("random-tiny", depth_model=True).depth_model == CONFIG
    full = preset("full", depth_model=True).depth_model
    assert full.num_tokens_range == (1275, 2551) and full.encoder.embed_dim == 1024


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fov", "200"], "error: fov: expected degrees above 0 and below 180, or exif, given 200.0"),
        (["--fov", "wide"], "error: fov: expected degrees above 0 and below 180, or exif, given 'wide'"),
        (["--fov", "exif"], "focal length"),
        (["--resolution-level", "10"], "error: resolution_level: expected a number from 0 to 9, given 10.0"),
        (["--depth-model", "nothing.pt"], "nothing.pt is missing"),
        (
            ["--preset", "random-tiny", "--depth-model", "x.pt"],
            "error: preset: expected no model beside it, given --depth-model x.pt",
        ),
        (["--preset", "small"], "error: preset: expected one of"),
        ([], "error: depth_model: expected --depth-model PATH of a model.pt, --checkpoint FOLDER, --artifacts FOLDER"),
        (["--checkpoint", "nowhere"], "error: checkpoint: expected a folder with pipeline.yaml"),
    ],
)
def test_options_of_the_command_that_make_no_sense(capsys, photo, tmp_path, options, message):
    code, _, err = run(capsys, "depth", photo, "-o", tmp_path / "out", *options)
    assert code == 2 and message in err and not (tmp_path / "out").exists()


def test_the_other_commands_know_it(capsys, photo, tmp_path):
    folder = tiny_depth_artifacts().folder
    code, out, _ = run(capsys, "info", folder)
    assert code == 0 and "depth_model" in out
    options = ["--artifacts", folder, "--steps", "1", "--stage1-only", "--fov", "60", "-v", "-o", tmp_path / "out"]
    code, out, err = run(capsys, "generate", photo, *options)
    assert code == 0 and "depth_model" in out, err
    for given in (["--depth-model", "random"], ["--depth-model", "model.pt"]):
        code, _, err = run(capsys, "generate", photo, "--artifacts", folder, "-o", tmp_path / "no", *given)
        assert code == 2 and "error: depth_model: expected with --checkpoint or --preset" in err
    code, _, err = run(capsys, "generate", photo, "--preset", "random-tiny", "--depth-model", "model.pt", "-o", tmp_path / "no")
    assert code == 2 and "error: depth_model: expected random with --preset, given 'model.pt'" in err
