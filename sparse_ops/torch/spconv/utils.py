"""Point clouds into voxels, and values of voxels back to their points."""

import torch

from ...eager.arrays import describe
from ...op.numbers import as_int, shown


class PointToVoxel:
    """Points into voxels of a grid, at most `max_num_voxels` of them, each of at most `max_num_points_per_voxel` points.

    vsize_xyz: the size of a voxel along x, y, z (or along fewer axes); coors_range_xyz: smallest then largest coordinates;
    num_point_features: columns of a cloud, of which the first are the coordinates. `vsize`, `grid_size` and `coors_range` are
    along z, y, x, as the indices of voxels are. An instance is for one thread at a time, as spconv's: it keeps its voxels.

    Raises ValueError naming the argument for sizes that are not above 0, ranges that do not go up, and devices but a CPU.
    """

    def __init__(
        self,
        vsize_xyz: list[float],
        coors_range_xyz: list[float],
        num_point_features: int,
        max_num_voxels: int,
        max_num_points_per_voxel: int,
        device=torch.device("cpu:0"),  # noqa: B008  spconv's default
    ):
        self.ndim = len(vsize_xyz)
        self.device = torch.device(device)
        if self.device.type != "cpu":
            raise ValueError(f"device: expected a CPU, given {device}")
        if not self.ndim or not all(size > 0 for size in vsize_xyz):
            raise ValueError(f"vsize_xyz: expected sizes above 0, given {shown(vsize_xyz)}")
        low, high = list(coors_range_xyz)[: self.ndim], list(coors_range_xyz)[self.ndim :]
        if len(high) != self.ndim or not all(a < b for a, b in zip(low, high, strict=True)):
            wanted = f"{self.ndim} smallest and then {self.ndim} larger coordinates"
            raise ValueError(f"coors_range_xyz: expected {wanted}, given {shown(coors_range_xyz)}")
        for argument, value, least in (
            ("num_point_features", num_point_features, self.ndim),
            ("max_num_voxels", max_num_voxels, 1),
            ("max_num_points_per_voxel", max_num_points_per_voxel, 1),
        ):
            if as_int(value) is None or as_int(value) < least:
                raise ValueError(f"{argument}: expected an int of at least {least}, given {shown(value)}")
        self.num_point_features = as_int(num_point_features)
        self.max_num_voxels = as_int(max_num_voxels)
        self.max_num_points_per_voxel = as_int(max_num_points_per_voxel)
        size, low, high = (torch.tensor(list(values)[::-1], dtype=torch.float32) for values in (vsize_xyz, low, high))
        self.vsize = size.tolist()
        self.grid_size = ((high - low) / size).round().int().tolist()
        self.grid_stride = [1] * self.ndim
        for axis in reversed(range(self.ndim - 1)):
            self.grid_stride[axis] = self.grid_stride[axis + 1] * self.grid_size[axis + 1]
        self.coors_range = low.tolist() + high.tolist()
        self.voxels = torch.zeros(self.max_num_voxels, self.max_num_points_per_voxel, self.num_point_features)
        self.indices = torch.zeros(self.max_num_voxels, self.ndim, dtype=torch.int32)
        self.num_per_voxel = torch.zeros(self.max_num_voxels, dtype=torch.int32)

    def __call__(self, pc: torch.Tensor, clear_voxels: bool = True, empty_mean: bool = False):
        """`generate_voxel_with_id` without the numbers of voxels."""
        return self.generate_voxel_with_id(pc, clear_voxels, empty_mean)[:3]

    def generate_voxel_with_id(self, pc: torch.Tensor, clear_voxels: bool = True, empty_mean: bool = False):
        """pc [N, num_point_features] -> voxels float32 [V, points, features], indices int32 [V, axes] along z, y, x, the
        number of points in each int32 [V], and the voxel of every point int64 [N], -1 for one that is in none.

        Voxels come in the order of their first points, points in their order. A point for which its voxel has no room counts
        for no voxel's values, but has its number. `empty_mean`: the mean of a voxel's points in the places that have none.
        `clear_voxels=False`: these places keep what an earlier call left there.
        """
        if not isinstance(pc, torch.Tensor) or pc.ndim != 2 or pc.shape[1] != self.num_point_features:
            raise ValueError(f"pc: expected [N, {self.num_point_features}], given {describe(pc)}")
        if pc.device.type != "cpu":
            raise ValueError(f"pc: expected a tensor on a CPU, given {describe(pc)} on {pc.device}")
        with torch.no_grad():
            points = pc.float()
            place = self._cells(points)  # int64 [N], -1 outside of the grid
            inside = (place >= 0).nonzero()[:, 0]
            cells, of_point = place[inside].unique(return_inverse=True)
            # Voxels are numbered by their first points: the smallest number of a point in each.
            first = torch.full((len(cells),), len(points)).scatter_reduce_(0, of_point, inside, "amin")
            order = first.argsort()
            number = torch.empty_like(order)
            number[order] = torch.arange(len(order))
            voxel = number[of_point]  # of every point inside
            kept = voxel < self.max_num_voxels
            inside, voxel = inside[kept], voxel[kept]
            count = min(len(cells), self.max_num_voxels)
            ids = torch.full((len(points),), -1, dtype=torch.int64)
            ids[inside] = voxel

            by_voxel = voxel.argsort(stable=True)
            lengths = voxel.bincount(minlength=count)
            slot = torch.arange(len(voxel)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
            fits = slot < self.max_num_points_per_voxel
            taken, target, slot = inside[by_voxel][fits], voxel[by_voxel][fits], slot[fits]
            if clear_voxels:
                self.voxels.zero_()
            self.voxels[target, slot] = points[taken]
            self.num_per_voxel[:count] = lengths.clamp(max=self.max_num_points_per_voxel).int()
            cells = cells[order[:count]]
            for axis, (stride, size) in enumerate(zip(self.grid_stride, self.grid_size, strict=True)):
                self.indices[:count, axis] = (cells // stride % size).int()
            voxels, filled = self.voxels[:count], self.num_per_voxel[:count]
            if empty_mean:
                _fill_with_means(voxels, filled)
            return voxels.clone(), self.indices[:count].clone(), filled.clone(), ids

    def _cells(self, points: torch.Tensor) -> torch.Tensor:
        """The number of the grid's cell that each point lies in, int64 [N], -1 for none."""
        low, size = (torch.tensor(values) for values in (self.coors_range[: self.ndim], self.vsize))
        axes = ((points[:, : self.ndim].flip(1) - low) / size).floor()  # [N, axes] along z, y, x
        inside = ((axes >= 0) & (axes < torch.tensor(self.grid_size))).all(1)
        cells = (axes.nan_to_num(0.0).long() * torch.tensor(self.grid_stride)).sum(1)
        return torch.where(inside, cells, -1)


def _fill_with_means(voxels: torch.Tensor, filled: torch.Tensor) -> None:
    """Put the mean of a voxel's points into its other places. Voxels [V, points, features], filled [V]."""
    taken = (torch.arange(voxels.shape[1]) < filled[:, None])[..., None]  # [V, points, 1]
    means = torch.zeros(voxels.shape[0], voxels.shape[2])
    for place in range(voxels.shape[1]):
        means += torch.where(taken[:, place], voxels[:, place], 0.0)
    means /= filled[:, None]
    voxels.copy_(torch.where(taken, voxels, means[:, None]))


def gather_features_by_pc_voxel_id(
    seg_res_features: torch.Tensor, pc_voxel_id: torch.Tensor, invalid_value: int | float = 0
) -> torch.Tensor:
    """The row of seg_res_features [V, ...] of every point's voxel: [N, ...]; `invalid_value` for a point in none (-1)."""
    ids = pc_voxel_id.to(seg_res_features.device)
    out = seg_res_features.new_full((ids.shape[0], *seg_res_features.shape[1:]), invalid_value)
    valid = (ids != -1).nonzero()[:, 0]
    out[valid] = seg_res_features[ids[valid]]
    return out
