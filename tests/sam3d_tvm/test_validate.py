"""The protocol of the port: what it measures, and that it fails when something is wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sam3d_tvm import cli
from sam3d_tvm.models.structure_decoder import network_torch
from sam3d_tvm.validate import BOUNDS, Verdict, relative_errors, validate
from sparse_ops.deploy.from_torch import port_component

GOOD = Verdict("some", "tiny", "float32", True, 1e-5, 1e-4, 1e-6, 1e-5, 0.3, 0.1)


def test_verdict():
    assert GOOD.ok
    assert GOOD.ratio == pytest.approx(3.0)
    for wrong in ({"shapes_equal": False}, {"max_error": 2e-4}, {"relative_l2": 2e-5}, {"max_error": np.nan}):
        assert not replace(GOOD, **wrong).ok
    assert replace(GOOD, max_error=np.nan).as_json()["max_error"] is None


def test_relative_errors():
    assert relative_errors(np.float32([3, 4.5]), np.float32([3, 4])) == pytest.approx((0.125, 0.1))
    assert relative_errors(np.zeros(3, "f4"), np.zeros(3, "f4")) == (0.0, 0.0)
    assert relative_errors(np.ones(3, "f4"), np.zeros(3, "f4"))[0] == 1.0
    assert relative_errors(np.zeros((0, 3), "f4"), np.zeros((0, 3), "f4")) == (0.0, 0.0)


@pytest.fixture(scope="module")
def compiled_once():
    """One compilation for all tests that take this: an example has the same weights each time."""
    made = {}

    def port(module, inputs, name, **options):
        if name not in made:
            made[name] = port_component(module, inputs, name, **options)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparse_ops.deploy.from_torch.port_component", port)
        yield made


def test_a_component_passes_and_prints(compiled_once, capsys):
    assert cli.main(["validate", "--component", "structure_decoder", "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)
    assert verdict["ok"]
    assert verdict["component"] == "structure_decoder"
    assert verdict["max_error"] < verdict["max_error_bound"] == BOUNDS["float32"][0]
    assert verdict["relative_l2"] < verdict["relative_l2_bound"] == BOUNDS["float32"][1]
    assert min(verdict["torch_seconds"], verdict["seconds"]) > 0
    assert list(compiled_once) == ["structure_decoder"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda logits: logits * 1.001,
        lambda logits: logits[..., :-1],
        lambda logits: torch.full_like(logits, torch.nan),
    ],
    ids=["values", "shape", "NaN"],
)
def test_a_wrong_result_fails(compiled_once, harm, capsys, monkeypatch):
    example = network_torch.example

    def harmed(size):
        good = example(size)
        return replace(good, reference=lambda: {"logits": harm(good.reference()["logits"])})

    monkeypatch.setattr(network_torch, "example", harmed)
    assert cli.main(["validate", "--component", "structure_decoder"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--component", "dino"], "component: expected one of 'moge', 'dinov2'"),
        (["--size", "huge"], "size: expected one of 'tiny', 'full', given 'huge'"),
        (["--precision", "int4"], "precision: expected one of 'float32', 'bfloat16', 'float16', 'int8', 'int7', given 'int4'"),
        (["--threads", "0"], "threads: expected an integer of at least 1"),
    ],
)
def test_bad_options(options, message, capsys):
    assert cli.main(["validate", *options]) == 2
    assert message in capsys.readouterr().err


def test_without_torch(monkeypatch):
    monkeypatch.setattr("sam3d_tvm.validate.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="torch: expected to be installed"):
        validate()
