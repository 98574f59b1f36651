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
from tests.sparse_ops.indices import indices_built
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


# Sets of voxels that maps start from, and maps: submanifold and strided layers of another geometry or on other voxels.
INDICES = {"second": (4, 8), "second_res": (4, 8), "spunet": (5, 10), "voxelnext": (8, 13)}


@pytest.mark.parametrize("kind", INDICES)
def test_one_index_for_each_set_of_voxels(kind):
    given = network(kind)
    expected, component = given.eager(), given.compiled()
    with indices_built() as eagerly:
        found = given.eager()
    with indices_built(component.program) as compiled:
        given.run(component)
    assert bits(found) == bits(expected)
    for built in (eagerly, compiled):
        assert len(set(built.sets)) == len(built.sets)
        assert (len(built.sets), built.maps) == INDICES[kind]


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


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("second_res", "float16"),
        ("spunet", "bfloat16"),
        ("spunet", "float16"),
        ("trellis_meshdec", "bfloat16"),
        ("trellis_meshdec", "float16"),
        ("voxelnext", "bfloat16"),
    ],
)
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


def kept(name: str) -> bool:
    """Whether a layer or parameter of the residual SECOND is in a shorter one: three stages, the last of two blocks."""
    return not name.startswith(("conv3.2.", "conv4.", "conv_out."))


def test_stages_blocks_and_geometry_are_the_file_s():
    """A network of fewer stages and blocks, with another kernel, stride and eps, as spconv computes it."""
    spconv = pytest.importorskip("spconv.pytorch")
    tensors, config = read(path_of("second_res"))
    config["trace"] = [layer for layer in config["trace"] if kept(layer["name"])]
    down = next(layer for layer in config["trace"] if layer["name"] == "conv3.0.0")
    down |= {"kernel": [1, 3, 2], "stride": [1, 3, 2], "padding": [0, 2, 1]}
    config["arch"]["bn_eps"] = dict.fromkeys(config["arch"]["bn_eps"], 0.1)
    rng = np.random.default_rng(0)
    tensors = {name: x for name, x in tensors.items() if name[:3] in ("in.", "sta") and kept(name.removeprefix("state."))}
    tensors["state.conv3.0.0.weight"] = rng.standard_normal((40, 1, 3, 2, 24), "float32") / 12
    given = Network("second_res", tensors, config)
    real = given.built(spconv)
    for module in real.modules():
        if hasattr(module, "indice_key"):
            module.train()  # in evaluation mode it takes no bias on a CPU
    expected = one_thread(lambda: given.eager(module=real))
    found = given.eager()
    assert found["out.spatial_shape"].tolist() == [21, 14, 17]
    for name in expected:
        assert_close(found[name], expected[name], CASES["second_res"].depth(name, tensors, config), name=name)


def one_thread(call):
    """What `call()` returns where torch has one thread: with more, spconv is wrong on a CPU."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call()
    finally:
        torch.set_num_threads(count)


def test_a_network_of_another_library_has_the_same_names():
    spconv = pytest.importorskip("spconv.pytorch")
    for kind in KINDS:
        names = {name: tuple(x.shape) for name, x in network(kind).built(spconv).state_dict().items()}
        assert {name: tuple(x.shape) for name, x in network(kind).built(DROP_IN).state_dict().items()} == names


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_any_order(kind):
    """A file's rows may be fed in any order, and those of batch elements between each other."""
    tensors, config = read(path_of(kind))
    order = np.random.default_rng(0).permutation(len(tensors["in.coords"]))
    tensors |= {name: tensors[name][order] for name in ("in.coords", "in.feats")}
    report = check_tensors(path_of(kind), CASES[kind], Network(kind, tensors, config).eager(), tensors, config)
    assert report.ok, report.table()


def test_a_stage_without_blocks():
    """What such a stage returns is compared like all else."""
    tensors, config = read(path_of("spunet"))
    config["trace"] = [layer for layer in config["trace"] if not layer["name"].startswith("enc.0.")]
    tensors = {name: x for name, x in tensors.items() if name.startswith(("in.", "mid.enc_0.")) or name[:5] == "state"}
    tensors = {name: x for name, x in tensors.items() if not name.startswith("state.enc.0.")}
    given = Network("spunet", tensors, config)
    assert given.eager().keys() >= {"mid.enc_0.feats", "out.feats"}
    assert CASES["spunet"].depth("mid.enc_0.feats", tensors, config) == CASES["spunet"].depth("out.feats", tensors, config)


MODES = "full", "swin", "shift_window", "shift_sequence", "shift_order"


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_attention(mode):
    """Windows that hold a whole batch element are attention to all of it; smaller ones are not."""
    tensors, config = read(path_of("trellis_meshdec"))
    tensors = {name: x for name, x in tensors.items() if name.startswith(("in.", "state."))}
    tensors |= {"mid.blocks_1.feats": np.zeros(0)}

    def last_block(mode, window):
        arch = config["arch"] | {"attn_mode": mode, "window_size": window}
        return Network("trellis_meshdec", tensors, config | {"arch": arch}).eager()["mid.blocks_1.feats"]

    everything = last_block("full", None)
    depth = CASES["trellis_meshdec"].depth("mid.blocks_1.feats", tensors, config)
    assert_close(last_block(mode, 64), everything, depth)
    assert mode == "full" or np.abs(last_block(mode, 4) - everything).max() > 0.1


def test_a_mode_of_attention_that_there_is_not():
    tensors, config = read(path_of("trellis_meshdec"))
    config["arch"]["attn_mode"] = "windowed"
    with pytest.raises(ValueError, match=r"attn_mode: expected full, swin, .*, given 'windowed'"):
        Network("trellis_meshdec", tensors, config).eager()
    config["arch"] |= {"attn_mode": "swin", "pe_mode": "rope"}
    with pytest.raises(ValueError, match="pe_mode: expected 'ape', given 'rope'"):
        Network("trellis_meshdec", tensors, config).eager()
