"""The model that comes with the package: its files as a source of artifacts, what is refused, and the preset that means it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sam3d_tvm.artifacts import Artifacts, SeededSource, begin, compile_artifacts, compile_model
from sam3d_tvm.compile_processes import compile_side_by_side
from sam3d_tvm.models import MODELS
from sam3d_tvm.pipeline import Pipeline
from sam3d_tvm.presets import preset_source
from sam3d_tvm.tiny import TINY, TinySource, save_weights, shipped
from tests.sam3d_tvm.tiny_pipeline import copied_artifacts
from tests.sam3d_tvm.tiny_weights import arrays, write_weights

SMALL = "slat_decoder_gs"  # the model that is compiled here


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of weights that nobody writes into."""
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def own(tmp_path):
    """A folder of weights of one model, for a test to change."""
    save_weights(tmp_path / "own", SMALL, arrays(SMALL))
    return tmp_path / "own"


def test_weights_are_those_that_were_written_in_float32(weights):
    source = TinySource(weights)
    for name in TINY.models:
        found, expected = source.state(name), arrays(name)
        assert found.keys() == expected.keys() == MODELS[name].shapes(getattr(TINY, name)).keys()
        for key, value in found.items():
            assert value.dtype == np.float32 and np.asarray(value).dtype == np.float32
            np.testing.assert_array_equal(np.asarray(value), expected[key].astype(np.float32))


def test_files_are_of_float16_and_equal_weights_give_equal_bytes(own, tmp_path):
    file = TinySource(own).file(SMALL)
    assert {value.dtype for value in load_file(file).values()} == {np.dtype(np.float16)}
    shuffled = dict(reversed(arrays(SMALL).items()))
    assert save_weights(tmp_path / "other", SMALL, shuffled).read_bytes() == file.read_bytes()


def test_identity_is_what_files_hold(own, tmp_path):
    other = save_weights(tmp_path / "other", SMALL, arrays(SMALL))
    assert TinySource(own).identity(SMALL) == TinySource(other.parent).identity(SMALL)
    save_weights(other.parent, SMALL, arrays(SMALL, seed=1))
    assert TinySource(own).identity(SMALL) != TinySource(other.parent).identity(SMALL)
    labels = {TinySource(folder).label("float32") for folder in (own, other.parent, None)}
    assert len(labels) == 3 and "preset-tiny-float32" in labels


def changed(state, how):
    name = next(iter(state))
    if how == "missing":
        del state[name]
    elif how == "more":
        state["another"] = state[name]
    elif how == "shape":
        state[name] = state[name].reshape(1, *state[name].shape)
    elif how == "infinite":
        state[name] = np.full_like(state[name], np.inf)
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "missing, expected"),
        ("more", "another: not a parameter of this model"),
        ("shape", "expected float32"),
        ("infinite", "expected finite weights"),
    ],
)
def test_files_that_do_not_fit_are_named(own, how, message):
    file = TinySource(own).file(SMALL)
    save_file(changed(arrays(SMALL), how), file)
    with pytest.raises(ValueError, match=f"{file.name}.*{message}"):
        [np.asarray(value) for value in TinySource(own).state(SMALL).values()]


@pytest.mark.parametrize("ask", [TinySource.state, TinySource.identity])
def test_files_that_are_missing_or_cut_short(own, ask):
    with pytest.raises(ValueError, match=r"expected ss_decoder\.safetensors of the preset 'tiny' in '.*own', given none"):
        ask(TinySource(own), "ss_decoder")
    file = TinySource(own).file(SMALL)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"weights '.*{file.name}'"):
        TinySource(own).state(SMALL)


@pytest.mark.parametrize(
    ("how", "message"),
    [("missing", "missing, expected"), ("more", "not a parameter"), ("infinite", f"{SMALL}: expected weights that are finite")],
)
def test_weights_that_are_not_written(tmp_path, how, message):
    with pytest.raises(ValueError, match=message):
        save_weights(tmp_path / "none", SMALL, changed(arrays(SMALL), how))
    assert not (tmp_path / "none").exists()


def test_weights_beyond_float16_are_not_written(tmp_path):
    state = {key: value.astype(np.float32) for key, value in arrays(SMALL).items()}
    key = next(iter(state))
    state[key] = np.full_like(state[key], 1e5)
    with pytest.raises(ValueError, match=f"finite in float16, given {key} with others"):
        save_weights(tmp_path / "none", SMALL, state)


def test_artifacts_of_it_are_not_of_random_weights(weights, tmp_path):
    folder = begin(TinySource(weights), tmp_path / "artifacts")
    value = json.loads((folder / "pipeline.json").read_text())
    assert value["random_weights"] is False and value["config"] == json.loads(json.dumps(TINY.to_json()))
    with pytest.raises(ValueError, match="not compiled yet"):
        Artifacts(folder)


def test_models_compiled_side_by_side(tmp_path):
    """Code of other weights is there, so that these are only packed; by two processes, to the bytes that one makes."""
    folder, told = copied_artifacts(tmp_path / "several"), []
    source = SeededSource("random-tiny", 1)
    compile_artifacts(source, folder, on_model=lambda *given: told.append(given), processes=2)
    names, count = list(source.config.models), len(source.config.models)
    assert told == [(names[0], 0, count), *((told[i][0], i, count) for i in range(1, count + 1)), ("", count, count)]
    assert sorted(name for name, *_ in told[1:-1]) == sorted(names)
    compile_model(source, alone := copied_artifacts(tmp_path / "alone"), SMALL)
    for file in (alone / SMALL).iterdir():
        assert file.read_bytes() == (folder / SMALL / file.name).read_bytes(), file.name


def test_what_a_process_did_not_do_and_why_reaches_who_asked(tmp_path):
    with pytest.raises(ValueError, match=r"ss_decoder\.safetensors .*given none"):
        compile_side_by_side(TinySource(tmp_path), tmp_path / "artifacts", ["ss_decoder"], "float32", None, 1, print)


def test_what_is_wrong_with_weights_is_said_with_the_file(own, tmp_path):
    file = TinySource(own).file(SMALL)
    save_file(changed(arrays(SMALL), "missing"), file)
    with pytest.raises(ValueError, match=rf"{SMALL} in {file.name}: .*missing, expected"):
        compile_model(TinySource(own), tmp_path / "artifacts", SMALL)


def test_presets_by_name():
    trained = preset_source("tiny")
    assert isinstance(trained, TinySource) and trained.folder == shipped() and trained.config == TINY
    for name in ("random-tiny", "full"):
        source = preset_source(name, 3, depth_model=True)
        assert isinstance(source, SeededSource) and source.config.depth_model is not None
        assert source.label("float32") == f"preset-{name}-3-float32"
    assert preset_source("random-tiny").config.depth_model is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "huge"}, "preset: expected one of 'tiny', 'random-tiny', 'full', given 'huge'"),
        ({"depth_model": True}, "depth_model: expected none with preset 'tiny'"),
        ({"seed": 3}, "seed: expected none with preset 'tiny', whose weights are trained, given 3"),
        ({"name": "random-tiny", "seed": -1}, "seed: expected an integer of at least 0"),
    ],
)
def test_presets_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        preset_source(**{"name": "tiny", **options})


def test_from_preset_means_it(monkeypatch):
    seen = []
    monkeypatch.setattr("sam3d_tvm.pipeline.compile_artifacts", lambda *given: seen.append(given))
    Pipeline.from_preset()
    Pipeline.from_preset("random-tiny")
    (source, folder, *_, processes), (random, *_, one) = seen
    assert isinstance(source, TinySource) and folder.name == "preset-tiny-float32" and processes >= 1
    assert isinstance(random, SeededSource) and one == 1


def test_a_process_that_dies_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("sam3d_tvm.compile_processes.COMMAND", "import sys; sys.exit('no memory')")
    with pytest.raises(RuntimeError, match="its process ended: no memory"):
        compile_side_by_side(TinySource(tmp_path), tmp_path, [SMALL, SMALL], "float32", None, 2, print)
