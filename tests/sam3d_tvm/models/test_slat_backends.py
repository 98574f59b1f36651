"""The sparse convolutions of the structured-latent generator on the dense grid and in torch; its bfloat16 and float16."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sam3d_tvm.models import slat_generator as slat
from sam3d_tvm.models.slat_generator import SlatGenerator
from tests import DATA
from tests.golden import case_slat_flow
from tests.golden.runner import read
from tests.sam3d_tvm.tiny import CONFIG, generator, normal, voxels
from tests.tolerance import assert_close

GOLDEN = DATA / "golden" / "slat_flow.safetensors"


@pytest.mark.parametrize("sparse_backend", ["dense", "torch"])
def test_every_backend_is_upstream(sparse_backend):
    """The golden case runs the native one."""
    if sparse_backend == "torch":
        pytest.importorskip("torch")
    tensors, config = read(GOLDEN)
    found = case_slat_flow.run(tensors, config, sparse_backend=sparse_backend)
    for name, value in found.items():
        depth, scale = case_slat_flow.depth(name, tensors, config), case_slat_flow.scale(name, tensors, config)
        assert_close(value, tensors[name], depth, scale=scale, name=name)
    assert found.keys() == {name for name in tensors if name.startswith(("mid.", "out."))}


@pytest.mark.parametrize("sparse_backend", ["dense", "torch"])
def test_other_sizes(sparse_backend):
    """With the modules that the test before has compiled."""
    if sparse_backend == "torch":
        pytest.importorskip("torch")
    config = case_slat_flow.config_of(read(GOLDEN)[1])
    model, native = (
        SlatGenerator(config, slat.seeded_state(config, 0), sparse_backend=name) for name in (sparse_backend, "native")
    )
    for rows, batch in ((0, 1), (1, 1), (120, 1), (120, 2)):
        coords, cond = voxels(rows, rows, batch), normal(1, batch, 3, config.cond_channels)
        if sparse_backend == "dense" and batch > 1:
            with pytest.raises(ValueError, match="cond: expected one batch element with the dense sparse backend, given 2"):
                model.prepare(coords, cond)
            continue
        x = normal(2, rows, config.in_channels)
        given, expected = (each.velocity(x, 700.0, each.prepare(coords, cond)) for each in (model, native))
        assert_close(given, expected, case_slat_flow.depths_of(config, coords, 3, 1.0)["y"])


def test_dense_grids_refuse_repeated_voxels():
    config = case_slat_flow.config_of(read(GOLDEN)[1])
    model = SlatGenerator(config, slat.seeded_state(config, 0), sparse_backend="dense")
    coords, cond = voxels(4).repeat(2, 0), normal(1, 1, 3, config.cond_channels)
    with pytest.raises(ValueError, match="coords: row 1 repeats the coordinates of row 0"):
        model.velocity(normal(2, 8, config.in_channels), 1.0, model.prepare(coords, cond))


def test_bad_options():
    with pytest.raises(ValueError, match="sparse_backend: expected one of 'native', 'dense', 'torch', given 'cuda'"):
        slat.compile_model(CONFIG, sparse_backend="cuda")
    with pytest.raises(ValueError, match=r"precision: expected one of 'float32', .*'int8', 'int7', given 'int4'"):
        slat.compile_model(CONFIG, precision="int4")


def test_only_the_torch_backend_needs_torch():
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from sam3d_tvm.models import slat_generator as slat\n"
        "slat.compile_model(slat.PRESETS['tiny'], sparse_backend='torch')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert "ImportError: sparse_ops.torch: needs torch, which the extra 'torch' installs" in done.stderr


@pytest.mark.parametrize(("precision", "share"), [("bfloat16", 0.02), ("float16", 0.0025)])
def test_narrow_types_are_close_to_float32(precision, share):
    """Within 2% of the velocity, as all of the residual stream is rounded, or an eighth with three bits more; it is rounded."""
    narrow = SlatGenerator.from_preset("tiny", seed=0, precision=precision)
    for rows, batch in ((0, 1), (1, 1), (150, 2)):
        coords, cond, x = voxels(rows, 1, batch), normal(2, batch, 5, CONFIG.cond_channels), normal(3, rows, CONFIG.in_channels)
        plans = [model.prepare(coords, cond) for model in (narrow, generator())]
        for keys, _ in plans[0].conditional.context:
            assert keys.dtype == precision
        for conditional in (True, False):
            given = narrow.velocity(x, 300.0, plans[0], conditional)
            expected = generator().velocity(x, 300.0, plans[1], conditional)
            assert given.dtype == np.float32 and given.shape == expected.shape
            error = np.linalg.norm(given - expected) / max(np.linalg.norm(expected), 1)
            assert error < share and (rows == 0 or error > 1e-4)
