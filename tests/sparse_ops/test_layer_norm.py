"""`layer_norm`: every choice of arguments, its oracle, wrong input."""

import numpy as np
import pytest
import torch
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close
from tir_kernels.spec.layer_norm import naive


def arrays(batch: int = 1, rows: int = 40, channels: int = 37) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": features(rng, rows, channels),
        "weight": features(rng, channels),
        "bias": features(rng, channels),
        "scale": features(rng, batch, channels),
        "shift": features(rng, batch, channels),
        "batch_index": rng.integers(0, batch, rows).astype("int32"),
    }


def apply(given: dict[str, np.ndarray], **options) -> np.ndarray:
    return evaluate(lambda *args: op.layer_norm(**dict(zip(given, args, strict=True)), **options), *given.values())


def test_oracle_is_layer_norm():
    given = arrays()
    expected = torch.nn.functional.layer_norm(
        *(torch.from_numpy(given["x"]).double(), [37]),
        *(torch.from_numpy(given[name]).double() for name in ("weight", "bias")),
        eps=0.1,
    )
    out = naive(given["x"], given["weight"], given["bias"], eps=0.1)
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("weight",),
        ("bias", "shift"),
        ("scale", "shift"),
        ("weight", "bias", "scale"),
        ("batch_index",),  # without effect
        ("scale", "batch_index"),
        ("shift", "batch_index"),
    ],
    ids="-".join,
)
def test_arguments_left_out(names):
    given = {name: array for name, array in arrays(3 if "batch_index" in names else 1).items() if name in ("x", *names)}
    assert_close(apply(given, eps=0.5, activation="relu"), naive(**given, eps=0.5, activation="relu"), 37, dtype="float32")


def test_a_batch_index_out_of_range_is_named():
    given = arrays(2)
    given["batch_index"][5:7] = -1, 2
    with pytest.raises(ValueError, match=r"batch_index: row 5 is -1, expected 0 to 1"):
        apply(given)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scale": [2, 37]}, "scale: expected \\[1, 37\\] of float32"),  # no batch_index says which
        ({"weight": [36]}, "weight: expected \\[37\\] of float32"),
        ({"scale": [2, 37], "shift": [3, 37], "batch_index": [40]}, "shift: expected \\[2, 37\\] of float32"),
        ({"scale": [2, 37], "batch_index": [41]}, "batch_index: expected \\[40\\] of int32"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    given = {"x": [40, 37], **change}
    args = {
        name: relax.Var(name, relax.TensorType(shape, "int32" if name == "batch_index" else "float32"))
        for name, shape in given.items()
    }
    with pytest.raises(ValueError, match=rf"sparse_ops\.layer_norm: {message}"):
        relax.BlockBuilder().normalize(op.layer_norm(**args))
