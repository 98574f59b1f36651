"""Occupancies: those of the project, and files that are none."""

import numpy as np
import pytest

from sam3d_tvm.occupancy import demo_occupancy, load_occupancy
from tests import DATA

SIZES = {
    "airplane_64": 2053,
    "airplane_128": 8274,
    "ant_64": 4218,
    "ant_128": 17235,
    "ant_256": 70625,
    "nut_128": 76293,
    "nut_256": 307654,
}


def check(coords, count, resolution):
    assert coords.dtype == np.int32 and coords.shape == (count, 4) and coords.flags.c_contiguous
    assert (coords[:, 0] == 0).all() and coords.min() >= 0 and coords.max() < resolution
    keys = coords.astype(np.int64) @ (0, resolution**2, resolution, 1)
    assert (np.diff(keys) > 0).all()  # sorted, and none twice


def test_demo_occupancy():
    check(demo_occupancy(), 19072, 64)


@pytest.mark.parametrize("name", SIZES)
def test_test_occupancies(name):
    check(load_occupancy(DATA / "occupancy" / f"{name}.npz"), SIZES[name], int(name.split("_")[1]))


def test_bad_files(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(ValueError, match=r"path: expected a .npz file that holds 'coords', given .*x.npz"):
        load_occupancy(path)
    for data in (b"", b"not a zip file", b"PK\x03\x04broken"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"path: expected a .npz file"):
            load_occupancy(path)
    np.savez(path, other=np.zeros((2, 3), np.int16))
    with pytest.raises(ValueError, match=r"path: .*coords"):
        load_occupancy(path)
    np.savez(path, coords=np.array([None, {}]))  # pickled, which is never loaded
    with pytest.raises(ValueError, match=r"path: .*pickle"):
        load_occupancy(path)
    with open(path, "wb") as file:
        np.save(file, np.zeros((2, 3), np.int16))  # a lone array, no archive
    with pytest.raises(ValueError, match=r"path: expected a .npz file"):
        load_occupancy(path)


@pytest.mark.parametrize(
    ("coords", "says"),
    [
        (np.zeros((2, 3)), r"coords: expected integers \[N, 3\], given float64 \[2, 3\]"),
        (np.zeros((2, 4), np.int32), r"coords: expected integers \[N, 3\], given int32 \[2, 4\]"),
        (np.array([[0, 0, 2**31]]), "coords: expected values within int32, given 0 to 2147483648"),
    ],
)
def test_bad_coords(tmp_path, coords, says):
    np.savez(tmp_path / "x.npz", coords=coords)
    with pytest.raises(ValueError, match=says):
        load_occupancy(tmp_path / "x.npz")


def test_no_rows(tmp_path):
    np.savez(tmp_path / "x.npz", coords=np.zeros((0, 3), np.int16))
    assert load_occupancy(tmp_path / "x.npz").shape == (0, 4)
