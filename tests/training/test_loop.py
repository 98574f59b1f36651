"""The training loop: what an interrupt changes, which is nothing; and the whole command."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sam3d_tvm.tiny import TINY, TinySource
from training import loop
from training.all import QUICK, Recipe, _keep_recipe
from training.initial import waves
from training.loop import Rates, saved_weights, train


class Line(nn.Module):
    """One matrix for Muon, one vector for AdamW."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(9, 9)])

    def forward(self, x):
        return self.blocks[0](x)


def run(folder: Path, steps: int = 30, stop_at: int | None = None) -> list[str]:
    torch.manual_seed(0)
    net, lines = Line(), []

    def step(random, part):
        x = torch.randn(8, 9, generator=random.torch)
        if stop_at is not None and part * steps >= stop_at:
            raise KeyboardInterrupt
        loss = ((net(x) - x.flip(1)) ** 2).mean()
        loss.backward()
        return {"loss": loss.detach()}

    train(
        "line",
        folder,
        net,
        steps,
        step,
        lines.append,
        seed=3,
        rates=Rates(matrices=4e-2, rest=1e-2),
        tell_every=10,
        check=lambda net: "seen",
    )
    return lines


def test_an_interrupt_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)  # a state after every step
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(parts, stop_at=17)
    lines = run(parts)
    assert lines[0] == "line: goes on at step 17 of 30"
    assert (whole / "line.safetensors").read_bytes() == (parts / "line.safetensors").read_bytes()
    assert [file.name for file in parts.iterdir()] == ["line.safetensors"]


def test_it_learns_and_tells(tmp_path):
    lines = run(tmp_path, 300)
    first, last = (float(line.split("loss ")[1]) for line in (lines[1], [line for line in lines if "loss" in line][-1]))
    assert last < 0.2 * first
    assert lines[-1] == "line: step 300: seen"
    assert run(tmp_path) == []  # is done
    assert set(saved_weights(tmp_path, "line", "blocks.0.")) == {"weight", "bias"}


def test_positions_differ():
    found = waves(4, 3, 96)
    assert found.shape == (64, 96)
    assert torch.cdist(found, found).fill_diagonal_(9).min() > 0.3


def test_a_folder_of_another_recipe(tmp_path):
    _keep_recipe(tmp_path / "recipe.json", QUICK)
    _keep_recipe(tmp_path / "recipe.json", QUICK)
    with pytest.raises(ValueError, match="expected the recipe of this command, given another"):
        _keep_recipe(tmp_path / "recipe.json", Recipe())


def test_everything_from_nothing(tmp_path):
    """The whole command with a handful of objects and steps: weights that the pipeline takes."""
    command = [sys.executable, "-m", "training.all", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (
        f"structure_generator: step {QUICK.structure_generator} of {QUICK.structure_generator}"
        in (tmp_path / "log.txt").read_text()
    )
    source = TinySource(tmp_path / "weights")
    for name in TINY.models:
        for value in source.state(name).values():
            assert np.isfinite(np.asarray(value)).all()
