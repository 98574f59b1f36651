"""Poses: rotations from six numbers, quaternions and matrices, scenes, and bad input.

The golden case `pose_decoder` compares them with upstream's results.
"""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sam3d_tvm.pose import (
    ROTATION_6D_MEAN,
    ROTATION_6D_STD,
    Pose,
    decode_pose,
    matrix_to_quaternion,
    quaternion_to_matrix,
    rotation_6d_to_matrix,
)
from tests.sam3d_tvm.tiny import normal
from tests.tolerance import assert_close

DEPTH = 9 + 3  # products that make a matrix or a quaternion, and the length of a vector
number = st.floats(-3, 3, width=32)
IDENTITY = np.float32([[1, 0, 0, 0]])


def tokens(batch: int = 2, **changes) -> dict[str, np.ndarray]:
    widths = {"6drotation_normalized": 6, "translation": 3, "scale": 3, "translation_scale": 1}
    return {name: normal(seed, batch, 1, width) for seed, (name, width) in enumerate(widths.items())} | changes


def six(*numbers: float) -> dict[str, np.ndarray]:
    """A token that stands for a 6D rotation."""
    normalised = (np.array(numbers) - ROTATION_6D_MEAN) / ROTATION_6D_STD
    return {"6drotation_normalized": normalised.astype(np.float32)[None, None]}


def pose(batch: int = 2) -> Pose:
    return decode_pose(tokens(batch))


@given(st.lists(number, min_size=4, max_size=4))
def test_quaternion_to_matrix_and_back(numbers):
    length = np.linalg.norm(numbers)
    assume(length > 1e-3)
    quaternion = np.array(numbers) / length
    matrix = quaternion_to_matrix(quaternion)
    assert_close(matrix @ matrix.T, np.eye(3), DEPTH)
    assert_close(np.linalg.det(matrix), np.float64(1), DEPTH)
    back = matrix_to_quaternion(matrix)
    assert back[0] >= 0
    assert_close(back * np.sign(back @ quaternion), quaternion, DEPTH)


# w, x, y, z is the largest in turn, the others small or zero.
@pytest.mark.parametrize("rest", [0, 1e-9, -0.2])
@pytest.mark.parametrize("largest", range(4))
def test_all_four_branches(largest, rest):
    quaternion = np.full(4, float(rest))
    quaternion[largest] = 1
    quaternion /= np.linalg.norm(quaternion)
    back = matrix_to_quaternion(quaternion_to_matrix(quaternion))
    assert_close(back * np.sign(back[largest]), quaternion, DEPTH)


def test_a_quaternion_turns_columns_by_its_angle():
    """A quarter turn around z takes x to y."""
    matrix = quaternion_to_matrix(np.array([np.sqrt(0.5), 0, 0, np.sqrt(0.5)]))
    assert_close(matrix @ [1.0, 0, 0], np.array([0.0, 1, 0]), DEPTH)


@given(st.lists(number, min_size=6, max_size=6))
def test_six_numbers_to_a_matrix(numbers):
    first, second = np.array(numbers[:3]), np.array(numbers[3:])
    assume(np.linalg.norm(np.cross(first, second)) > 1e-2 and np.linalg.norm(first) > 1e-2)
    matrix = rotation_6d_to_matrix(np.array(numbers))
    assert_close(matrix.T @ matrix, np.eye(3), DEPTH, scale=1e4)  # vectors that are nearly parallel lose digits
    assert_close(np.linalg.det(matrix), np.float64(1), DEPTH, scale=1e4)
    assert_close(matrix[:, 0] * np.linalg.norm(first), first, DEPTH)
    assert matrix[:, 1] @ second > 0  # the second column is on the side of the second vector, and in their plane
    assert_close(matrix[:, 2] @ second, np.float64(0), DEPTH, scale=1e2)


def test_decoded_pose():
    given = tokens()
    scene_scale, scene_shift = np.float32([[2] * 3, [0.5] * 3]), normal(9, 2, 3)
    found = decode_pose(given, scene_scale, scene_shift)
    for name, width in (("rotation", 4), ("translation", 3), ("scale", 3)):
        assert getattr(found, name).shape == (2, width) and getattr(found, name).dtype == np.float32
    six_numbers = given["6drotation_normalized"][:, 0] * ROTATION_6D_STD + ROTATION_6D_MEAN
    assert_close(found.rotation_matrix, rotation_6d_to_matrix(six_numbers).astype(np.float32), DEPTH)
    assert (found.rotation[:, 0] >= 0).all()
    expected = np.exp(given["scale"]).mean(2) * scene_scale
    assert_close(found.scale, expected, 3)
    assert_close(found.translation, given["translation"][:, 0] * scene_scale + scene_shift, 2)


def test_a_scene_without_scale_and_shift():
    one, zero = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    given = tokens()
    found, expected = decode_pose(given), decode_pose(given, one, zero)
    for name in ("rotation", "translation", "scale"):
        assert (getattr(found, name) == getattr(expected, name)).all()
    del given["translation_scale"]  # which has no part in this
    assert (decode_pose(given).matrix() == expected.matrix()).all()


def test_matrix_acts_on_rows_of_points():
    found, points = pose(), normal(5, 7, 3)
    moved = np.concatenate([points, np.ones((7, 1), np.float32)], 1) @ found.matrix()
    expected = points * found.scale[:, None] @ found.rotation_matrix + found.translation[:, None]
    assert_close(moved[..., :3], expected, DEPTH)
    assert (moved[..., 3] == 1).all()


def test_scaled():
    found = pose()
    assert (found.scaled(2).scale == 2 * found.scale).all()
    assert (found.scaled(np.array([1, 2])).scale == found.scale * np.float32([[1], [2]])).all()
    assert found.scaled(2).scale.dtype == np.float32 and (found.scaled(2).translation == found.translation).all()


def test_no_poses():
    found = decode_pose(tokens(0))
    assert found.rotation.shape == (0, 4) and found.matrix().shape == (0, 4, 4)
    assert found.scaled(np.ones(0)).scale.shape == (0, 3)


def test_rounded_to_float32_they_are_nearly_those_of_torch():
    torch = pytest.importorskip("torch")
    given = tokens(64)
    numbers = torch.from_numpy(
        given["6drotation_normalized"][:, 0] * np.float32(ROTATION_6D_STD) + np.float32(ROTATION_6D_MEAN)
    )
    first = torch.nn.functional.normalize(numbers[:, :3], dim=1)
    rest = numbers[:, 3:] - (first * numbers[:, 3:]).sum(1, keepdim=True) * first
    second = torch.nn.functional.normalize(rest, dim=1)
    expected = torch.stack([first, second, torch.linalg.cross(first, second)], 2).numpy()
    least = float(rest.norm(dim=1).min())
    assert_close(decode_pose(given).rotation_matrix, expected, DEPTH, scale=max(1, 3 / least))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": None}, r"scale: expected float32 \[1, 1, 3\], given NoneType"),
        ({"translation": normal(0, 2, 1, 3)}, r"translation: expected float32 \[1, 1, 3\], given float32 \[2, 1, 3\]"),
        ({"6drotation_normalized": normal(0, 1, 6)}, r"6drotation_normalized: expected float32 \[any, 1, 6\]"),
        ({"scale": np.full((1, 1, 3), np.nan, "float32")}, "scale: expected finite values, given 3 that are not"),
        ({"scale": np.full((1, 1, 3), 100, "float32")}, "scale: expected finite values, given 3 that are not"),
        ({"scale": np.full((1, 1, 3), -200, "float32")}, "scale: expected numbers above 0"),
        (six(0, 0, 0, 1, 0, 0), "rotation: expected two vectors that are neither zero nor parallel, given .* for element 0"),
        (six(0, 1, 0, 0, 0, 0), "rotation: expected two vectors"),
        (six(1, 2, 3, -2, -4, -6), "rotation: expected two vectors"),
    ],
)
def test_bad_tokens(change, message):
    with pytest.raises(ValueError, match=message):
        decode_pose(tokens(1) | change)


def with_field(**change) -> Pose:
    fields = {"rotation": IDENTITY, "translation": np.zeros((1, 3), np.float32), "scale": np.ones((1, 3), np.float32)}
    return Pose(**fields | change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decode_pose(None), "latents: expected tokens by name, given NoneType"),
        (lambda: decode_pose({}), "latents: expected 6drotation_normalized, translation and scale, given no 6drotation"),
        (
            lambda: decode_pose(tokens(1), np.float32([[1, 1, 2]])),
            "scene_scale: expected one number above 0 for all axes, given",
        ),
        (
            lambda: decode_pose(tokens(1), np.float32([[0, 0, 0]])),
            "scene_scale: expected one number above 0 for all axes, given",
        ),
        (lambda: decode_pose(tokens(2), np.ones((1, 3), "float32")), r"scene_scale: expected float32 \[2, 3\], given"),
        (lambda: decode_pose(tokens(2), None, np.ones((1, 3), "float32")), r"scene_shift: expected float32 \[2, 3\], given"),
        (lambda: with_field(rotation=IDENTITY * 2), r"rotation: expected unit quaternions with w of at least 0, given \[2.0"),
        (lambda: with_field(rotation=-IDENTITY), "rotation: expected unit quaternions with w of at least 0"),
        (lambda: with_field(scale=np.zeros((1, 3), "float32")), "scale: expected numbers above 0"),
        (lambda: with_field(translation=np.zeros((2, 3), "float32")), r"translation: expected float32 \[1, 3\]"),
        (lambda: with_field().scaled(0), "factor: expected finite numbers above 0, given 0"),
        (lambda: with_field().scaled("2"), r"factor: expected a number or numbers \[1\], given '2'"),
        (lambda: with_field().scaled([1, 2]), r"factor: expected a number or numbers \[1\], given \[1, 2\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
