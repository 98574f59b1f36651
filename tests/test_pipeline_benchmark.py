"""The benchmark of the pipeline: what is extrapolated, what is asked for, and that every stage runs, at tiny sizes.

No test here says how fast anything is.
"""

import io
import itertools
import json
import types

import pytest

pytest.importorskip("spconv")

import torch
from rich.console import Console
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from benchmarks import pipeline, pipeline_reference
from sam3d_tvm import bench
from sam3d_tvm.config import Sampling, preset
from sam3d_tvm.occupancy import demo_occupancy
from sam3d_tvm.quality import Quality, plan
from tests.sam3d_tvm import slat_reference
from tests.sam3d_tvm.tiny_pipeline import tiny_artifacts

GIB = 1 << 30


def row(stage: str, seconds: float, peak: int = GIB, **facts) -> dict:
    return {"stage": stage, "total_seconds": seconds, "peak_bytes": peak, "measured": "whole", **facts}


def console() -> Console:
    return Console(file=io.StringIO(), width=140)


@pytest.fixture
def faked(monkeypatch):
    """No processes: every stage of ours takes 2 s and of the reference 7 s; latents of the reference fail if told so."""
    broken = []

    def reference(stage, precision, config, blocks, voxels):
        if stage in broken:
            raise RuntimeError("exit code -9: killed")
        return row(stage, 7.0, 3 * GIB)

    monkeypatch.setattr(pipeline, "compiled", lambda given, console: tiny_artifacts())
    monkeypatch.setattr(pipeline, "ours", lambda folder, voxels, quality: [row(stage, 2.0) for stage in pipeline.STAGES])
    monkeypatch.setattr(pipeline, "reference", reference)
    ready = {"imported": [1.0, 1.0, 9.0], "ss_condition_embedder": [2.0] * 3, "ss_generator": [6.0, 4.0, 4.5]}
    monkeypatch.setattr(pipeline, "start_ups", lambda folder: ready)
    return broken


def test_blocks_left_out_are_added_in_time_and_memory(monkeypatch):
    """By hand: 2 s, and 3 s for each of 24 blocks; 25 steps, of which 13 have guidance."""
    clock = [0.0]
    monkeypatch.setattr(pipeline_reference, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(pipeline_reference, "peak_bytes", lambda: 10_000)
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))  # of 4 (4 x 4 + 4) bytes each

    def call():
        clock[0] += 2.0 + 3.0 * len(model.blocks)

    found = pipeline_reference.sampled(model, call, 24, Sampling(25, 1.0, 1.0))
    assert found["seconds"] == {1: [5.0] * 3, 3: [11.0] * 3}
    assert (found["velocity_seconds"], found["block_seconds"], found["calls"]) == (74.0, 3.0, 38)
    assert found["total_seconds"] == 38 * 74.0
    assert (found["measured_peak_bytes"], found["peak_bytes"]) == (10_000, 10_000 + 21 * 80)
    assert found["measured"] == "1 of 38 calls, 1 and 3 of 24 blocks"


@pytest.mark.parametrize("blocks", [1, 2])
def test_nothing_is_extrapolated_where_all_blocks_are_there(monkeypatch, blocks):
    clock = itertools.count()
    monkeypatch.setattr(pipeline_reference, "time", types.SimpleNamespace(perf_counter=lambda: float(next(clock))))
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(blocks))
    found = pipeline_reference.sampled(model, lambda: None, blocks, Sampling(1, 1.0, 1.0))
    assert found["velocity_seconds"] == 1.0 and found["peak_bytes"] == found["measured_peak_bytes"]


@pytest.mark.parametrize("stage", pipeline_reference.STAGES)
@pytest.mark.parametrize("precision", pipeline.RATIOS)
def test_every_stage_of_the_reference_runs(monkeypatch, precision, stage):
    monkeypatch.setattr(slat_reference, "one_thread", slat_reference.one_thread)  # put back when the test ends
    monkeypatch.setattr(pipeline_reference, "ROUNDS", 1)
    dtypes = set()

    def note(module, _, result):
        if isinstance(module, nn.Linear | nn.Conv3d):
            dtypes.add(result.dtype)

    with torch.random.fork_rng(), register_module_forward_hook(note):
        found = pipeline_reference.measured(stage, precision, preset("random-tiny"), 2, demo_occupancy()[:50])
    assert found["stage"] == stage and found["total_seconds"] > 0
    assert found["peak_bytes"] is None or found["peak_bytes"] > 1 << 20
    narrow = precision == "bfloat16" and stage != "voxels"  # its convolutions stay float32
    assert (torch.bfloat16 in dtypes) == narrow and dtypes
    calls = {"structure": 15, "latents": 13}  # 8 steps, of which 7 and 5 have guidance
    assert found.get("calls") == calls.get(stage)
    assert stage in pipeline.STAGES


@pytest.mark.parametrize(
    ("quality", "seconds"),
    [
        ("exact", 12.0 + 17 * 4 + 5 * 2),  # 25 evaluated, of which 19 with guidance
        ("normal", 12.0 + 4 * 4 + 3 * 2),  # 10, of which 6
        ("draft", 12.0 + 1 * 2),  # 4, none of them
    ],
)
def test_only_what_is_evaluated_is_counted(quality, seconds):
    """By hand, of three steps: the first takes 5 s with what comes before it, one with guidance 4 s and one without 2 s."""
    generator = plan(preset("full"), quality).structure
    clock, counts = bench._Clock(), generator.at_most()
    clock._times = [1.0, 6.0, 10.0, 12.0]
    assert clock.extrapolated(12.0, counts.conditional, counts.unconditional) == seconds
    measured = bench.few(generator)
    assert measured.steps == 3 and bench.guided_steps(measured) == (0 if quality == "draft" else 2)


def test_a_quality_that_only_a_run_can_tell_is_refused():
    with pytest.raises(ValueError, match="quality: expected one whose evaluations are known beforehand, given Saving"):
        bench.measure(tiny_artifacts(), quality=Quality(latents_cache="error"))


def test_sides_are_beside_each_other(faked, tmp_path):
    shown, file = console(), tmp_path / "out.json"
    assert pipeline.main(["--size", "full", "--json", str(file)], shown) == 0
    report, text = json.loads(file.read_text()), shown.file.getvalue()
    assert [found["stage"] for found in report["ours"]] == list(pipeline.STAGES)
    assert [found["stage"] for found in report["reference"]] == list(pipeline.STAGES[1:])  # it has no image
    assert report["in_all"]["ours"]["total_seconds"] == 16.0 and report["in_all"]["reference"]["total_seconds"] == 49.0
    assert report["voxels"] == 19_072 == len(demo_occupancy())
    assert "float32: 3.06x the reference in all, asked for 3.0x: reached" in text
    assert "our peak: 1.00 GiB, asked for at most 8: reached" in text
    assert "start-up: 4.5 s, asked for at most 5 s: reached" in text
    assert "data race" in text and "extrapolation" in text


def test_what_fails_leaves_the_others_be_and_gives_no_total(faked):
    faked.append("latents")
    shown = console()
    assert pipeline.main(["--precision", "bfloat16", "--stages", "voxels,latents"], shown) == 1
    text = shown.file.getvalue()
    assert "FAILED reference: latents: exit code -9" in text and "3.50x" in text
    assert "the reference in all" not in text and "autocast" in text
    assert pipeline.main(["--precision", "bfloat16", "--stages", "voxels"], shown) == 0
    assert "bfloat16: 3.50x the reference in all, asked for 6.0x: not reached" in shown.file.getvalue()


def test_options_that_make_no_sense(capsys):
    for arguments, message in (
        (["--stages", "voxels,mash"], "given 'mash'"),
        (["--blocks", "1"], "expected at least 2"),
        (["--skip-reference", "--only-reference"], "not allowed with"),
    ):
        with pytest.raises(SystemExit):
            pipeline.parse(arguments)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "random-tiny", "--precision", "bfloat16"], "expected float32, as the artifacts have, given bfloat16"),
        (["--size", "full"], "expected 1024 channels of size full, given a structure flow of 24"),
    ],
)
def test_artifacts_are_what_was_asked_for(options, message):
    given = pipeline.parse(["--artifacts", str(tiny_artifacts().folder), *options])
    with pytest.raises(ValueError, match=message):
        pipeline.compiled(given, console())


def test_a_process_tells_its_last_words():
    assert [line for _, line in pipeline.printed("-c", "print(1); print(2)")] == ["1", "2"]
    with pytest.raises(RuntimeError, match="exit code 1: ValueError: too small"):
        pipeline.printed("-c", "raise ValueError('too small')")


def test_both_sides_run_in_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "START_UPS", 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run beside
    monkeypatch.setitem(pipeline.VOXELS, "random-tiny", 50)
    file, shown = tmp_path / "out.json", console()
    arguments = ["--size", "random-tiny", "--artifacts", str(tiny_artifacts().folder), "--stages", "structure"]
    assert pipeline.main([*arguments, "--json", str(file)], shown) == 0, shown.file.getvalue()
    report = json.loads(file.read_text())
    (mine,), (theirs,) = report["ours"], report["reference"]
    assert mine["measured"] == "3 of 8 steps" and mine["total_seconds"] > mine["seconds"] > 0
    assert theirs["calls"] == 15 and theirs["total_seconds"] > 0
    ready = [seconds for (seconds,) in report["start_up_seconds"].values()]
    assert ready == sorted(ready) and list(report["start_up_seconds"]) == ["imported", "ss_condition_embedder", "ss_generator"]
