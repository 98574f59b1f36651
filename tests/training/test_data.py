"""Procedural objects, their photos and the files that training reads."""

import numpy as np
import pytest
import torch

from sam3d_tvm.photo.preprocess import preprocess
from sam3d_tvm.pose import decode_pose, denormalise_rotation
from sam3d_tvm.splat.cameras import orbit
from training.dataset import GRID, PHOTOS, SIZE, Dataset, field_of, fit_latent, make_file
from training.photos import held_out, look_at, normalised_rotation, rotation_6d, sample_camera, sample_views, take_photo
from training.render import pixel_rays, render, trace
from training.shapes import EXTENT, KINDS, MATERIALS, Box, Object, sample_object
from training.structure_latent import StructureLatent, cut_field


def cube(half: float = 0.3) -> Object:
    """A cube that `Object` scales to the whole of EXTENT."""
    return Object("box", [Box((half, half, half), 0.0, 0.0, False)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_distance_field_inside_the_cube(kind):
    """Near the surface a distance grows as one goes along the normal, but at corners, and where rings, which are measured to
    first order, are strongly bent."""
    random = np.random.default_rng(3)
    thing = Object(kind, KINDS[kind][1](random, lambda low, high: float(random.uniform(low, high))))
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    distance = thing.distance(points)
    assert distance.isfinite().all() and (distance < 0).any() and (distance > 0).any()
    beyond = (points.abs() > EXTENT / 2 + 0.02).any(1)
    assert (distance[beyond] > 0).all()
    materials = thing.materials(points)
    assert materials.dtype == torch.int64 and int(materials.min()) >= 0 and int(materials.max()) < MATERIALS
    near = points[distance.abs() < 0.05]
    normals = thing.normals(near)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(len(near)), rtol=0, atol=1e-5)
    growth = (thing.distance(near + 0.01 * normals) - thing.distance(near)) / 0.01
    assert ((growth > 0.75) & (growth < 1.25)).float().mean() > 0.8


def test_a_seed_gives_one_object():
    first, again, other = (sample_object(np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(field_of(first), field_of(again))
    assert (field_of(first) != field_of(other)).any()


def test_rays_meet_a_cube_where_it_is():
    camera = orbit(1, 0.0, radius=2.0)[0]
    seen = trace(cube(), camera, pixel_rays(camera, np.full(2, -0.05), np.full(2, 0.05), 4))
    assert seen.hit.all()
    np.testing.assert_allclose(seen.depth, 2 - EXTENT / 2, atol=3e-3)  # the tracer stops at 0.0015
    np.testing.assert_allclose(seen.normals, np.tile([0, -1, 0], (16, 1)), atol=1e-3)
    assert (seen.openness == 1).all()


def test_a_picture_covers_what_the_object_covers():
    palette = np.full((MATERIALS, 3), 0.5, np.float32)
    camera = orbit(1, 0.0, radius=2.0)[0]
    picture = render(cube(), palette, camera, 64)
    side = 64 * camera.focal * EXTENT / (2 - EXTENT / 2)  # of the front, in pixels
    assert abs((picture[..., 3] / 255.0).sum() - side**2) < 2 * side  # half a pixel along the edge
    assert picture[32, 32].tolist() == [128, 128, 128, 255] and picture[0, 0].tolist() == [255, 255, 255, 0]


def test_the_rotation_of_a_photo_is_the_pose_of_its_camera():
    camera = sample_camera(np.random.default_rng(4))
    latents = {"6drotation_normalized": normalised_rotation(rotation_6d(camera))[None, None]}
    latents |= {name: np.zeros((1, 1, 3), np.float32) for name in ("translation", "scale")}
    points = np.random.default_rng(5).uniform(-0.5, 0.5, (6, 3))
    seen = camera.view(points) - camera.view(np.zeros((1, 3)))  # right, down, forward
    posed = points @ decode_pose(latents).rotation_matrix[0]
    np.testing.assert_allclose(posed, seen * [-1, -1, 1], atol=1e-5)


def test_held_out_photos_are_the_same_every_time():
    first, again = held_out(3), held_out(3)
    np.testing.assert_array_equal(first.rgba, again.rgba)
    np.testing.assert_array_equal(first.palette, again.palette)
    assert (first.rgba[..., 3] > 0).any() and first.pointmap is None
    assert held_out(3, pointmap=True).pointmap.shape == (3, *first.rgba.shape[:2])
    with pytest.raises(ValueError, match="index: expected 0 or more, given -1"):
        held_out(-1)


def test_the_point_map_is_the_surface_that_the_photo_shows():
    thing, (view,) = sample_views(7, 3, 1)
    photo = take_photo(np.random.default_rng(8), view, True)
    inside = photo.rgba[..., 3] > 0
    rows, columns = np.nonzero(inside)
    points = photo.pointmap[:, rows, columns].T * [-1, -1, 1] @ view.camera.rotation + view.camera.position
    # what a depth model errs by, taken from how far the camera is
    away = np.linalg.norm(view.camera.position)
    assert np.median(np.abs(thing.distance(torch.tensor(points, dtype=torch.float32)))) < 0.1 * away
    assert np.isfinite(points).all()


def test_components_give_back_what_they_keep():
    fields = np.stack([cut_field(field_of(sample_object(np.random.default_rng(i)))) for i in range(3)])
    latent = StructureLatent.fit(fields)
    codes = latent.encode(fields)
    assert codes.shape == (3, 64, 48)
    np.testing.assert_allclose(latent.encode(latent.decode(codes)), codes, atol=2e-4)
    assert ((latent.decode(codes) < 0) == (fields < 0)).mean() > 0.97


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    lines = []
    make_file(folder / "000.npz", 5, 0, 3, fit_latent(5, 3), lines.append)
    assert lines[0].startswith("000.npz: ")
    return Dataset(folder)


def test_batches(data):
    batch = data.sample(np.random.default_rng(1), 8)
    assert batch.image.shape == (8, 3, SIZE, SIZE) and batch.mask.shape == (8, 1, SIZE, SIZE)
    assert float(batch.image.min()) >= 0 and float(batch.image.max()) <= 1
    assert batch.latent.shape == (8, 64, 48)
    assert batch.pointmap[~batch.pointed].isnan().all()
    last = data.batch(np.zeros(1, int), np.array([PHOTOS - 1]), np.zeros(1))
    assert last.pointed.all() and last.pointmap.isfinite().any()
    assert data.occupied(np.arange(2)).shape == (2, GRID, GRID, GRID)


def test_what_is_mirrored_is_what_the_mirror_shows(data):
    """The mirrored photo has the camera that sees the mirrored object in it."""
    rows, photos = np.array([1]), np.array([PHOTOS - 1])
    plain, mirrored = (data.batch(rows, photos, np.array([flip])) for flip in (0, 1))
    np.testing.assert_array_equal(mirrored.image, plain.image.flip(-1))
    np.testing.assert_array_equal(mirrored.mask, plain.mask.flip(-1))
    left, up = np.split(denormalise_rotation(plain.rotation.numpy())[0], 2)
    mirrored_left, mirrored_up = np.split(denormalise_rotation(mirrored.rotation.numpy())[0], 2)
    points = np.random.default_rng(2).uniform(-0.5, 0.5, (5, 3))
    turned = points * [-1, 1, 1]
    np.testing.assert_allclose(turned @ mirrored_left, -(points @ left), atol=1e-5)
    np.testing.assert_allclose(turned @ mirrored_up, points @ up, atol=1e-5)
    assert mirrored.placement[0, 0] == -plain.placement[0, 0]
    np.testing.assert_array_equal(mirrored.pointmap.nan_to_num()[0, 2], plain.pointmap.nan_to_num()[0, 2].flip(-1))


def test_inputs_are_those_of_the_pipeline(data):
    """A photo of the file is what `preprocess` makes of it."""
    index = int(data.arrays["index"][0])
    _, views = sample_views(5, index, 2)
    photo = take_photo(np.random.default_rng([5, index, 0]), views[0], False)
    inputs = preprocess(photo.rgba, None, SIZE)
    np.testing.assert_allclose(
        data.batch(np.zeros(1, int), np.zeros(1, int), np.zeros(1)).image, inputs.slat["image"], atol=0.5 / 255 + 1e-6
    )


def test_a_look_at_the_edge_of_a_plate_is_passed_over():
    flat = Object("plate", [Box((0.5, 0.5, 0.005), 0.0, 0.0, False)])
    assert look_at(flat, orbit(1, 0.0, radius=3.0)[0]) is None


def test_a_folder_without_data(tmp_path):
    with pytest.raises(ValueError, match="expected files of objects, given none"):
        Dataset(tmp_path)
