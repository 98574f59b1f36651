"""The reference in PyTorch and spconv: against upstream's results, and against the oracle where upstream has no batch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("spconv")

from sam3d_tvm.models import slat_generator as slat  # noqa: E402
from tests import DATA  # noqa: E402
from tests.golden import case_slat_flow  # noqa: E402
from tests.golden.runner import read  # noqa: E402
from tests.sam3d_tvm.slat_oracle import Oracle  # noqa: E402
from tests.sam3d_tvm.slat_reference import SlatReference  # noqa: E402
from tests.sam3d_tvm.tiny import CONFIG, normal, voxels  # noqa: E402
from tests.tolerance import assert_close  # noqa: E402


def velocity(model: SlatReference, *arrays: np.ndarray) -> np.ndarray:
    return model(*map(torch.from_numpy, arrays)).numpy()


def test_it_is_what_upstream_computes():
    tensors, values = read(DATA / "golden" / "slat_flow.safetensors")
    config = case_slat_flow.config_of(values)
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    model = SlatReference.of(config, state)
    coords, x, cond = tensors["in.coords"], tensors["in.x"][0], tensors["in.cond"]
    for out, t, tokens in (("y", "t", cond), ("y_t2", "t2", cond), ("y_cfg", "t", 0 * cond)):
        given = velocity(model, coords, x, tensors[f"in.{t}"], tokens)
        assert_close(given[None], tensors[f"out.{out}"], case_slat_flow.depth(f"out.{out}", tensors, values), name=out)


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (90, 3)])
def test_it_is_what_the_oracle_computes(rows, batch):
    state = {name: np.asarray(value) for name, value in slat.seeded_state(CONFIG, 1).items()}
    coords, x, cond = voxels(rows, 1, batch), normal(2, rows, CONFIG.in_channels), normal(3, batch, 4, CONFIG.cond_channels)
    times = np.linspace(1, 900, batch, dtype=np.float32)
    given = velocity(SlatReference.of(CONFIG, state), coords, x, times, cond)
    depth = case_slat_flow.depths_of(CONFIG, coords, 4, 900.0)["y"]
    assert_close(given, Oracle(CONFIG, state).velocity(coords, x, times, cond), depth, dtype=np.float32)
