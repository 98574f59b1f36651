"""Gaussians: what features mean (against upstream's results), files and what may be wrong with them, objects in a scene."""

import json
from dataclasses import replace

import numpy as np
import pytest
from plyfile import PlyData, PlyElement
from safetensors import safe_open
from scipy.spatial.transform import Rotation

from sam3d_tvm.pose import Pose
from sam3d_tvm.splat import gaussians as module
from sam3d_tvm.splat.files import load_splat, ply, save_splat
from sam3d_tvm.splat.gaussians import (
    COLUMNS,
    Gaussians,
    Representation,
    offset_perturbation,
    raw_attributes,
)
from tests import DATA
from tests.tolerance import assert_close

SMALL = Representation(num_gaussians=4)
EXACT, FEW, SEVERAL = 1, 4, 16  # rounded operations behind a value: one, an activation, a covariance


@pytest.fixture(scope="module")
def golden():
    with safe_open(DATA / "golden/slat_decoder_gs.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("state.")}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])


@pytest.fixture(scope="module")
def decoded(golden):
    tensors, config = golden
    representation = Representation.from_dict(config["representation_config"])
    arguments = (tensors["in.coords"], tensors["mid.out_feats"], config["resolution"], representation)
    arguments = (*arguments, tensors["mid.offset_perturbation"])
    return raw_attributes(*arguments), Gaussians.from_features(*arguments)


def some(count, seed=0):
    random = np.random.default_rng(seed)
    return Gaussians(**{name: random.normal(size=(count, *rest)) for name, rest in module.SHAPES.items()})


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in module.SHAPES)


def pose(rotation=(1, 0, 0, 0), translation=(0, 0, 0), scale=(1, 1, 1)):
    unit = np.float32(rotation) / np.linalg.norm(rotation)
    return Pose(unit[None].astype(np.float32), np.float32([translation]), np.float32([scale]))


def test_layout_and_perturbation_are_upstreams(golden):
    tensors, config = golden
    representation = Representation.from_dict(config["representation_config"])
    assert {name: [part.start, part.stop] for name, part in representation.layout.items()} == {
        name: part["range"] for name, part in config["layout"].items()
    }
    assert representation.channels == tensors["mid.out_feats"].shape[1]
    assert_close(offset_perturbation(representation), tensors["mid.offset_perturbation"], EXACT)
    assert not offset_perturbation(replace(representation, perturb_offset=False)).any()


@pytest.mark.parametrize("name", ["_xyz", "_features_dc", "_scaling", "_rotation", "_opacity"])
def test_raw_attributes_are_upstreams(golden, decoded, name):
    assert_close(decoded[0][name], golden[0]["out." + name], FEW, name=name)


@pytest.mark.parametrize(
    "name, attribute, depth",
    [
        ("out.get_xyz", "xyz", FEW),
        ("out.get_scaling", "scaling", FEW),
        ("out.get_rotation", "rotation", FEW),
        ("out.get_opacity", "opacity", FEW),
        ("out.get_features", "features_dc", EXACT),
        ("out.get_covariance", "covariance", SEVERAL),
    ],
)
def test_activated_attributes_are_upstreams(golden, decoded, name, attribute, depth):
    expected = golden[0][name]
    assert_close(getattr(decoded[1], attribute).reshape(expected.shape), expected, depth, name=name)


def test_columns_are_upstreams(golden, decoded):
    tensors, config = golden
    assert list(COLUMNS) == config["ply_columns"]
    opacity = tensors["out.get_opacity"]
    for column, name in enumerate(COLUMNS):
        # Upstream takes the logit of a rounded opacity, which an opacity near 1 says little about.
        depth = FEW if name != "opacity" else FEW / (1 - opacity.max()) ** 2
        assert_close(decoded[1].columns()[:, column], tensors["out.ply"][:, column], depth, name=name)


def test_a_file_holds_the_columns_and_is_read_back_to_the_bit(tmp_path, decoded):
    gaussians = decoded[1]
    save_splat(tmp_path / "a.ply", gaussians)
    save_splat(tmp_path / "b.ply", gaussians)
    data = (tmp_path / "a.ply").read_bytes()
    assert data == (tmp_path / "b.ply").read_bytes()
    assert data.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 3840\nproperty float x\n")
    assert data[-gaussians.columns().nbytes :] == gaussians.columns().astype("<f4").tobytes()
    (vertex,) = PlyData.read(tmp_path / "a.ply").elements
    assert vertex.name == "vertex" and [p.name for p in vertex.properties] == list(COLUMNS)
    assert same(load_splat(tmp_path / "a.ply"), gaussians)


def test_no_gaussians_are_a_file_too(tmp_path):
    save_splat(tmp_path / "none.ply", Gaussians.merged([]))
    assert len(load_splat(tmp_path / "none.ply")) == 0
    coords, feats = np.zeros((0, 4), np.int32), np.zeros((0, SMALL.channels), np.float32)
    empty = Gaussians.from_features(coords, feats, 64, SMALL, offset_perturbation(SMALL))
    assert same(empty, Gaussians.merged([])) and empty.columns().shape == (0, 17)
    assert [len(getattr(empty, name)) for name in ("scaling", "opacity", "rotation", "covariance", "colors")] == [0] * 5
    assert np.array_equal(empty.bounds, np.zeros((2, 3)))


def write_ply(path, columns, rows=2, text=False, order="<", element="vertex", dtype="f4", values=None):
    table = np.ones(rows, [(name, dtype) for name in columns])
    for name, value in (values or {}).items():
        table[name] = value
    PlyData([PlyElement.describe(table, element)], text=text, byte_order=order).write(path)


@pytest.mark.parametrize("text, order, dtype", [(True, "=", "f4"), (False, ">", "f4"), (False, "<", "f8")])
def test_files_of_other_programs_are_read(tmp_path, text, order, dtype):
    """In another format and order of columns, without normals, with further harmonics and an attribute of its own."""
    columns = [*reversed([name for name in COLUMNS if name not in ply.NORMALS]), "f_rest_0", "f_rest_1", "quality"]
    write_ply(tmp_path / "a.ply", columns, text=text, order=order, dtype=dtype, values={"x": [1.5, 2.5], "rot_3": [-1, 3]})
    gaussians = load_splat(tmp_path / "a.ply")
    assert gaussians.xyz.tolist() == [[1.5, 1, 1], [2.5, 1, 1]]
    assert gaussians.quaternion.tolist() == [[1, 1, 1, -1], [1, 1, 1, 3]]
    assert gaussians.opacity_logit.dtype == np.float32


@pytest.mark.parametrize(
    "message, options",
    [
        ("without rot_2, rot_3", {"columns": COLUMNS[:-2]}),
        ("with an element 'vertex'", {"columns": COLUMNS, "element": "face"}),
        ("xyz: expected finite values, given 1 that are not", {"columns": COLUMNS, "values": {"y": [1, np.nan]}}),
        ("opacity_logit: expected finite", {"columns": COLUMNS, "values": {"opacity": np.inf}}),
        ("features_dc: expected finite", {"columns": COLUMNS, "dtype": "f8", "values": {"f_dc_0": 1e300}}),
        ("log_scaling: expected values up to 40, given 41", {"columns": COLUMNS, "values": {"scale_1": 41}}),
        ("quaternion: expected lengths above 0", {"columns": COLUMNS, "values": {f"rot_{i}": 0 for i in range(4)}}),
    ],
)
def test_a_file_that_holds_no_gaussians_is_refused(tmp_path, message, options):
    path = tmp_path / "bad.ply"
    write_ply(path, **options)
    with pytest.raises(ValueError, match=message) as caught:
        load_splat(path)
    assert str(path) in str(caught.value)


def test_a_list_is_no_number(tmp_path):
    table = np.zeros(1, [(name, "O" if name == "f_dc_1" else "f4") for name in COLUMNS])
    table["f_dc_1"] = [np.ones(3, np.float32)]
    PlyData([PlyElement.describe(table, "vertex")]).write(tmp_path / "list.ply")
    with pytest.raises(ValueError, match="a number as f_dc_1 of a Gaussian"):
        load_splat(tmp_path / "list.ply")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    save_splat(tmp_path / "whole.ply", some(3))
    data = (tmp_path / "whole.ply").read_bytes()
    for length in [*range(0, 400, 7), len(data) - 1]:
        (tmp_path / "cut.ply").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"path: expected a \.ply file"):
            load_splat(tmp_path / "cut.ply")


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b"ply\n\xff\xfe\n",
        b"ply\nformat ascii 1.0\nelement vertex -1\nend_header\n",
        b"ply\nformat binary_little_endian 1.0\nelement vertex 99999999999999999\nproperty float x\nend_header\nabcd",
    ],
)
def test_what_is_no_ply_file_is_refused(tmp_path, data):
    (tmp_path / "bad.ply").write_bytes(data)
    with pytest.raises(ValueError, match=r"path: expected a \.ply file"):
        load_splat(tmp_path / "bad.ply")
    with pytest.raises(ValueError, match="which is none"):
        load_splat(tmp_path / "missing.ply")


def test_large_and_small_features_give_finite_gaussians():
    feats = np.zeros((3, SMALL.channels), np.float32)
    feats[0], feats[1] = 1e3, -1e3
    feats[:, SMALL.layout["_scaling"]] = np.float32([[30], [-1e3], [0]])
    gaussians = Gaussians.from_features(np.zeros((3, 4), np.int32), feats, 64, SMALL, offset_perturbation(SMALL))
    assert np.isfinite(gaussians.columns()).all() and np.isfinite(gaussians.covariance).all()
    assert gaussians.opacity[0] == 1 and gaussians.opacity[4] == 0
    assert_close(gaussians.scaling[8], np.float32([np.hypot(SMALL.scaling_bias, SMALL.kernel_size_3d)] * 3), FEW)
    assert_close(gaussians.scaling[4], np.float32([SMALL.kernel_size_3d] * 3), 7)  # through a logarithm of -7
    assert gaussians.colors[0].tolist() == [1, 1, 1] and gaussians.colors[4].tolist() == [0, 0, 0]
    assert gaussians.colors[8].tolist() == [0.5, 0.5, 0.5]


def test_the_covariance_is_that_of_points():
    gaussians = some(20)
    turn = Rotation.from_quat(gaussians.quaternion[:, [1, 2, 3, 0]]).as_matrix()
    axes = turn * gaussians.scaling[:, None].astype(np.float64)
    covariance = axes @ axes.transpose(0, 2, 1)
    expected = np.stack([covariance[:, i, j] for i in range(3) for j in range(i, 3)], 1)
    assert_close(gaussians.covariance, expected, SEVERAL, dtype=np.float32)


def test_colours_are_those_of_a_constant_harmonic():
    colours = replace(some(1), features_dc=np.float32([[0, 1, -10]])).colors
    assert_close(colours, np.float32([[0.5, 0.5 + 0.28209479177387814, 0]]), FEW)


def test_a_pose_moves_gaussians_as_it_moves_points():
    """Points that a Gaussian spreads over, moved, are those that the moved Gaussian spreads over."""
    gaussians = some(10)
    scene = pose((0.3, -0.7, 0.2, 0.6), (1, -2, 3), (1.7, 1.7, 1.7))
    moved = gaussians.transformed(scene)
    matrix = scene.matrix()[0].astype(np.float64)

    def spread(part):
        axes = Rotation.from_quat(part.quaternion[:, [1, 2, 3, 0]]).as_matrix() * part.scaling[:, None]
        return part.xyz[:, None] + axes.transpose(0, 2, 1)  # one standard deviation along each axis, [N, 3, 3]

    expected = spread(gaussians) @ matrix[:3, :3] + matrix[3, :3]
    assert_close(spread(moved), expected, SEVERAL, dtype=np.float32)
    assert np.array_equal(moved.opacity_logit, gaussians.opacity_logit) and np.array_equal(moved.colors, gaussians.colors)
    assert same(gaussians.transformed(pose()), gaussians)


def test_merged_parts_stand_one_after_the_other():
    parts = [some(2, 1), some(0), some(3, 2)]
    merged = Gaussians.merged(parts)
    assert len(merged) == 5 and np.array_equal(merged.columns(), np.concatenate([part.columns() for part in parts]))


def test_bounds_leave_out_strays():
    gaussians = some(1000)
    xyz = np.random.default_rng(0).uniform(-0.5, 0.5, (1000, 3)).astype(np.float32)
    low, high = replace(gaussians, xyz=xyz).bounds
    assert np.array_equal(low, xyz.min(0)) and np.array_equal(high, xyz.max(0))
    xyz[0] = (100, 0, -100)
    low, high = replace(gaussians, xyz=xyz).bounds
    assert (high - low <= 2.1).all() and (high - low >= 0.95).all()


@pytest.mark.parametrize(
    "message, values",
    [
        ("expected names among .*, given shade too", {"shade": 1}),
        ("representation_config: lr missing", {"lr": None}),
        ("num_gaussians: expected an integer of at least 1", {"num_gaussians": 0}),
        ("voxel_size: expected a number above 1", {"voxel_size": 1.0}),
        ("opacity_bias: expected a number below 1", {"opacity_bias": 1.0}),
        ("kernel_size_3d: expected a finite number above 0", {"3d_filter_kernel_size": 0}),
        ("scaling_activation: expected one of 'softplus'", {"scaling_activation": "exp"}),
        ("perturb_offset: expected one of True, False", {"perturb_offset": "yes"}),
        ("lr: expected factors of _xyz", {"lr": {"_xyz": 1.0}}),
        (".lr.'_xyz'.: |lr.*_xyz.*: expected a finite number", {"lr": dict.fromkeys(module.WIDTHS, np.nan)}),
    ],
)
def test_a_bad_representation_is_refused(golden, message, values):
    config = dict(golden[1]["representation_config"]) | values
    with pytest.raises(ValueError, match=message):
        Representation.from_dict({name: value for name, value in config.items() if value is not None})


def test_bad_arguments_are_refused():
    coords, feats = np.zeros((2, 4), np.int32), np.zeros((2, SMALL.channels), np.float32)
    start = offset_perturbation(SMALL)
    good = {"coords": coords, "feats": feats, "resolution": 4, "representation": SMALL, "offset_perturbation": start}
    assert len(Gaussians.from_features(**good)) == 8
    cases = [
        ("resolution: expected an integer", {"resolution": 0}),
        ("coords: expected int32 .N, 4., given int64", {"coords": coords.astype(np.int64)}),
        ("coords: expected int32 .N, 4., given list", {"coords": [[0, 0, 0, 0]]}),
        ("coords: expected rows of one batch element, given 2", {"coords": np.int32([[0, 0, 0, 0], [1, 0, 0, 0]])}),
        (r"coords: expected x, y and z in 0..3, given \[0, 0, 4, 0\] in row 1", {"coords": np.int32([[0] * 4, [0, 0, 4, 0]])}),
        ("feats: expected numbers .2, 56.", {"feats": feats[:, :-1]}),
        ("feats: expected finite", {"feats": feats * np.nan}),
        ("offset_perturbation: expected numbers .4, 3.", {"offset_perturbation": start[:2]}),
    ]
    for message, values in cases:
        with pytest.raises(ValueError, match=message):
            Gaussians.from_features(**good | values)
    two = Pose(np.full((2, 4), 0.5, np.float32), np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32))
    for message, wrong in (
        ("the Pose of one object, given dict", {}),
        ("the Pose of one object, given one of 2", two),
        ("one scale for all axes", pose(scale=(1, 1, 2))),
    ):
        with pytest.raises(ValueError, match=message):
            some(1).transformed(wrong)
    with pytest.raises(ValueError, match=r"features_dc: expected numbers \[2, 3\]"):
        replace(some(2), features_dc=np.zeros((3, 3)))
