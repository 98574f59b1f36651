"""The examples, run as a person would: what they print, and what they leave behind."""

import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image

from examples import detect, pictures, rooms, running, segment, windows
from sparse_ops.deploy import Component


def run(name: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", f"examples.{name}", *options], capture_output=True, text=True)


def test_segment_trains_exports_and_runs_without_torch(tmp_path):
    done = run("segment", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [float(loss) for loss in re.findall(r"step +\d+: loss ([\d.]+)", done.stdout)]
    assert losses[-1] < 0.8 * losses[0] < 0.8 * 2.3  # of nine labels that nothing is known of: log(9) = 2.2
    # A network that says "wall" everywhere is right on every third point or so.
    right = [int(share) for share in re.findall(r"(\d+)%\s+of\s+the\s+labels\s+right", done.stdout)]
    assert len(right) == 3 and min(right) > 45
    assert (tmp_path / "component" / "manifest.json").exists()
    picture = np.asarray(Image.open(tmp_path / "segment.png"))
    truth = segment.labelled(*segment.room(segment.QUICK, 0, 2, 2))
    np.testing.assert_array_equal(picture[:, : truth.shape[1]], truth)
    found = picture[:, truth.shape[1] + 8 : 2 * truth.shape[1] + 8]
    lit = (truth != truth[0, 0]).any(2)
    assert ((found != truth[0, 0]).any(2) == lit).all() and lit.mean() > 0.2  # the same points, in colours of its own
    assert (found[lit] != truth[lit]).any()


def test_rooms_are_of_their_seed_and_have_all_labels():
    made = [rooms.room_of(np.random.default_rng(seed)) for seed in (0, 0, *range(1, 8))]
    np.testing.assert_array_equal(made[0][0], made[1][0])
    assert set(np.concatenate([labels for _, labels in made])) == set(range(len(rooms.LABELS)))
    for points, labels in made:
        assert points.dtype == np.float32 and points.shape == (len(labels), 6)
        assert points.min() >= 0 and points[:, :2].max() < 6 and points[:, 2].max() < 2.7 and points[:, 3:].max() <= 1
        assert points[labels == rooms.LABELS.index("floor"), 2].max() < 0.2


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--steps", "0"), "greater than or equal to 1"), (("--minutes", "x"), "'--minutes'"), (("--seed", "-1"), "'--seed'")],
)
def test_wrong_options_say_what_is_expected(options, words):
    done = run("segment", *options)
    assert done.returncode == 2 and words in done.stderr


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("example", "things", "size"), [(detect, "points", (1032, 256)), (windows, "voxels", (968, 480))])
def test_a_network_is_exported_once_and_run_without_torch(example, things, size, tmp_path, capsys):
    example.main(out=tmp_path, quick=True)  # ends the process where the compiled network computes something else
    lines = re.findall(rf"(\d+) {things}: +[\d.]+ ms without torch, (\S+) from the eager network", capsys.readouterr().out)
    assert len({int(rows) for rows, _ in lines}) == 3 and all(float(error) < 1e-4 for _, error in lines)
    assert Component.load(tmp_path / "component").manifest.functions.keys() == {"forward"}
    picture = np.asarray(Image.open(next(tmp_path.glob("*.png"))))
    assert picture.shape[1::-1] == size
    left, right = picture[:, : size[0] // 2 - 4], picture[:, size[0] // 2 + 4 :]
    assert min(len(np.unique(half.reshape(-1, 3), axis=0)) for half in (left, right)) > 20


def test_a_sweep_sees_what_is_nearest():
    """Every point lies on the ground or on a box, with nothing in between, up to the scanner's noise."""
    rng = np.random.default_rng(3)
    low, high = detect.street(np.random.default_rng(3))
    points = detect.sweep(rng, 16, 90)[:, :3].astype("float64")
    distance = np.linalg.norm(points, axis=1, keepdims=True)
    short = points * (1 - 0.15 / distance)  # the noise is 0.02
    assert not ((short[:, None] > low) & (short[:, None] < high)).all(-1).any()
    outside = np.maximum(np.maximum(low - points[:, None], points[:, None] - high), 0)
    to_boxes, to_ground = np.linalg.norm(outside, axis=-1).min(1), np.abs(points[:, 2] + detect.HEIGHT)
    assert np.minimum(to_boxes, to_ground).max() < 0.15


def test_near_voxels_cover_far_ones():
    colours = np.array([[255, 0, 0], [0, 0, 255]], "uint8")
    for far in (0, 1):  # whichever comes first
        voxels = np.zeros((2, 3))
        voxels[far] = [2.13, 2.84, -3.46]  # straight behind the other
        found = pictures.draw_solid(voxels, colours, 64)
        seen = [np.count_nonzero(found[..., 2 * i] > 100) for i in (far, 1 - far)]
        assert seen[1] > 10 * seen[0]


def test_results_of_other_shapes_are_no_difference_but_an_error():
    a = {"x": np.array([1.0, 2.0])}
    assert running.difference(a, {"x": np.array([1.0, 4.0])}) == 0.5
    with pytest.raises(ValueError, match=r"x: expected \[1\], given \[2\]"):
        running.difference(a, {"x": np.array([1.0])})
