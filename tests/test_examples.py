"""The examples, run as a person would: what they print, and what they leave behind."""

import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image

from examples import rooms, segment


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
