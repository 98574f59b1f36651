"""The pipeline of the preset "random-tiny": what comes out, the same bytes, what is refused and when, memory let go of."""

import gc
import json
import weakref
from dataclasses import replace

import numpy as np
import plyfile
import pytest
import trimesh
from PIL import Image
from safetensors import safe_open

from sam3d_tvm import memory, outputs
from sam3d_tvm.config import PipelineConfig, Sampling, preset
from sam3d_tvm.notices import Notice
from sam3d_tvm.pipeline import Pipeline, Progress, Run, clipped
from sam3d_tvm.pose import Pose
from sam3d_tvm.sampler import flow_schedule
from sam3d_tvm.tiny import TINY
from sparse_ops import devices
from tests.sam3d_tvm.tiny_pipeline import disc_photo, tiny_artifacts

QUICK = {"steps": 2, "formats": ("ply", "glb")}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_artifacts())


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return disc_photo()


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """float32 [48, 64, 3], a plane that faces the camera."""
    rows, columns = np.mgrid[:48, :64].astype(np.float32)
    return np.stack([(32 - columns) / 32, (24 - rows) / 32, np.full_like(rows, 2)], -1)


@pytest.fixture(scope="module")
def result(pipeline, photo):
    return pipeline.generate(photo, seed=3, **QUICK)


def test_everything_comes_out(result):
    count = len(result.coords)
    assert 500 < count < 42_000 and result.coords.dtype == np.int32
    assert result.latents.shape == (count, 8) and np.isfinite(result.latents).all()
    assert len(result.gaussians) == 4 * count
    assert result.few_gaussians is None
    assert len(result.mesh.faces) > 1000 and result.mesh.is_watertight
    assert np.abs(result.mesh.vertices).max() <= 0.5 and np.abs(result.points).max() < 0.5
    stages = ["image", "condition of the structure", "structure", "voxels", "condition of the latents", "latents"]
    assert list(result.seconds) == [*stages, "gaussians", "mesh"]


def test_equal_arguments_give_equal_bytes(pipeline, photo, result, tmp_path):
    again = pipeline.generate(photo[..., :3], photo[..., 3], seed=3, **QUICK)
    other = pipeline.generate(photo, seed=4, **QUICK)
    for name, found in (("first", result), ("again", again), ("other", other)):
        found.save(tmp_path / name)
    for file in ("splat.ply", "mesh.glb", "structure.safetensors", "pose.json", "views.png"):
        first = (tmp_path / "first" / file).read_bytes()
        assert first == (tmp_path / "again" / file).read_bytes(), file
        assert first != (tmp_path / "other" / file).read_bytes(), file


def test_other_libraries_read_the_files(result, tmp_path):
    written = result.save(tmp_path, ["ply", "html", "glb", "mesh.ply", "obj", "stl"])
    assert sorted((*written, tmp_path / "run.json")) == sorted(tmp_path.iterdir())
    splat = plyfile.PlyData.read(tmp_path / "splat.ply")["vertex"]
    np.testing.assert_array_equal(splat["x"], result.gaussians.xyz[:, 0])
    mesh = trimesh.load(tmp_path / "mesh.glb", force="mesh", process=False)
    assert mesh.is_watertight and len(mesh.faces) == len(result.mesh.faces)
    assert mesh.visual.kind == "vertex" and len(mesh.visual.vertex_colors) == len(result.mesh.vertices)
    assert len(plyfile.PlyData.read(tmp_path / "mesh.ply")["vertex"].data) == len(result.mesh.vertices)
    for file in ("mesh.obj", "mesh.stl"):
        assert len(trimesh.load_mesh(tmp_path / file).faces) == len(result.mesh.faces)
    with safe_open(tmp_path / "structure.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("coords"), result.coords)
        np.testing.assert_array_equal(file.get_tensor("latents"), result.latents)
    pose = json.loads((tmp_path / "pose.json").read_text())
    np.testing.assert_allclose(pose["scale"], result.pose.scale[0])
    assert pose["matrices"].keys() >= {"splat.ply", "mesh.glb"} and "not known" in pose["camera"]["units"]
    assert Image.open(tmp_path / "views.png").width >= 4 * 320
    sheet = np.asarray(Image.open(tmp_path / "views.png"))
    assert (sheet[:27] == (200, 0, 0)).all(2).sum() > 300  # "random weights", in red
    assert result.random_weights and result.photo.shape == (48, 64, 4)


def test_only_what_the_formats_need_is_decoded(pipeline, photo, tmp_path):
    found = pipeline.generate(photo, steps=1, formats=["glb"])
    assert found.gaussians is None and found.mesh is not None
    with pytest.raises(ValueError, match="formats: expected those that were asked for when generating, given 'ply'"):
        found.save(tmp_path, ["ply"])
    assert list(tmp_path.iterdir()) == []


def test_stage_one_alone(pipeline, photo, result, tmp_path):
    found = pipeline.generate(photo, seed=3, steps=2, stage1_only=True)
    np.testing.assert_array_equal(found.coords, result.coords)
    np.testing.assert_array_equal(found.pose.rotation, result.pose.rotation)
    assert found.latents is None and found.gaussians is None and found.mesh is None
    assert "latents" not in found.seconds
    names = {path.name for path in found.save(tmp_path)}
    assert names == {"structure.safetensors", "pose.json", "voxels.png"}


def test_a_point_map_puts_the_object_in_its_scene(pipeline, photo, points, tmp_path):
    np.save(tmp_path / "points.npy", points)
    found = pipeline.generate(photo, steps=1, pointmap=tmp_path / "points.npy", stage1_only=True)
    near = pipeline.generate(photo, steps=1, pointmap=points, stage1_only=True)
    far = pipeline.generate(photo, steps=1, pointmap=points + np.float32([0, 0, 100]), stage1_only=True)
    np.testing.assert_array_equal(found.coords, near.coords)
    # The models see the points relative to the object, so that the pose alone tells where it is.
    np.testing.assert_array_equal(near.coords, far.coords)
    moved = far.pose.translation - near.pose.translation
    np.testing.assert_allclose(moved, [[0, 0, 100]], atol=1e-3)
    assert found.in_pointmap_units and found.pose_as_json()["camera"]["units"] == "those of the point map"


def test_points_of_any_axes_and_depth_give_one_pose(pipeline, photo, points, tmp_path):
    def pose_of(**options):
        return pipeline.generate(photo, steps=1, stage1_only=True, **options).pose

    expected = pose_of(pointmap=points, pointmap_axes="pytorch3d")
    flipped = points * np.float32([-1, -1, 1])
    np.savez(tmp_path / "moge.npz", points=flipped, depth=points[..., 2])
    with pytest.warns(Notice, match="axes are those of opencv, x right, y down, z away"):
        found = pose_of(pointmap=tmp_path / "moge.npz")
    np.testing.assert_array_equal(found.translation, expected.translation)
    with pytest.warns(Notice, match="axes are those of opengl"):
        found = pose_of(pointmap=points * np.float32([-1, 1, -1]))
    np.testing.assert_array_equal(found.rotation, expected.rotation)
    # x = (column - 32) / 32 at a depth of 2 is a focal length of 64.
    found = pose_of(depth=points[..., 2], intrinsics=[64, 64, 32, 24])
    np.testing.assert_allclose(found.translation, expected.translation, atol=1e-5)
    holes = flipped.copy()
    holes[:5] = 0
    with pytest.warns(Notice, match="opencv"):
        assert np.isfinite(pose_of(pointmap=holes).translation).all()
    with pytest.raises(ValueError, match="pointmap: expected points in front of the camera"):
        pose_of(pointmap=-flipped, pointmap_axes="opencv")


def test_objects_without_a_point_map_lie_over_one_another_and_that_is_said(pipeline, photo, points):
    masks = [photo[..., 3] > 0, np.roll(photo[..., 3] > 0, 10, 1)]
    with pytest.warns(Notice, match="several masks without a point map: nothing tells where the objects are"):
        pipeline.generate_scene(photo[..., :3], masks, steps=1, stage1_only=True)


def test_steps_and_guidance_are_taken(pipeline, photo):
    calls = []
    pipeline.generate(photo, steps=3, slat_steps=2, formats=["ply"], on_progress=calls.append)
    done = {call.stage: (call.done, call.total) for call in calls}
    assert done["structure"] == (3, 3) and done["latents"] == (2, 2) and done["gaussians"] == (1, 1)
    assert Progress("structure", 0, 3) in calls and "mesh" not in done
    plain, strong, short = (
        pipeline.generate(photo, steps=2, stage1_only=True, **options)
        for options in ({"guidance": 0.0}, {"guidance": 7.0}, {"shortcut": True})
    )
    assert not np.array_equal(plain.pose.translation, strong.pose.translation)
    assert not np.array_equal(plain.pose.translation, short.pose.translation)


def test_several_masks_are_a_scene(pipeline, photo, points, tmp_path):
    masks = [photo[..., 3] > 0, np.roll(photo[..., 3] > 0, 10, 1)]
    calls = []
    results = pipeline.generate_scene(
        photo[..., :3], masks, pointmap=points, steps=1, formats=["ply", "glb"], on_progress=calls.append
    )
    assert {call.stage.split(":")[0] for call in calls} == {"object 1", "object 2"}
    written = outputs.save_scene(results, tmp_path, ["ply", "glb"])
    assert tmp_path / "object_2" / "splat.ply" in written
    scene = plyfile.PlyData.read(tmp_path / "scene_splat.ply")["vertex"]
    count = len(results[0].gaussians)
    assert len(scene.data) == count + len(results[1].gaussians)
    pose, xyz = results[0].pose, results[0].gaussians.xyz
    placed = pose.scale * xyz @ pose.rotation_matrix[0] + pose.translation
    np.testing.assert_allclose(scene["x"][:count], placed[:, 0], rtol=1e-4, atol=1e-4)
    assert trimesh.load(tmp_path / "scene_mesh.glb", force="mesh", process=False).is_watertight
    data = (tmp_path / "scene_mesh.glb").read_bytes()
    nodes = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])["nodes"]
    for number, (node, found) in enumerate(zip(nodes, results, strict=True), 1):
        pose = json.loads((tmp_path / f"object_{number}" / "pose.json").read_text())
        assert node["name"] == found.name
        np.testing.assert_array_equal(np.reshape(node["matrix"], (4, 4)).T, pose["matrices"]["mesh.glb"])


def test_models_are_let_go_of_before_the_next(pipeline, photo, monkeypatch):
    alive = []
    load = type(pipeline.artifacts).load

    def watched(self, name):
        gc.collect()
        assert not [other for other, reference in alive if reference() is not None], name
        component = load(self, name)
        alive.append((name, weakref.ref(component)))
        return component

    monkeypatch.setattr(type(pipeline.artifacts), "load", watched)
    pipeline.generate(photo, **QUICK)
    assert [name for name, _ in alive] == list(pipeline.config.models)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed: expected an integer of at least 0, given -1"),
        ({"steps": 0}, "steps: expected an integer of at least 1, given 0"),
        ({"slat_steps": 1.5}, r"slat_steps: expected an integer of at least 1, given 1\.5"),
        ({"guidance": float("nan")}, "guidance: expected a finite number, given nan"),
        ({"slat_guidance": "much"}, "slat_guidance: expected a finite number, given 'much'"),
        ({"formats": ["fbx"]}, "formats: expected names among ply, .*glb, .*, given fbx"),
        ({"formats": ["ply4"]}, "formats: expected names among ply, .*glb, .*, given ply4"),
        ({"formats": "ply"}, "formats: expected a list of names, given the string 'ply'"),
        ({"max_memory": 0}, "max_memory: expected an integer of at least 1, given 0"),
        ({"max_memory": 1 << 20}, r"max_memory: expected at least .* GiB, which \w+ is estimated to take for 16,000 voxels"),
        ({"mask": np.zeros((48, 64), bool)}, "mask: "),
        ({"mask": np.ones((48, 63), bool)}, "mask: .*"),
        ({"pointmap": np.zeros((48, 64))}, "pointmap: "),
    ],
)
def test_bad_arguments_are_refused_before_any_work(pipeline, photo, monkeypatch, options, message):
    monkeypatch.setattr(type(pipeline.artifacts), "load", lambda self, name: pytest.fail("a model was loaded"))
    mask = options.pop("mask", None)
    with pytest.raises(ValueError, match=message):
        pipeline.generate(photo[..., :3] if mask is not None else photo, mask, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "Plan9 vax"}, "artifacts .*: made for Plan9 vax, this is "),
        ({"target": {"kind": "cuda", "arch": "sm_90"}}, "artifacts .*: made for the target .*sm_90.* has no such device"),
    ],
)
def test_models_of_another_machine_are_refused_before_any_work(pipeline, photo, monkeypatch, change, message):
    other = replace(pipeline.artifacts._manifest("ss_condition_embedder"), **change)
    monkeypatch.setattr(type(pipeline.artifacts), "_manifest", lambda self, name: other)
    monkeypatch.setattr(Run, "inputs", lambda self, *given, **options: pytest.fail("a photo was read"))
    monkeypatch.setattr(devices, "cuda_device", _no_device)
    with pytest.raises(ValueError, match=message):
        pipeline.generate(photo)


def _no_device(number=None):
    raise ValueError("device: expected a CUDA device, given none")


def test_memory_is_checked_again_when_the_voxels_are_known(pipeline, photo, monkeypatch):
    enough = max(pipeline.memory().values())
    monkeypatch.setattr(memory, "TYPICAL_VOXELS", 0)
    least = max(pipeline.memory(0).values())
    assert least < enough
    with pytest.raises(ValueError, match=r"max_memory: .*slat_decoder_mesh"):
        pipeline.generate(photo, steps=1, max_memory=least)


def test_an_empty_structure_is_said(pipeline, photo, monkeypatch):
    empty = np.zeros((0, 4), np.int32), np.ones(1, np.int64)
    monkeypatch.setattr(Run, "voxels", lambda self, shape: empty)
    with pytest.raises(ValueError, match="structure: no voxel is occupied"):
        pipeline.generate(photo, steps=1)


def test_estimates_grow_with_what_they_count(pipeline):
    few, many = pipeline.memory(1000), pipeline.memory(40_000)
    assert few.keys() == set(pipeline.config.models)
    assert many["slat_decoder_mesh"] > 10 * (few["slat_decoder_mesh"] - memory.BASE)
    assert many["ss_generator"] == few["ss_generator"]
    assert not [name for name in pipeline.memory(stage1_only=True) if name.startswith("slat")]


def test_no_scene_without_masks(pipeline, photo):
    with pytest.raises(ValueError, match=r"masks: expected a list of at least one, given \[\]"):
        pipeline.generate_scene(photo, [])
    with pytest.raises(ValueError, match=r"masks: expected a list of at least one, given 'mask\.png'"):
        pipeline.generate_scene(photo, "mask.png")


def test_points_far_behind_the_object_are_cut_off():
    points = np.zeros((3, 2, 3), np.float32)
    points[2] = [[1, 2, 5], [3, np.nan, 9]]
    mask = np.uint8([[255, 255, 0], [255, 255, 0]])
    found = clipped(points, mask, 2.0)  # the object's lower median is 2
    np.testing.assert_array_equal(np.isnan(found[0]), [[False, False, True], [False, False, True]])
    np.testing.assert_array_equal(np.isnan(found[2]), [[False, False, True], [False, True, True]])


def test_a_result_in_its_scene(result):
    pose = Pose(np.float32([[1, 0, 0, 0]]), np.float32([[1, 2, 3]]), np.float32([[2, 2, 2]]))
    placed = replace(result, pose=pose).in_scene()
    np.testing.assert_allclose(placed.mesh.vertices, 2 * result.mesh.vertices + [1, 2, 3], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(placed.gaussians.xyz, 2 * result.gaussians.xyz + [1, 2, 3], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", [preset("random-tiny"), preset("full"), TINY], ids=["random-tiny", "full", "tiny"])
def test_configs_survive_json(config):
    assert PipelineConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_option_that_is_off_changes_no_digest():
    """What was made before there was the option is known by the same JSON."""
    found = preset("full").to_json()["preprocessing"]
    assert found == {"size": 518, "box_size_factor": 1.2, "padding_factor": 0.0, "clip_pointmap_beyond_scale": None}
    assert TINY.to_json()["preprocessing"]["structure_sees_crop"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slat_mean": (0.0,) * 7}, "slat_mean: expected 8 numbers"),
        ({"prune_distance": -1}, "prune_distance: expected an integer of at least 0"),
        (
            {"slat_generator": replace(preset("random-tiny").slat_generator, cond_channels=32)},
            "slat_generator.cond_channels: expected 24",
        ),
        ({"ss_decoder": replace(preset("random-tiny").ss_decoder, resolution=8)}, "tokens of ss_decoder: expected 4096"),
        (
            {"slat_decoder_gs": replace(preset("random-tiny").slat_decoder_gs, latent_channels=4)},
            "slat_decoder_gs.latent_channels: expected 8",
        ),
    ],
)
def test_models_that_do_not_fit_together(change, message):
    with pytest.raises(ValueError, match=message):
        replace(preset("random-tiny"), **change)


def test_sampling_that_makes_no_sense():
    with pytest.raises(ValueError, match="strength: expected a finite number, given inf"):
        Sampling(2, float("inf"), 1.0)
    assert flow_schedule(2, Sampling(2, 1.0, 3.0).rescale_t)[1] == np.float32(0.25)
