"""Files of splats: every format against a decoder written here from its description, errors within half of what a bit says."""

import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
from plyfile import PlyData, PlyElement
from scipy.spatial.transform import Rotation

from sam3d_tvm.frames import CAMERA, OBJECT, OPENCV, OPENGL
from sam3d_tvm.splat.files import SPLAT_FORMATS, compressed_ply, load_splat, save_splat, spz
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, SHAPES, Gaussians
from tests.tolerance import assert_close, tolerance

COUNT = 700  # three chunks, the last one not full
LOSSY = [name for name in SPLAT_FORMATS if name != "ply"]
FEW = 4  # rounded operations behind a value
# What each format calls (x, y, z) of an object, whose z is up and whose front looks to -y, and of the photo's camera.
FROM_OBJECT = {
    "compressed.ply": lambda x, y, z: (x, -z, y),
    "splat": lambda x, y, z: (x, -z, y),
    "spz": lambda x, y, z: (x, z, -y),
}
FROM_CAMERA = {
    "compressed.ply": lambda x, y, z: (-x, -y, z),
    "splat": lambda x, y, z: (-x, -y, z),
    "spz": lambda x, y, z: (-x, y, -z),
}


def some(count=COUNT, seed=0, frame=OBJECT):
    random = np.random.default_rng(seed)
    return Gaussians(
        xyz=random.uniform(-0.5, 0.5, (count, 3)) * [1, 0.7, 0.4] + [0, 0.1, 0.2],
        features_dc=random.uniform(-1.7, 1.7, (count, 3)),
        opacity_logit=random.normal(size=count) * 3,
        log_scaling=random.uniform(-8, -2, (count, 3)),
        quaternion=random.normal(size=(count, 4)),
        frame=frame,
    )


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in SHAPES)


# Decoders, row by row: (position, colour of the constant harmonic + 0.5, opacity, log scale, (w, x, y, z)).


def decode_splat(data):
    rows = []
    for at in range(0, len(data), 32):
        numbers = struct.unpack_from("<6f8B", data, at)
        color, opacity = [value / 255 for value in numbers[6:9]], numbers[9] / 255
        rows.append((numbers[:3], color, opacity, np.log(numbers[3:6]), [(value - 128) / 128 for value in numbers[10:14]]))
    return rows


def decode_spz(data):
    data = gzip.decompress(data)
    magic, version, count, degree, bits, flags, reserved = struct.unpack_from("<IIIBBBB", data)
    assert (magic, version, degree, flags, reserved) == (0x5053474E, 2, 0, 0, 0) and len(data) == 16 + 19 * count
    rows = []
    for i in range(count):
        at = 16 + 9 * i
        position = [int.from_bytes(data[at + 3 * k : at + 3 * k + 3], "little", signed=True) / 2**bits for k in range(3)]
        opacity = data[16 + 9 * count + i] / 255
        triples = [data[16 + start * count + 3 * i :][:3] for start in (10, 13, 16)]
        color = [0.5 + CONSTANT_HARMONIC * (byte / 255 - 0.5) / 0.15 for byte in triples[0]]
        scale = [byte / 16 - 10 for byte in triples[1]]
        x, y, z = (byte / 127.5 - 1 for byte in triples[2])
        rows.append((position, color, opacity, scale, [np.sqrt(max(0, 1 - x * x - y * y - z * z)), x, y, z]))
    return rows


def decode_compressed_ply(data):
    header, _, body = data.partition(b"end_header\n")
    lines = [line for line in header.decode().split("\n") if not line.startswith("comment")]
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    chunks, count = int(lines[2].removeprefix("element chunk ")), int(lines[21].removeprefix("element vertex "))
    assert [line.split()[:2] for line in lines[3:21]] == [["property", "float"]] * 18
    names = [line.split()[2] for line in lines[3:21]]
    assert lines[22:] == [*(f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")), ""]
    assert chunks == -(-count // 256) and len(body) == 72 * chunks + 16 * count
    rows = []
    for i in range(count):
        ends = dict(zip(names, struct.unpack_from("<18f", body, i // 256 * 72), strict=True))
        position, rotation, scale, color = struct.unpack_from("<4I", body, 72 * chunks + 16 * i)

        def between(name, part, bits, ends=ends):
            low, high = ends[f"min_{name}"], ends[f"max_{name}"]
            return low + (high - low) * (part & (1 << bits) - 1) / ((1 << bits) - 1)

        place = [between("x", position >> 21, 11), between("y", position >> 11, 10), between("z", position, 11)]
        size = [between("scale_x", scale >> 21, 11), between("scale_y", scale >> 11, 10), between("scale_z", scale, 11)]
        colors = [between(name, color >> shift, 8) for name, shift in (("r", 24), ("g", 16), ("b", 8))]
        turn = [((rotation >> shift & 1023) / 1023 - 0.5) * np.sqrt(2) for shift in (20, 10, 0)]
        turn.insert(rotation >> 30, np.sqrt(1 - np.square(turn).sum()))
        rows.append((place, colors, (color & 255) / 255, size, turn))
    return rows


DECODERS = {"splat": decode_splat, "spz": decode_spz, "compressed.ply": decode_compressed_ply}


def decoded(name, data):
    return [np.array(column, np.float64) for column in zip(*DECODERS[name](data), strict=True)]


def expected(gaussians, turn):
    """As `decoded`, before any rounding, with the axes turned by `turn`."""
    matrix = np.array(turn(*np.eye(3))).astype(float)
    turned = Rotation.from_matrix(matrix) * Rotation.from_quat(gaussians.quaternion[:, [1, 2, 3, 0]])
    return [
        gaussians.xyz.astype(np.float64) @ matrix.T,
        0.5 + CONSTANT_HARMONIC * gaussians.features_dc.astype(np.float64),
        1 / (1 + np.exp(-gaussians.opacity_logit.astype(np.float64))),
        gaussians.log_scaling.astype(np.float64),
        turned.as_quat()[:, [3, 0, 1, 2]],
    ]


def nearest(found, wanted):
    """Which of the wanted positions each that was found is; every one once."""
    order = ((found[:, None] - wanted) ** 2).sum(-1).argmin(1)
    assert sorted(order) == list(range(len(wanted)))
    return order


def off(found, wanted):
    """Between unit quaternions, either of which may be negated."""
    return np.minimum(np.abs(found - wanted).max(1), np.abs(found + wanted).max(1))


# Half a step of position, colour, opacity, logarithm of scale, and of what is stored of a rotation.
def half_steps(name, gaussians):
    if name == "splat":
        return 0, 0.5 / 255, 0.5 / 255, 0, 0.5 / 128
    if name == "spz":
        return 0.5 / 2**23, 0.5 / 255 / 0.15 * CONSTANT_HARMONIC, 0.5 / 255, 0.5 / 16, 0.5 / 127.5
    # Of a chunk no larger than all: the step of 10 bits is the widest.
    widths = [np.ptp(values) for values in (gaussians.xyz, CONSTANT_HARMONIC * gaussians.features_dc, gaussians.log_scaling)]
    return 0.5 * widths[0] / 1023, 0.5 * widths[1] / 255, 0.5 / 255, 0.5 * widths[2] / 1023, 0.5 * np.sqrt(2) / 1023


@pytest.mark.parametrize("frame, turns", [(OBJECT, FROM_OBJECT), (CAMERA, FROM_CAMERA)], ids=["object", "camera"])
@pytest.mark.parametrize("name", LOSSY)
def test_a_file_holds_the_gaussians_to_half_a_step(tmp_path, name, frame, turns):
    gaussians = some(frame=frame)
    save_splat(path := tmp_path / f"a{SPLAT_FORMATS[name].suffix}", gaussians)
    found, wanted = decoded(name, path.read_bytes()), expected(gaussians, turns[name])
    order = nearest(found[0], wanted[0])
    wanted = [values[order] for values in wanted]
    if name == "splat":
        wanted[1] = np.clip(wanted[1], 0, 1)  # it has colours of the screen alone
    rounding = tolerance(np.float32, FEW, 10)  # of the float32 values before
    for which, half in enumerate(half_steps(name, gaussians)[:4]):
        assert np.abs(found[which] - wanted[which]).max() <= half + rounding, which
    half = half_steps(name, gaussians)[4]
    if name == "splat":
        assert off(found[4], wanted[4]).max() <= 2 * half + rounding  # 1 is kept as 127/128
    elif name == "spz":
        wanted[4] *= np.where(wanted[4][:, :1] < 0, -1, 1)
        # Where w is about 0, rounding gives it either sign.
        clear = np.abs(wanted[4][:, 0]) > 1e-6
        assert np.abs(found[4] - wanted[4])[clear, 1:].max() <= half + rounding
    else:
        # The largest is at least a half, and the others' errors reach it by their ratios to it, together at most sqrt(3).
        assert off(found[4], wanted[4]).max() <= 4 * half + rounding


@pytest.mark.parametrize("name", LOSSY)
def test_what_is_read_is_what_the_decoder_here_reads(tmp_path, name):
    save_splat(path := tmp_path / f"a{SPLAT_FORMATS[name].suffix}", some())
    position, color, opacity, scale, rotation = decoded(name, path.read_bytes())
    found = load_splat(path)
    assert found.frame == {"spz": OPENGL}.get(name, OPENCV) and found.objects is None
    depth = 4 * FEW
    assert_close(found.xyz, position, depth, dtype=np.float32)
    assert_close(0.5 + CONSTANT_HARMONIC * found.features_dc, color, depth, dtype=np.float32)
    assert np.abs(found.opacity - opacity).max() <= 0.25 / 255 + 1e-6  # 0 and 1 have no logit
    assert_close(found.log_scaling, scale, depth, dtype=np.float32)
    unit = rotation / np.linalg.norm(rotation, axis=1, keepdims=True)
    assert_close(found.rotation, unit, depth, dtype=np.float32)


@pytest.mark.parametrize("name", SPLAT_FORMATS)
def test_equal_gaussians_give_equal_bytes_and_another_frame_the_same_file(tmp_path, name):
    suffix = SPLAT_FORMATS[name].suffix
    for file, gaussians in (("a", some()), ("b", some()), ("c", some(seed=1)), ("d", replace(some(), frame=CAMERA))):
        save_splat(tmp_path / f"{file}{suffix}", gaussians)
    a, b, c, d = ((tmp_path / f"{file}{suffix}").read_bytes() for file in "abcd")
    assert a == b != c and a != d


@pytest.mark.parametrize("name", SPLAT_FORMATS)
def test_no_gaussians_and_one_are_files_too(tmp_path, name):
    path = tmp_path / f"a{SPLAT_FORMATS[name].suffix}"
    for count in (0, 1):
        save_splat(path, some(count))
        assert len(load_splat(path)) == count


@pytest.mark.parametrize("name", LOSSY)
def test_values_beyond_what_a_format_holds_stay_finite(tmp_path, name):
    gaussians = replace(
        some(4),
        opacity_logit=[-1000, 1000, -20, 20],
        log_scaling=[[-1000] * 3, [40] * 3, [-90] * 3, [0] * 3],
        features_dc=[[-1e30] * 3, [1e30] * 3, [-20] * 3, [20] * 3],
    )
    save_splat(path := tmp_path / f"a{SPLAT_FORMATS[name].suffix}", gaussians)
    found = load_splat(path)
    assert len(found) == 4 and sorted(np.rint(255 * found.opacity)) == [0, 0, 255, 255]
    assert abs(found.log_scaling.max() - (255 / 16 - 10 if name == "spz" else 40)) <= tolerance(np.float32, FEW, 40)


def test_rows_of_a_splat_file_begin_with_what_is_seen_most(tmp_path):
    gaussians = some()
    save_splat(tmp_path / "a.splat", gaussians)
    found = load_splat(tmp_path / "a.splat")
    order = nearest(found.xyz, expected(gaussians, FROM_OBJECT["splat"])[0])
    weight = np.prod(gaussians.scaling.astype(float), 1) * gaussians.opacity
    assert (np.diff(weight[order]) <= 1e-6 * weight[order][1:]).all()


@pytest.mark.parametrize(
    "extent, bits", [(0, 23), (0.5, 23), (0.99, 23), (1, 22), (1.9, 22), (300, 14), (2**23 - 1, 0), (2**22 - 0.5, 1)]
)
def test_an_spz_file_has_as_many_bits_after_the_point_as_fit(tmp_path, extent, bits):
    gaussians = replace(some(2), xyz=[[extent, 0, 0], [-extent, 0, 0]])
    save_splat(tmp_path / "a.spz", gaussians)
    header = gzip.decompress((tmp_path / "a.spz").read_bytes())[:16]
    assert header[13] == bits
    assert np.abs(load_splat(tmp_path / "a.spz").xyz[:, 0] - [extent, -extent]).max() <= 0.5 / 2**bits


def test_positions_that_no_fixed_point_holds_are_refused(tmp_path):
    far = replace(some(1), xyz=[[0, 1e9, 0]])
    with pytest.raises(
        ValueError, match=r"gaussians: expected positions within 8,388,607 units for a \.spz file, given 1e\+09"
    ):
        save_splat(tmp_path / "a.spz", far)
    assert list(tmp_path.iterdir()) == []
    for suffix in (".splat", ".compressed.ply", ".ply"):
        save_splat(tmp_path / f"a{suffix}", far)
        assert np.allclose(np.abs(load_splat(tmp_path / f"a{suffix}").xyz).max(), 1e9)


def smallest_three(rotation):
    """The rotation of version 3, of (x, y, z, w): two bits, then sign and 9 bits of each of the three that are not largest."""
    largest = int(np.abs(rotation).argmax())
    rotation = rotation * np.sign(rotation[largest])
    word = largest
    for place in (place for place in range(4) if place != largest):
        word = word << 10 | (512 if rotation[place] < 0 else 0) | round(511 * np.sqrt(2) * abs(rotation[place]))
    return word.to_bytes(4, "little")


def test_an_spz_file_of_version_3_with_harmonics_is_read(tmp_path):
    gaussians = some(20, frame=OPENGL)
    save_splat(tmp_path / "a.spz", gaussians)
    data = gzip.decompress((tmp_path / "a.spz").read_bytes())
    words = b"".join(smallest_three(row) for row in gaussians.rotation[:, [1, 2, 3, 0]].astype(float))
    header = struct.pack("<4sIIBBBB", b"NGSP", 3, 20, 1, data[13], 1, 0)
    (tmp_path / "b.spz").write_bytes(gzip.compress(header + data[16 : 16 + 16 * 20] + words + bytes(9 * 20)))
    found, other = load_splat(tmp_path / "b.spz"), load_splat(tmp_path / "a.spz")
    for name in ("xyz", "features_dc", "opacity_logit", "log_scaling"):
        assert np.array_equal(getattr(found, name), getattr(other, name))
    # As in the compressed .ply: the errors of three reach the largest by ratios of at most 1 each.
    assert off(found.rotation, gaussians.rotation).max() <= 4 * 0.5 * np.sqrt(0.5) / 511 + 1e-6


def test_a_compressed_file_without_ends_of_colours_is_read(tmp_path):
    """As SuperSplat wrote them at first: colours from 0 to 1."""
    save_splat(tmp_path / "a.compressed.ply", some(300))
    chunk, vertex = (part.data for part in PlyData.read(tmp_path / "a.compressed.ply").elements)
    names = [name for name in chunk.dtype.names if name[-1] not in "rgb"]
    parts = [PlyElement.describe(chunk[names].astype([(name, "f4") for name in names]), "chunk")]
    PlyData([*parts, PlyElement.describe(vertex, "vertex")], byte_order="<").write(tmp_path / "b.ply")
    found = load_splat(tmp_path / "b.ply")
    bytes_of_red = vertex["packed_color"] >> 24
    assert_close(0.5 + CONSTANT_HARMONIC * found.features_dc[:, 0], bytes_of_red / 255, FEW, dtype=np.float32)
    assert found.frame == OPENCV


def test_the_header_of_a_ply_file_names_the_frame_and_keeps_objects(tmp_path):
    scene = Gaussians.merged([some(3, 1, CAMERA), some(0, 2, CAMERA), some(2, 3, CAMERA)])
    assert scene.frame == CAMERA
    save_splat(tmp_path / "scene.ply", scene)
    ply = PlyData.read(tmp_path / "scene.ply")
    assert ply.comments == ["sam3d-tvm frame: camera (x left, y up, z away)"]
    assert ply["vertex"]["object"].tolist() == [1, 1, 1, 3, 3] and ply["vertex"]["object"].dtype == np.int32
    found = load_splat(tmp_path / "scene.ply")
    assert found.frame == CAMERA and found.objects.tolist() == [1, 1, 1, 3, 3] and same(found, scene)
    assert load_splat(tmp_path / "scene.ply", OPENCV).frame == OPENCV  # what is given wins
    save_splat(tmp_path / "object.ply", some(2))
    assert b"comment" not in (tmp_path / "object.ply").read_bytes()
    assert load_splat(tmp_path / "object.ply").frame == OBJECT
    save_splat(tmp_path / "scene.compressed.ply", scene)
    assert load_splat(tmp_path / "scene.compressed.ply").frame == OPENCV


def test_a_comment_that_names_no_frame_is_passed_over(tmp_path):
    save_splat(tmp_path / "a.ply", some(2, frame=CAMERA))
    data = (tmp_path / "a.ply").read_bytes().replace(b"frame: camera", b"frame: moving")
    (tmp_path / "a.ply").write_bytes(data)
    assert load_splat(tmp_path / "a.ply").frame == OBJECT


def test_a_name_does_not_decide_what_is_read(tmp_path):
    for name, other in (("spz", "a.splat"), ("ply", "a.spz"), ("compressed.ply", "a.ply"), ("spz", "a")):
        save_splat(path := tmp_path / f"b{SPLAT_FORMATS[name].suffix}", some(5))
        path.rename(tmp_path / other)
        assert len(load_splat(tmp_path / other)) == 5


def packed(data: bytes) -> bytes:
    """As gzip does it, without the time: workers name the cases that follow alike."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    "file, data, says",
    [
        ("a.ksplat", bytes(range(200)), "a file of GaussianSplats3D: splat-transform of PlayCanvas makes a .ply file of it"),
        ("a.sog", b"PK\x03\x04" + bytes(100), "an archive, as .sog and .usdz are: splat-transform"),
        ("a.usdz", b"PK\x03\x04" + bytes(100), "an archive, as .sog and .usdz are"),
        ("mesh.glb", b"glTF\x02\0\0\0", "holds a mesh, not a splat: open it in Blender"),
        ("a.splat", b"glTF\x02\0\0\0" + bytes(24), "holds a mesh, not a splat"),
        ("mesh.obj", b"v 0 0 0\n", "holds a mesh, not a splat"),
        ("a.spz", b"NGSP\x04\0\0\0" + bytes(30), "an .spz file of version 4 or later: save it as version 2 or 3"),
        ("views.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "which is a picture"),
        ("a.html", b"<!doctype html>", "which is a page: open it in a browser"),
        ("a.spz", b"<!DOCTYPE html><title>404", "which is a page"),
        ("a.ply", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS did not fetch"),
        ("a.xyz", b"1 2 3\n", "which is none of these"),
        ("a.splat", bytes(33), r"32 bytes a Gaussian, given .* of 33 bytes"),
        ("a.splat", struct.pack("<6f8B", 0, 0, 0, 1, np.nan, 1, *[128] * 8), "scale: expected numbers from 0 to"),
        ("a.splat", struct.pack("<6f8B", 0, 0, 0, 1, -1, 1, *[128] * 8), "scale: expected numbers from 0 to"),
        ("a.splat", struct.pack("<6f8B", np.inf, 0, 0, 1, 1, 1, *[0] * 8), "xyz: expected finite"),
        ("a.splat", struct.pack("<6f8B", 0, 0, 0, 1, 1, 1, *[128] * 8), "quaternion: expected lengths above 0"),
        ("a.spz", packed(bytes(100)), "header of 16 bytes that begins with NGSP"),
        ("a.spz", packed(b"NGSP"), "header of 16 bytes that begins with NGSP"),
        ("a.spz", packed(struct.pack("<4sIIBBBB", b"NGSP", 1, 0, 0, 12, 0, 0)), "version 2 or 3, given 1"),
        ("a.spz", packed(struct.pack("<4sIIBBBB", b"NGSP", 2, 1, 5, 12, 0, 0)), "up to degree 4, given 5"),
        ("a.spz", packed(struct.pack("<4sIIBBBB", b"NGSP", 2, 2**32 - 1, 0, 12, 0, 0)), "up to 10,000,000 Gaussians"),
        ("a.spz", packed(struct.pack("<4sIIBBBB", b"NGSP", 2, 10**7, 0, 12, 0, 0)), "expected 190,000,000 bytes"),
        ("a.spz", b"\x1f\x8b\x08\0" + bytes(60), "expected data that gzip unpacks"),
        ("a.spz", b"", "expected data that gzip unpacks|expected a header"),
    ],
)
def test_other_files_are_called_by_their_name(tmp_path, file, data, says):
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ValueError, match=says) as caught:
        load_splat(tmp_path / file)
    assert str(caught.value).startswith("path: expected a .") and repr(str(tmp_path / file)) in str(caught.value)


@pytest.mark.parametrize("name", ["spz", "compressed.ply"])
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
    suffix = SPLAT_FORMATS[name].suffix
    save_splat(tmp_path / f"whole{suffix}", some(3))
    data = (tmp_path / f"whole{suffix}").read_bytes()
    for length in [*range(0, len(data) - 8, 5), *range(len(data) - 8, len(data))]:
        (tmp_path / f"cut{suffix}").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"path: expected a"):
            load_splat(tmp_path / f"cut{suffix}")


def test_a_changed_byte_of_an_spz_file_is_noticed(tmp_path):
    save_splat(tmp_path / "a.spz", some(50))
    data = bytearray((tmp_path / "a.spz").read_bytes())
    data[-6] ^= 1  # of the checksum
    (tmp_path / "a.spz").write_bytes(data)
    with pytest.raises(ValueError, match="incorrect data check"):
        load_splat(tmp_path / "a.spz")


def test_an_spz_file_unpacks_no_further_than_it_says(tmp_path, monkeypatch):
    """A gigabyte of zeros in a megabyte, of which one Gaussian is asked for."""
    header = struct.pack("<4sIIBBBB", b"NGSP", 2, 1, 0, 12, 0, 0)
    (tmp_path / "bomb.spz").write_bytes(gzip.compress(header + bytes(1 << 24)))
    made = []

    class Stream:
        def __init__(self, **options):
            self._stream = zlib_stream(**options)

        def __getattr__(self, name):
            return getattr(self._stream, name)

        def decompress(self, data, most):
            made.append(len(found := self._stream.decompress(data, most)))
            return found

    zlib_stream = spz.zlib.decompressobj
    monkeypatch.setattr(spz.zlib, "decompressobj", Stream)
    assert len(load_splat(tmp_path / "bomb.spz")) == 1 and sum(made) <= 16 + 19 + 1


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda chunk, vertex: (chunk[:1], vertex), "a chunk for 256 Gaussians each, given .* with 1"),
        (lambda chunk, vertex: (chunk[["min_x"]], vertex), "without numbers min_y, min_z, max_x"),
        (lambda chunk, vertex: (chunk, vertex[["packed_position"]]), "without numbers packed_rotation"),
    ],
)
def test_a_compressed_file_without_its_parts_is_refused(tmp_path, change, says):
    save_splat(path := tmp_path / "a.compressed.ply", some(300))
    tables = change(*(part.data for part in PlyData.read(path).elements))
    tables = [table.astype([(name, table.dtype[name]) for name in table.dtype.names]) for table in tables]
    elements = [PlyElement.describe(table, name) for table, name in zip(tables, ("chunk", "vertex"), strict=True)]
    PlyData(elements, byte_order="<").write(path)
    with pytest.raises(ValueError, match=says):
        load_splat(path)


def test_a_mesh_or_points_in_a_ply_file_are_called_so(tmp_path):
    points = np.zeros(3, [(name, "f4") for name in "xyz"])
    faces = np.array([([0, 1, 2],)], [("vertex_indices", "i4", (3,))])
    parts = [PlyElement.describe(points, "vertex"), PlyElement.describe(faces, "face")]
    PlyData(parts).write(tmp_path / "mesh.ply")
    PlyData(parts[:1]).write(tmp_path / "points.ply")
    with pytest.raises(ValueError, match=r"without f_dc_0, .*: it holds a mesh, which Blender"):
        load_splat(tmp_path / "mesh.ply")
    with pytest.raises(ValueError, match=r"without f_dc_0, .*: it holds points without Gaussians"):
        load_splat(tmp_path / "points.ply")


def test_a_name_that_ends_in_none_of_the_formats_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a file that ends in one of \.compressed\.ply, \.ply, \.splat, \.spz"):
        save_splat(tmp_path / "a.ksplat", some(1))


def test_chunks_are_small(tmp_path):
    """Morton order keeps what is near together: a chunk of a uniform cube is far from as large as that."""
    random = np.random.default_rng(0)
    many = replace(some(1 << 14), xyz=random.uniform(-1, 1, (1 << 14, 3)))
    save_splat(path := tmp_path / "a.compressed.ply", many)
    chunk = PlyData.read(path)["chunk"].data
    extents = np.stack([chunk[f"max_{axis}"] - chunk[f"min_{axis}"] for axis in "xyz"])
    assert np.median(extents) < 1  # of 2: 64 chunks have a quarter along each side
    assert compressed_ply.CHUNK * len(chunk) == len(many)
