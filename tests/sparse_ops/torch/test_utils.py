"""Points into voxels, against spconv where it is installed and against what is said of it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sparse_ops.torch.spconv.utils import PointToVoxel, gather_features_by_pc_voxel_id  # noqa: E402
from tests.tolerance import assert_close  # noqa: E402


def example(seed: int) -> tuple[tuple, torch.Tensor]:
    """Arguments of a PointToVoxel of one to four axes, and a cloud of which some points lie outside."""
    rng = np.random.default_rng(seed)
    axes = 1 + seed % 4
    sizes, low = rng.uniform(0.05, 0.35, axes).tolist(), rng.uniform(-1, 0, axes).tolist()
    high = rng.uniform(0.4, 2.4, axes).tolist()
    columns = axes + seed % 3
    arguments = (sizes, low + high, columns, (5, 50, 10000)[seed % 3], (1, 3, 10)[seed // 3 % 3])
    points = rng.uniform(-1, 2, ((0, 1, 200, 1500)[seed // 2 % 4], columns))
    return arguments, torch.from_numpy(points.astype("float32"))


@pytest.mark.parametrize("seed", range(24))
def test_voxels_are_those_of_spconv(seed):
    theirs = pytest.importorskip("spconv.pytorch.utils")
    arguments, points = example(seed)
    mine, real = PointToVoxel(*arguments), theirs.PointToVoxel(*arguments)
    for name in ("ndim", "vsize", "grid_size", "grid_stride", "coors_range", "num_point_features", "max_num_voxels"):
        assert getattr(mine, name) == getattr(real, name), name
    for cloud, clear in ((points, True), (points.flip(0), False), (points[:, :].contiguous(), True)):
        results = zip(mine.generate_voxel_with_id(cloud, clear), real.generate_voxel_with_id(cloud, clear), strict=True)
        for ours, expected in results:
            assert ours.dtype == expected.dtype and torch.equal(ours, expected)
    ids = mine.generate_voxel_with_id(points)[3]
    values = torch.arange(40000.0).reshape(-1, 2)
    for invalid in (0, -7.5):
        expected = theirs.gather_features_by_pc_voxel_id(values, ids, invalid)
        assert torch.equal(gather_features_by_pc_voxel_id(values, ids, invalid), expected)
    assert len(mine(points)) == 3


def test_empty_places_have_the_mean_of_the_voxel():
    arguments, points = example(15)
    voxels, _, counts, _ = PointToVoxel(*arguments).generate_voxel_with_id(points)
    means = PointToVoxel(*arguments)(points, empty_mean=True)[0]
    assert (counts < voxels.shape[1]).any() and len(counts) > 3
    for voxel, filled, count in zip(voxels, means, counts.tolist(), strict=True):
        assert torch.equal(filled[:count], voxel[:count])
        assert_close(filled[count:].numpy(), voxel[:count].mean(0).expand_as(filled[count:]).numpy(), count)


def test_points_beyond_the_room_have_a_number_and_no_place():
    points = torch.tensor([[0.5], [1.5], [0.6], [0.7], [2.5], [9.0], [float("nan")]])
    voxels, indices, counts, ids = PointToVoxel([1.0], [0, 4], 1, 2, 2).generate_voxel_with_id(points)
    assert ids.tolist() == [0, 1, 0, 0, -1, -1, -1] and counts.tolist() == [2, 1] and indices.tolist() == [[0], [1]]
    assert voxels[0, :, 0].tolist() == pytest.approx([0.5, 0.6]) and voxels[1, 1, 0] == 0
    values = torch.tensor([[10, 11], [20, 21]])
    assert gather_features_by_pc_voxel_id(values, ids, -1)[:5].tolist() == [[10, 11], [20, 21], [10, 11], [10, 11], [-1, -1]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.1, 0], [0, 0, 1, 1], 3, 5, 5), "vsize_xyz: expected sizes above 0"),
        (([0.1, 0.1], [0, 0, 1], 3, 5, 5), "coors_range_xyz: expected 2 smallest"),
        (([0.1, 0.1], [0, 0, 1, 0], 3, 5, 5), "coors_range_xyz: expected 2 smallest"),
        (([0.1, 0.1], [0, 0, 1, 1], 1, 5, 5), "num_point_features: expected an int of at least 2, given 1"),
        (([0.1, 0.1], [0, 0, 1, 1], 3, 0, 5), "max_num_voxels: expected an int of at least 1"),
        (([0.1, 0.1], [0, 0, 1, 1], 3, 5, 5, torch.device("meta")), "device: expected a CPU, given meta"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        PointToVoxel(*arguments)


def test_a_cloud_of_other_columns():
    with pytest.raises(ValueError, match=r"pc: expected \[N, 3\], given float32 \[4, 2\]"):
        PointToVoxel([0.1, 0.1], [0, 0, 1, 1], 3, 5, 5)(torch.zeros(4, 2))
