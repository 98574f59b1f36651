"""The campaign: a fixed part of it, and that it finds bugs, tells how to run them again, and survives crashes and hangs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import campaign, oracle
from tests.fuzz.__main__ import main
from tests.fuzz.network import PAGE, Network
from tests.fuzz.operations import run_case
from tests.fuzz.steps import Convolution
from tests.sparse_ops.strategies import coordinates
from tir_kernels.spec import coordinate_index, sites, sparse_conv
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_table

ROOT = Path(__file__).parent.parent
SEED, PAGES, CASES = 5, range(4), 12  # so many cases of each page

axes = st.tuples(*[st.integers(1, 3)] * 3)
geometries = st.builds(Geometry, axes, axes, st.tuples(*[st.integers(0, 2)] * 3), axes, st.booleans())


@pytest.mark.parametrize("page", PAGES)
def test_a_fixed_part_of_the_campaign(page):
    report = campaign.run(SEED, print, page * PAGE, CASES)
    print(report)
    assert report.cases == CASES and not report.failures


@given(coordinates(), geometries, st.sampled_from([None, (4, 5, 3)]))
def test_oracles_of_whole_arrays_are_those_of_the_spec(coords, geometry, extent):
    np.testing.assert_array_equal(oracle.rows_of(coords, coords[::2] + 1), coordinate_index.naive(coords, coords[::2] + 1))
    found = oracle.sites(coords, geometry, extent)
    np.testing.assert_array_equal(found, sites.naive(coords, geometry, extent))
    np.testing.assert_array_equal(oracle.table(coords, found, geometry), naive_table(coords, found, geometry))


def test_the_oracle_of_a_convolution_and_of_groups():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((9, 4)), rng.standard_normal((6, 3, 4)), rng.standard_normal(6)
    neighbours = rng.integers(-1, 9, (3, 7)).astype("int32")
    y, size = oracle.conv(x, weight, neighbours, bias)
    np.testing.assert_allclose(y, sparse_conv.naive(x, weight.transpose(1, 2, 0), neighbours, bias))
    assert (size > 0).all()
    grouped, _ = oracle.conv(x, weight[:, :, :2], neighbours, bias, 2)
    np.testing.assert_allclose(grouped, sparse_conv.naive(x, weight[:, :, :2].transpose(1, 2, 0), neighbours, bias, groups=2))


def test_a_case_follows_from_two_numbers():
    one, other = (Network.draw(7, 3) for _ in range(2))
    assert str(one) == str(other) != str(Network.draw(7, 4))
    for a, b in zip(one.weights, other.weights, strict=True):
        assert all(a[name].tobytes() == b[name].tobytes() for name in a)


def planted(tmp_path, monkeypatch, name: str, source: str) -> str:
    """A module with a bug, to be imported where cases run."""
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return name


DROPPED_TAP = """
import numpy as np
from sparse_ops.eager import functional
from sparse_ops.eager.call import Weights
from tests.fuzz.steps import to_numpy, to_kind
from sparse_ops.eager.arrays import kind_of

right = functional.sparse_conv

def wrong(x, weight, kernel_map, *args, **kwargs):
    array = np.array(to_numpy(weight.weight))
    array[:, 0, 0, 0] = 0
    return right(x, Weights(to_kind(array, kind_of(x)), weight.bias), kernel_map, *args, **kwargs)

functional.sparse_conv = wrong
"""


def test_a_dropped_tap_is_found_and_its_line_finds_it_again(tmp_path, monkeypatch, capsys):
    plant = planted(tmp_path, monkeypatch, "dropped_tap", DROPPED_TAP)
    report = campaign.run(SEED, print, cases=4, plant=plant)
    line = capsys.readouterr().out.splitlines()[0]
    (case, words), *_ = report.failures
    assert case.startswith(f"{SEED}:") and "convolution" in words and line == campaign.reproduction(case, plant)
    assert line in str(report)
    arguments = line.split()[3:]
    command = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from tests.fuzz.__main__ import main; sys.exit(main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and words.splitlines()[0] in done.stdout, done.stderr
    assert main(arguments[:2]) == 0  # without the bug


CRASH_AND_HANG = """
import os, time
from tests.fuzz import campaign
from tests.fuzz.network import Network

def one(network):
    if network.index == 1:
        os.abort()
    if network.index == 3:
        time.sleep(600)
    return []

campaign.one = one
"""


def test_a_crash_and_a_hang_are_reported_and_the_campaign_goes_on(tmp_path, monkeypatch):
    plant, said = planted(tmp_path, monkeypatch, "crash_and_hang", CRASH_AND_HANG), []
    report = campaign.run(SEED, said.append, cases=5, plant=plant, patience=2.0)
    (crash, died), (hang, silent) = report.failures
    assert report.cases == 5 and crash == f"{SEED}:1" and hang == f"{SEED}:3"
    assert "exit code -6" in died and "hangs" in silent
    assert said[0].startswith(campaign.reproduction(crash, plant))


def altered(outcomes):
    """The last bit of one value of the last outcome flipped."""
    feats = outcomes[-1].feats
    feats.view("uint8").reshape(-1)[:1] ^= 1
    return outcomes


@pytest.mark.parametrize("operation", ["repeated", "one_thread", "many_threads", "copied", "forked", "other_order", "alone"])
def test_operations_see_one_bit(monkeypatch, operation):
    """The first run is as it is, of later ones a bit differs."""
    from tests.fuzz import operations

    drawn = (Network.draw(SEED, index) for index in range(200))
    drawn = (n for n in drawn if n.cloud.given and n.cloud.rows > 60 and isinstance(n.steps[-1], Convolution))
    network = next(n for n in drawn if all(s.by_row and not s.draws_voxels for s in n.steps))
    chosen = {getattr(operations, operation): (1.0, operations.always), operations.always: (1e-9, lambda case: False)}
    monkeypatch.setattr(operations, "OPERATIONS", chosen)
    assert run_case(network) == [operation]
    right, calls = Network.run, []

    def run(self, layers, plans, tensors, stop=None):
        outcomes = right(self, layers, plans, tensors, stop)
        calls.append(stop)
        return altered(outcomes) if len(calls) > 1 and outcomes and stop is None else outcomes

    monkeypatch.setattr(Network, "run", run)
    with pytest.raises(operations.Failure, match="bits"):
        run_case(network)
