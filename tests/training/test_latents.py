"""Structured latents, and what their decoders and generator are trained on: a sphere, whose every answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sam3d_tvm.mesh.flexicubes import extract_mesh  # noqa: E402
from sam3d_tvm.models.gaussian_decoder.config import PRESETS  # noqa: E402
from sam3d_tvm.pose import quaternion_to_matrix  # noqa: E402
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, Gaussians, offset_perturbation  # noqa: E402
from training import gaussian_decoder, latents, mesh_decoder, slat_generator  # noqa: E402
from training.dataset import GRID, OCCUPIED_BELOW  # noqa: E402
from training.shapes import MATERIALS  # noqa: E402

RADIUS = 0.2
MIDDLE = torch.tensor([0.1, 0.05, -0.1])


class Sphere:
    """Two materials, one above the other."""

    def distance(self, points):
        return (points - MIDDLE).norm(dim=1) - RADIUS

    def normals(self, points):
        return torch.nn.functional.normalize(points - MIDDLE, dim=1)

    def materials(self, points):
        return (points[:, 2] > MIDDLE[2]).long()


PALETTE = torch.rand(MATERIALS, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def voxels():
    return latents.voxels_of(Sphere())


def test_voxels_are_a_shell_around_the_surface(voxels):
    d = voxels.distances.numpy()
    assert len(d) > 1000 and (d < OCCUPIED_BELOW).all()
    assert d.min() > OCCUPIED_BELOW - 3**0.5  # what is deeper has no gap among its neighbours
    points = latents.middles(voxels.coords, GRID)
    np.testing.assert_allclose(d, ((points - MIDDLE).norm(dim=1) - RADIUS).numpy() * GRID, atol=1e-4)


def test_what_is_encoded_is_decoded(voxels):
    found = latents.decode(voxels.latents(PALETTE))
    # A sphere is free of itself: the colours of its materials are not darkened.
    np.testing.assert_allclose(found.colours.numpy(), PALETTE[voxels.materials].numpy(), atol=1e-5)
    np.testing.assert_allclose(found.normals.numpy(), voxels.normals.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.distances.numpy(), voxels.distances.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match=r"latents: expected \[N, 8\], given \[3, 7\]"):
        latents.decode(torch.zeros(3, 7))


def test_the_mirror_image(voxels):
    """Its voxels are those of the object with x turned around, and all else is the same."""
    mirrored = latents.voxels_of(Sphere(), mirrored=True)
    turned = torch.tensor([0, GRID - 1, 0, 0]) + mirrored.coords * torch.tensor([1, -1, 1, 1])
    order = np.lexsort(turned.numpy().T[::-1])
    assert torch.equal(turned[order].int(), voxels.coords)
    found, own = mirrored.latents(PALETTE)[order], voxels.latents(PALETTE).clone()
    own[:, 3] *= -1
    np.testing.assert_allclose(found.numpy(), own.numpy(), atol=2e-4)


def test_gaussians_lie_where_they_should(voxels):
    """Features that are the targets make discs of one size, below the surface by `INSET`, that face outwards."""
    shape = PRESETS["tiny"].representation
    described = latents.decode(voxels.latents(PALETTE))
    wanted = gaussian_decoder.targets(described, shape)
    start = torch.from_numpy(offset_perturbation(shape))
    raw = {name: value / shape.lr[name] for name, value in wanted.items()}
    raw["_xyz"] = torch.atanh(wanted["_xyz"] / (shape.voxel_size / 2)) - start
    feats = torch.cat([raw[name].flatten(1) for name in shape.layout], 1)
    found = gaussian_decoder.attributes(feats, shape)
    for name in wanted:
        np.testing.assert_allclose(found[name].numpy(), wanted[name].numpy(), atol=1e-4, err_msg=name)

    made = Gaussians.from_features(voxels.coords.numpy(), feats.numpy(), GRID, shape, offset_perturbation(shape))
    np.testing.assert_allclose(
        np.unique(made.scaling.round(5)), np.unique(np.float32(gaussian_decoder.DEVIATIONS) / GRID), atol=2e-5
    )
    np.testing.assert_allclose(made.opacity, gaussian_decoder.OPACITY, atol=1e-5)
    colours = made.features_dc * CONSTANT_HARMONIC + 0.5
    np.testing.assert_allclose(colours, described.colours.repeat_interleave(shape.num_gaussians, 0).numpy(), atol=1e-5)
    most = gaussian_decoder.LARGEST_OFFSET * shape.voxel_size / 2
    free = (wanted["_xyz"].abs() < most - 1e-4).all(2).flatten().numpy()  # not as far out as they may be
    assert free.mean() > 0.4
    distances = Sphere().distance(torch.from_numpy(made.xyz)).numpy() * GRID
    # The surface is taken for flat around a voxel: it is off by a^2 / (2 r) at a distance a, which is below 1.3.
    assert np.abs(distances[free] + gaussian_decoder.INSET).max() < 1.3**2 / (2 * RADIUS * GRID)
    thin = quaternion_to_matrix(made.rotation)[:, :, 2]
    normals = voxels.normals.repeat_interleave(shape.num_gaussians, 0).numpy()
    np.testing.assert_allclose((thin * normals).sum(1), 1, atol=1e-4)


def test_a_mesh_of_the_corners_is_the_surface(voxels):
    """Through the mesh extraction: signs, units, the order of corners, colours."""
    side = 4 * GRID
    steps = torch.cartesian_prod(*[torch.arange(4)] * 3)
    cells = torch.nn.functional.pad((voxels.coords[:, None, 1:] * 4 + steps).flatten(0, 1), (1, 0)).int()  # [M, 4]
    distances, near, values = mesh_decoder.corner_targets(Sphere(), False, PALETTE, cells, side)
    feats = torch.zeros(len(cells), 101)
    feats[:, mesh_decoder.SDF] = (distances / mesh_decoder.CUT).clamp(-1, 1) + 1 / side
    colours = torch.zeros(len(cells), 8, 6)
    colours[near] = values.clamp(0.001, 0.999).logit()
    feats[:, mesh_decoder.COLOR] = colours.flatten(1)
    mesh = extract_mesh(cells.numpy(), feats.numpy(), side, True)
    assert mesh.is_watertight
    off = Sphere().distance(torch.from_numpy(mesh.vertices)).numpy() * side
    outer = off > -1  # where the voxels end inside there is a surface too
    assert outer.mean() > 0.4
    # In some places the surface lies in voxels that are not occupied; corners there say no more than that they are outside.
    assert (np.abs(off[outer]) < 0.25).mean() > 0.97
    points = torch.from_numpy(mesh.vertices[outer])
    away = np.abs(points[:, 2].numpy() - MIDDLE[2].item()) * side > 1.5  # from where the materials meet
    found, colours = mesh.vertex_attributes[outer][away], PALETTE[Sphere().materials(points)[away]].numpy()
    assert (np.abs(found[:, :3] - colours) < 0.01).all(1).mean() > 0.97
    assert (np.abs(found[:, 3:] * 2 - 1 - Sphere().normals(points)[away].numpy()) < 0.05).all(1).mean() > 0.97


def test_objects_of_another_seed_are_refused(monkeypatch):
    grid = np.zeros((1, GRID, GRID, GRID), bool)
    grid[0, :8, :8, :8] = True  # a corner, where no object is
    data = SimpleNamespace(arrays={"index": np.array([0])}, occupied=lambda rows: grid)
    with pytest.raises(ValueError, match="seed: expected the one that the data was made from, given 7"):
        latents.Objects(data, 7).get(0)


def test_most_times_are_early():
    random = np.random.default_rng(0)
    times = np.array([slat_generator.sample_time(random) for _ in range(4000)])
    share = slat_generator.AT_START
    assert abs((times == 0).mean() - share) < 4 * (share * (1 - share) / len(times)) ** 0.5  # four deviations of a share
    assert times.max() < 1 and (times > 0.5).any()


def test_a_slab_is_a_part_between_two_planes(voxels):
    kept = slat_generator.slab(voxels.coords, 0.4, np.random.default_rng(1))
    assert abs(kept.float().mean().item() - 0.4) < 2 / len(kept)
