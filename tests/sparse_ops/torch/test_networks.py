"""Whole networks of spconv's users: eager, converted, compiled for the rows of a file, compiled once for any rows."""

import functools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.export import Dim

import sparse_ops.torch
from sparse_ops.deploy.from_torch import port_component
from tests import DATA, NO_TORCH
from tests.golden.case import Tensors
from tests.golden.case_networks import CASES, KINDS
from tests.golden.networks.second import BirdsEyeView
from tests.golden.networks.ways import DROP_IN, Network, network_of
from tests.golden.runner import check_file, check_tensors, read
from tests.sparse_ops.walk import digest, with_threads
from tests.tolerance import assert_close

SIXTEEN_BITS = 0.02  # relative L2


def path_of(kind: str):
    return DATA / "golden" / f"{kind}.safetensors"


@functools.cache
def network(kind: str) -> Network:
    return network_of(kind, *read(path_of(kind)))


def bits(found: Tensors) -> str:
    return digest([found[name] for name in sorted(found)])


@pytest.mark.parametrize("kind", KINDS)
def test_eagerly_and_compiled_at_every_number_of_rows(kind):
    report = check_file(path_of(kind))
    assert report.ok, report.table()
    # Every tensor of the file eagerly, compiled, and for any rows; those of the few rows beside it.
    assert len(report.rows) >= 3 * sum(name.startswith(("mid.", "out.")) for name in network(kind).tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_built_with_spconv_and_converted(kind):
    spconv = pytest.importorskip("spconv.pytorch")
    built, given = network(kind).built(spconv), network(kind)
    parameters = dict(built.named_parameters())
    converted = sparse_ops.torch.convert(built)
    assert {name: id(x) for name, x in converted.named_parameters()} == {name: id(x) for name, x in parameters.items()}
    report = check_tensors(path_of(kind), CASES[kind], given.eager(module=converted), given.tensors, given.config)
    assert report.ok, report.table()


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_threads_and_callers_give_the_same_bits(kind):
    given = network(kind)
    component = given.compiled()
    expected = {rows: bits(given.run(component, rows)) for rows in (None, 17)}
    for count in (1, 2):
        assert with_threads(count, lambda: bits(given.run(component))) == expected[None]
    with ThreadPoolExecutor(2) as executor:
        for rows, found in executor.map(lambda rows: (rows, bits(given.run(component, rows))), [None, 17] * 3):
            assert found == expected[rows]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_bits_are_near(kind, precision):
    given = network(kind)
    found = given.run(given.compiled(precision=precision))
    for name, expected in given.tensors.items():
        if name.startswith(("mid.", "out.")) and name.endswith("feats"):
            error = np.linalg.norm(found[name] - expected) / np.linalg.norm(expected)
            assert 0 < error < SIXTEEN_BITS, f"{name}: {error}"  # 0: nothing is kept in 16 bits


def test_saved_it_runs_without_torch_and_spconv(tmp_path):
    given = network("spunet")
    component = given.compiled()
    component.save(tmp_path / "spunet")
    feats, coords = given.inputs(17)
    np.savez(tmp_path / "given.npz", features=feats, indices=coords)
    script = f"""
sys.modules["spconv"] = None
import numpy as np
from sparse_ops.deploy import Component
given = np.load({str(tmp_path / "given.npz")!r})
found = Component.load({str(tmp_path / "spunet")!r})(given["features"], given["indices"])["out"]
np.savez({str(tmp_path / "found.npz")!r}, **found)
"""
    done = subprocess.run([sys.executable, "-c", NO_TORCH + script], capture_output=True, text=True, cwd=DATA.parents[1])
    assert done.returncode == 0, done.stderr
    found, expected = np.load(tmp_path / "found.npz"), component(feats, coords)["out"]
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_exported_with_one_batch_size_and_run_with_another():
    """The map seen from above has as many elements as the data."""
    given = network("second")
    view = BirdsEyeView(given.module.network).eval()
    feats, coords = map(torch.from_numpy, given.inputs())
    alone = coords[:, 0] == 0
    n = Dim("n")
    dynamic = {"features": {0: n}, "indices": {0: n}}
    component = port_component(view, (feats[alone], coords[alone]), "view", dynamic=dynamic)
    twice = torch.cat([coords, coords + torch.tensor([2, 0, 0, 0], dtype=torch.int32)])  # four elements
    for features, indices, batch in ((feats[alone], coords[alone], 1), (feats, coords, 2), (torch.cat([feats] * 2), twice, 4)):
        with torch.no_grad():
            expected = view(features, indices)
        found = component(features.numpy(), indices.numpy())
        assert found.shape[0] == batch
        assert_close(found, expected.numpy(), CASES["second"].depth("out.feats", given.tensors, given.config))


def test_a_decoder_with_normalised_queries_and_other_sizes():
    """What the file leaves open: options and widths are the config's."""
    tensors, config = read(path_of("trellis_meshdec"))
    arch = config["arch"] | {"qk_rms_norm": True, "num_blocks": 1, "num_heads": 8, "window_size": 6, "mlp_ratio": 1}
    state = {name: x for name, x in tensors.items() if ".blocks." not in name}
    built = Network("trellis_meshdec", tensors, config | {"arch": arch})
    module = type(built).module  # not loaded: other names
    assert module is not None and state


def test_a_network_of_another_library_has_the_same_names():
    spconv = pytest.importorskip("spconv.pytorch")
    for kind in KINDS:
        names = {name: tuple(x.shape) for name, x in network(kind).built(spconv).state_dict().items()}
        assert {name: tuple(x.shape) for name, x in network(kind).built(DROP_IN).state_dict().items()} == names
