"""Several photos of one object in the pipeline, on the command line, and in runs that are taken up again."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam3d_tvm import cli, memory, outputs
from sam3d_tvm.notices import Notice
from sam3d_tvm.photo.pointmaps import PointMap
from sam3d_tvm.pipeline import Pipeline, Run
from sam3d_tvm.runs import generate_into
from sam3d_tvm.structure import STRUCTURE, Structure
from tests.sam3d_tvm.tiny_pipeline import disc_photo, tiny_artifacts

QUICK = {"steps": 3, "stage1_only": True}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """In place of views.png, which takes seconds."""
    monkeypatch.setattr(outputs, "overview", lambda *given, **options: Image.new("RGB", (9, 9)))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_artifacts())


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Three of uint8 [H, W, 4], each of another size, with a disc at another place."""
    found = [disc_photo()]
    for seed, (height, width) in ((1, (40, 50)), (2, (64, 48))):
        rgba = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
        rows, columns = np.ogrid[:height, :width]
        rgba[..., 3] = np.where((rows - 20 - seed) ** 2 + (columns - 22) ** 2 < 150, 255, 0)
        found.append(rgba)
    return found


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """float32 [48, 64, 3], a plane that faces the camera of the first photo."""
    rows, columns = np.mgrid[:48, :64].astype(np.float32)
    return np.stack([(32 - columns) / 32, (24 - rows) / 32, np.full_like(rows, 2)], -1)


def parts(result) -> list[bytes]:
    """What a structure consists of."""
    return [array.tobytes() for array in (result.coords, *vars(result.pose).values())]


def test_without_further_views_everything_is_as_ever(pipeline, photos):
    expected = pipeline.generate(photos[0], steps=2, formats=["ply"])
    found = pipeline.generate(photos[0], steps=2, formats=["ply"], views=[], multi_view="cycle")
    assert parts(found) == parts(expected) and found.latents.tobytes() == expected.latents.tobytes()
    assert found.made_with == expected.made_with and not {"views", "multi_view"} & expected.made_with["structure"].keys()


@pytest.mark.parametrize("mode", ["mean", "cycle"])
def test_equal_views_are_one(pipeline, photos, mode):
    first = photos[0]
    expected = pipeline.generate(first, steps=2, formats=["ply"])
    found = pipeline.generate(first, steps=2, formats=["ply"], views=[first, (first[..., :3], first[..., 3])], multi_view=mode)
    assert parts(found) == parts(expected) and found.latents.tobytes() == expected.latents.tobytes()
    assert found.made_with["structure"]["multi_view"] == mode


def test_further_views_count_and_their_order_does_not_in_a_mean(pipeline, photos):
    first, second, third = photos
    alone = pipeline.generate(first, **QUICK)
    found = pipeline.generate(first, views=[second, third], **QUICK)
    again = pipeline.generate(first, views=[third, second], **QUICK)
    assert parts(found) == parts(again) and parts(found)[0] != parts(alone)[0]
    np.testing.assert_array_equal(found.photo, alone.photo)


def test_latents_follow_all_views(pipeline, photos):
    first, second, third = photos
    begun = pipeline.generate(first, **QUICK)
    structure = Structure(begun.coords, begun.resolution, begun.pose)
    options = {"steps": 2, "formats": ["ply"], "structure": structure}
    alone, *of_three = (
        pipeline.generate(first, views=views, multi_view=mode, **options).latents.tobytes()
        for views, mode in (((), "mean"), ([second, third], "mean"), ([third, second], "mean"), ([second, third], "cycle"))
    )
    assert of_three[0] == of_three[1] and len({alone, of_three[0], of_three[2]}) == 3


def test_the_pose_is_that_in_the_first_photo(pipeline, photos, points):
    first, second, third = photos
    found = pipeline.generate(first, views=[second, third], pointmap=points, pointmap_axes="pytorch3d", **QUICK)
    assert found.in_pointmap_units
    run = Run(pipeline.artifacts)
    inputs = [run.inputs(first, None, points), *run.further_inputs([(second, None), (third, None)], "mean")]
    assert inputs[0].scale is not None and all("pointmap" not in other.structure for other in inputs[1:])
    nearer = pipeline.generate(first, views=[second, third], pointmap=points / 2, pointmap_axes="pytorch3d", **QUICK)
    np.testing.assert_allclose(found.pose.translation, 2 * nearer.pose.translation, rtol=1e-4)
    assert np.array_equal(run.photo, found.photo)
    assert run.given["pointmap"] is not None and run.given["multi_view"] == "mean"


def test_the_depth_model_looks_at_further_photos_too(pipeline, photos, points, monkeypatch):
    seen = []

    def looked_at(run, rgba, fov_x):
        seen.append((rgba.shape[:2], fov_x))
        return PointMap(np.ascontiguousarray(points.transpose(2, 0, 1)), None)

    monkeypatch.setattr(Run, "looked_at", looked_at)
    run = Run(pipeline.artifacts)
    run.inputs(photos[0], None, points)
    found = run.further_inputs([(photo, None) for photo in photos[1:]], "cycle", depth_model=True, fov=50)
    assert seen == [((40, 50), 50), ((64, 48), 50)]
    assert all(other.scale is not None and "pointmap" in other.structure for other in found)


def test_stages_are_told_of_all_views(pipeline, photos):
    told = []
    pipeline.generate(photos[0], views=photos[1:], on_progress=lambda p: told.append((p.stage, p.done, p.total)), **QUICK)
    assert [stage for stage, done, _ in told if done == 0][:4] == [
        "image", "image of view 2", "image of view 3", "condition of the structure",
    ]  # fmt: skip
    assert [done for stage, done, total in told if stage == "condition of the structure" and total == 3] == [0, 1, 2, 3]


def test_each_view_adds_its_keys_and_values_to_the_estimate(pipeline):
    one, two, three = (pipeline.memory(views=views) for views in (1, 2, 3))
    assert one == pipeline.memory()
    for name in one:
        grows = name in ("ss_generator", "slat_generator")
        assert (two[name] > one[name]) == grows and three[name] - two[name] == two[name] - one[name]


def test_the_limit_of_memory_counts_views(pipeline, photos, monkeypatch):
    estimate, counted = memory.estimate, set()
    monkeypatch.setattr(memory, "estimate", lambda *given: counted.add(given[-1]) or estimate(*given))
    pipeline.generate(photos[0], views=photos[1:], max_memory=1 << 40, **QUICK)
    assert counted == {3}


def test_runs_are_taken_up_with_the_same_views_alone(pipeline, photos, tmp_path):
    first, second, third = photos
    options = {"formats": ["ply"], "views": [second, third], "multi_view": "mean", "steps": 2}
    generate_into(pipeline, tmp_path / "whole", first, stage1_only=False, **options)
    generate_into(pipeline, tmp_path / "resumed", first, stage1_only=True, **options)
    generate_into(pipeline, tmp_path / "resumed", first, resume=True, **options)
    for name in (STRUCTURE, "splat.ply", "pose.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
    for change, message in (
        ({"views": [second]}, "resume: expected the options of the run that is there: views"),
        ({"views": []}, "resume: .* views .* given none"),
        ({"multi_view": "cycle"}, "resume: .* multi_view mean, given cycle"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_into(pipeline, tmp_path / "resumed", first, resume=True, **options | change)
    with pytest.warns(Notice) as told:
        generate_into(
            pipeline, tmp_path / "from", first, formats=["ply"], steps=2, from_structure=tmp_path / "whole" / STRUCTURE
        )
    assert [str(notice.message).split(":")[:2] for notice in told] == [
        ["structure", " its voxels and pose were made from other views"],
        ["structure", " its latents are made anew, as they are of other options"],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": "b.png"}, "views: expected a list of photos, each .* given str"),
        ({"views": disc_photo()}, "views: expected a list of photos, each .* given ndarray"),
        ({"views": [disc_photo()] * 8}, "views: expected at most 8, given 9"),
        ({"views": [(disc_photo(), None, None)]}, r"views: expected \(image, mask\) or an image, given 3 values as view 2"),
        ({"views": [disc_photo()[..., :3]]}, "mask: expected one, as image has no alpha channel"),
        ({"views": [(disc_photo(), np.zeros((4, 4), np.uint8))]}, "mask: expected"),
        ({"multi_view": "most"}, "multi_view: expected one of 'mean', 'cycle', given 'most'"),
    ],
)
def test_views_that_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.generate(disc_photo(), **QUICK, **options)


@pytest.mark.filterwarnings("ignore:several masks without")
def test_several_masks_of_a_photo_are_no_views(pipeline, photos, tmp_path):
    masks = [photos[0][..., 3]] * 2
    with pytest.raises(ValueError, match="masks: expected one with several views, as they are of one object, given 2"):
        generate_into(pipeline, tmp_path, photos[0], masks, views=photos[1:])
    with pytest.raises(ValueError, match="masks: expected one with several views"):
        pipeline.generate_scene(photos[0], masks, views=photos[1:])


# The command line.


@pytest.fixture(scope="module")
def files(photos, tmp_path_factory) -> tuple[list[Path], list[Path]]:
    """The photos, opaque, and their masks."""
    folder = tmp_path_factory.mktemp("views")
    names = [[folder / f"{name}{kind}.png" for name in "abc"] for kind in ("", "_mask")]
    for rgba, photo, mask in zip(photos, *names, strict=True):
        Image.fromarray(rgba[..., :3]).save(photo)
        Image.fromarray(rgba[..., 3]).save(mask)
    return names[0], names[1]


def generate(capsys, *argv) -> tuple[int, str]:
    quick = ["--artifacts", tiny_artifacts().folder, "--steps", 2, "--stage1-only"]
    code = cli.main([str(argument) for argument in ("generate", *argv, *quick)])
    return code, capsys.readouterr().err


def test_masks_are_taken_wherever_they_stand(capsys, pipeline, photos, files, tmp_path):
    (a, b, c), (am, bm, cm) = files
    expected = pipeline.generate(photos[0], views=photos[1:], steps=2, stage1_only=True)
    expected.save(tmp_path / "expected", [])
    for number, argv in enumerate(
        (
            [a, b, c, "--masks", am, bm, cm],
            ["--masks", am, bm, cm, "--seed", "42", a, b, c],
            [a, "--masks", am, bm, "--seed", "42", b, "--masks", cm, "--", c],
            [a, b, c, f"--masks={am}", "--masks", bm, "--multi-view", "mean", f"--masks={cm}"],
        )
    ):
        out = tmp_path / f"out{number}"
        code, err = generate(capsys, "-o", out, *argv) if "--" not in argv else generate_first(capsys, out, argv)
        assert code == 0, err
        assert Structure.load(out / STRUCTURE).coords.tobytes() == expected.coords.tobytes()
        assert (out / STRUCTURE).read_bytes() == (tmp_path / "expected" / STRUCTURE).read_bytes()


def generate_first(capsys, out, argv) -> tuple[int, str]:
    """Options before arguments, as none are read behind `--`."""
    quick = ["-o", out, "--artifacts", tiny_artifacts().folder, "--steps", 2, "--stage1-only"]
    code = cli.main([str(argument) for argument in ("generate", *quick, *argv)])
    return code, capsys.readouterr().err


def test_alpha_channels_are_masks_too(capsys, photos, files, tmp_path):
    (a, b, c), (am, *_) = files
    for rgba, name in zip(photos, "abc", strict=True):
        Image.fromarray(rgba).save(tmp_path / f"{name}.png")
    own = [tmp_path / f"{name}.png" for name in "abc"]
    ways = {"masks": [a, b, c, "--masks", am, *own[1:], "--multi-view", "cycle"], "alpha": [*own, "--multi-view", "cycle"]}
    for name, argv in ways.items():
        code, err = generate(capsys, *argv, "-o", tmp_path / name)
        assert code == 0, err
    found = [(tmp_path / name / STRUCTURE).read_bytes() for name in ways]
    assert found[0] == found[1]


def test_one_photo_with_its_mask_is_as_ever(capsys, files, tmp_path):
    (a, *_), (am, *_) = files
    assert generate(capsys, a, am, "-o", tmp_path / "one")[0] == 0
    assert generate(capsys, a, "--masks", am, "-o", tmp_path / "other")[0] == 0
    assert (tmp_path / "one" / STRUCTURE).read_bytes() == (tmp_path / "other" / STRUCTURE).read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("a b c --masks am", "masks: expected one for each of 3 photos, in their order, given 1"),
        ("a --masks am bm", "masks: expected one for each of 1 photos, .* given 2; masks of several objects in one photo go"),
        ("a b c a b c a b c --masks am bm cm am bm cm am bm cm", "views: expected at most 8, given 9"),
        ("a b --masks am bm --labels 1", "labels: expected with masks of one photo, given with --masks or --multi-view"),
        ("a b --multi-view mean", "mask: expected one, as image .*a.png.* has no alpha channel"),
        ("a b --masks am cm", "expected 50 x 40 pixels, as the image has, given 48 x 64"),
        ("a b --masks am bm --multi-view most", "multi_view: expected one of 'mean', 'cycle', given 'most'"),
        ("a b --masks", "requires an argument"),
        ("a b --masks --seed 1", "masks: expected a file behind --masks for each photo, given --seed"),
    ],
)
def test_command_lines_that_are_refused(capsys, files, tmp_path, argv, message):
    named = dict(zip(("a", "b", "c", "am", "bm", "cm"), (*files[0], *files[1]), strict=True))
    quick = ["-o", tmp_path / "out", "--artifacts", tmp_path / "none", "--stage1-only"]
    code = cli.main([str(named.get(word, word)) for word in ["generate", *quick, *argv.split()]])
    err = capsys.readouterr().err
    assert code == 2 and len(err.splitlines()) == 1 and re.search(message, err), err
    assert not (tmp_path / "out").exists()
