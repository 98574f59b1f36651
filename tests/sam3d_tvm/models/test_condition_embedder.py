"""The condition embedders: modules against torch's own functions, the compiled tokens against the modules, bad input.

The golden cases `dino`, `point_patch_embed` and `embedder_fuser` compare them with upstream's results.
"""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch

from sam3d_tvm.models.condition_embedder import (
    DINO_PRESETS,
    FUSER_PRESETS,
    POINT_PATCH_PRESETS,
    ConditionEmbedder,
    Embedder,
    EmbedderFuserConfig,
    fuser_config,
)
from sam3d_tvm.models.condition_embedder.dinov2_torch import Dino
from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser
from sam3d_tvm.models.condition_embedder.point_patch_embed_torch import PointPatchEmbed
from sam3d_tvm.models.example_torch import seeded
from sparse_ops.deploy.from_torch import port_component
from sparse_ops.transform import recognize
from tests.golden import case_embedder_fuser, case_point_patch_embed
from tests.sparse_ops.transform.graphs import arguments, calls
from tests.sparse_ops.transform.test_pipeline import ours
from tests.sparse_ops.transform.torch_models import imported
from tests.tolerance import assert_close

DINO = replace(DINO_PRESETS["tiny"], depth=1)
POINTS = replace(POINT_PATCH_PRESETS["tiny"], embed_dim=DINO.embed_dim, mlp_ratio=DINO.mlp_ratio)  # shares its kernels
CONFIG = fuser_config(DINO, POINTS)
POINTMAPS = ("pointmap", "rgb_pointmap")
DEPTH = case_embedder_fuser.depths_of(CONFIG)["tokens"]


@cache
def fuser() -> EmbedderFuser:
    return seeded(partial(EmbedderFuser, CONFIG), seed=1)


@cache
def compiled():
    return port_component(fuser(), fuser().inputs(), "condition")


@pytest.fixture(scope="module")
def embedder() -> ConditionEmbedder:
    return ConditionEmbedder(compiled(), CONFIG)


def images(batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """One of every input, each of another size; a quarter of the pixels of point maps have no point."""
    random, found = np.random.default_rng(seed), {}
    for part in CONFIG.embedders:
        for name, _ in part.inputs:
            shape = (batch, part.channels, part.model.input_size + 7 * len(found), part.model.input_size)
            found[name] = random.random(shape, np.float32)
            if name in POINTMAPS:
                found[name][np.broadcast_to(random.random((batch, 1, *shape[2:])) < 0.25, shape)] = np.nan
    return found


def expected(given: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return fuser()(**{name: torch.from_numpy(image) for name, image in given.items()}).numpy()


def test_sizes_of_the_real_models():
    ss, slat = (FUSER_PRESETS[style]["full"] for style in ("ss", "slat"))
    assert (ss.tokens, slat.tokens, ss.hidden, ss.channels, ss.groups) == (7528, 5496, 2816, 1024, {"cropped": 0, "full": 1})
    assert list(ss.rows) == ["image", "rgb_image", "mask", "rgb_image_mask", *POINTMAPS]
    assert list(ss.rows.values())[-2:] == [slice(5480, 6504), slice(6504, 7528)]
    assert slat.rows["rgb_image"] == slice(1374, 2748)
    with torch.device("meta"):
        module = Dino(DINO_PRESETS["full"])
    assert sum(parameter.numel() for parameter in module.parameters()) == 304_372_736  # of dinov2_vitl14_reg


def test_the_short_way_of_point_maps():
    module = seeded(partial(PointPatchEmbed, POINTS))
    xyz = torch.from_numpy(images()["pointmap"])
    depth = case_point_patch_embed.depths_of(POINTS)["tokens"]
    assert_close(module.embed(xyz).numpy(), module(xyz).numpy(), depth)


def test_blocks_are_recognized():
    """Of a transformer block are left two norms, six linear layers (q, k and v are three), and attention."""
    config = replace(DINO, depth=3)
    after = recognize()(imported(seeded(partial(Dino, config)), (torch.zeros(1, 3, 56, 56),), whole=True))
    found = ours(after)
    assert (found["layer_norm"], found["attention"], found["conv3d"]) == (2 * 3 + 1, 3, 1)
    linears = [(arguments(call), str(call.attrs["activation"])) for call in calls(after, "sparse_ops.linear")]
    rest = [({"bias", "gate", "residual"}, "none"), ({"bias"}, "gelu"), ({"bias", "gate", "residual"}, "none")]
    assert linears[-18:] == 3 * [*[({"bias"}, "none")] * 3, *rest]
    assert found["linear"] <= 18 + 1  # one resizes the positions, once for the weights


def test_tokens_are_those_of_the_module(embedder):
    given = images(batch=2)
    tokens = embedder.tokens(given)
    assert tokens.shape == (2, CONFIG.tokens, CONFIG.channels)
    assert_close(tokens, expected(given), DEPTH)
    again = embedder.tokens({name: image[1:] for name, image in given.items()})
    np.testing.assert_array_equal(again, tokens[1:])  # elements of a batch do not see each other


def test_every_input_has_its_rows(embedder):
    given = images()
    base = embedder.tokens(given)
    for name, rows in embedder.rows.items():
        other = embedder.tokens(given | {name: given[name] * np.float32(0.5)})
        changed = (other != base).any(axis=(0, 2))
        assert changed[rows].all() and changed.sum() == rows.stop - rows.start


def test_dropped_inputs_are_zeros_and_not_computed(embedder, monkeypatch):
    given = images()
    base = embedder.tokens(given)
    drop = ("rgb_image", *POINTMAPS)
    monkeypatch.delitem(embedder._functions, "pointmap")
    kept = {name: image for name, image in given.items() if name not in POINTMAPS}
    tokens = embedder.tokens(kept, drop)
    for name, rows in embedder.rows.items():
        np.testing.assert_array_equal(tokens[:, rows], 0 * base[:, rows] if name in drop else base[:, rows])
    assert not embedder.tokens({}, drop=embedder.rows).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_without_a_point_do_not_leak(embedder, value):
    """Whatever marks them, and whatever else such a pixel holds."""
    given = images()
    missing = np.isnan(given["pointmap"])
    marked = np.where(missing, np.float32(7), given["pointmap"])
    marked[:, 1] = np.where(missing[:, 1], value, marked[:, 1])
    tokens = embedder.tokens(given | {"pointmap": marked.astype(np.float32)})
    np.testing.assert_array_equal(tokens, embedder.tokens(given))
    assert np.isfinite(tokens).all()


def test_a_group_out_of_range_reads_nothing_else():
    """Compiled code does not check where it reads."""
    image = torch.zeros(1, 3, 56, 56)
    results = [compiled()["embed_image"](image, torch.tensor([group])) for group in (-5, 0, 2, 10**9)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[2], results[3])


BAD_INPUT = {
    "images: rgb_image, mask missing; name it in drop": lambda x: (
        {n: v for n, v in x.items() if n not in ("rgb_image", "mask")},
        (),
    ),
    "images: expected names among image, .*, given depth too": lambda x: (x | {"depth": x["mask"]}, ()),
    "drop: expected names among image, .*, given depth too": lambda x: (x, ("mask", "depth")),
    "drop: expected names, given the string 'mask'": lambda x: (x, "mask"),
    "images: expected arrays by name, given list": lambda x: ([x["mask"]], ()),
    r"mask: expected float32 \[B, 1, H, W\], given float32 \[1, 3, ": lambda x: (x | {"mask": x["image"]}, ()),
    r"image: expected float32 \[B, 3, H, W\], given float64 \[1, 3, ": lambda x: (x | {"image": x["image"].astype(float)}, ()),
    r"image: expected float32 \[B, 3, H, W\], given float32 \[3, ": lambda x: (x | {"image": x["image"][0]}, ()),
    r"image: expected float32 \[B, 3, H, W\], given float32 \[1, 3, 0": lambda x: (x | {"image": x["image"][:, :, :0]}, ()),
    r"image: expected a numpy array float32 \[B, 3, H, W\], given Tensor": lambda x: (
        x | {"image": torch.zeros(1, 3, 56, 56)},
        (),
    ),
    "image: expected finite values, given 1 that are not": lambda x: (
        x | {"image": np.where(np.arange(3)[:, None, None] + np.arange(56) + np.arange(56)[:, None], x["image"], np.nan)},
        (),
    ),
    "images: expected one batch size, given 1 of image, 2 of rgb_image": lambda x: (
        x | {"rgb_image": images(2)["rgb_image"]},
        (),
    ),
}


@pytest.mark.parametrize("message", BAD_INPUT)
def test_bad_input(embedder, message):
    given, drop = BAD_INPUT[message](images())
    with pytest.raises(ValueError, match=message):
        embedder.tokens(given, drop)


def test_a_dropped_input_is_checked_too(embedder):
    with pytest.raises(ValueError, match=r"pointmap: expected float32 \[B, 3, H, W\]"):
        embedder.tokens(images() | {"pointmap": np.zeros(3)}, drop=POINTMAPS)


def test_a_component_of_another_config():
    other = replace(CONFIG, embedders=(replace(CONFIG.embedders[0], model=replace(DINO, input_size=70)), *CONFIG.embedders[1:]))
    with pytest.raises(ValueError, match=r"component: expected input \[1, 3, 70, 70\] of embed_image, given \[1, 3, 56, 56\]"):
        ConditionEmbedder(compiled(), other)
    prenorm = Embedder("image", replace(DINO, prenorm_features=True), (("image", "cropped"),))
    with pytest.raises(ValueError, match=r"component: expected output \[1, 21, 32\] of embed_image, given \[1, 17, 32\]"):
        ConditionEmbedder(compiled(), EmbedderFuserConfig((prenorm,)))


def test_wrong_configs():
    for message, make in {
        "input_size: expected a multiple of patch_size 14, given 60": lambda: replace(DINO, input_size=60),
        "embed_dim: expected a multiple of num_heads 3, given 32": lambda: replace(DINO, num_heads=3),
        "depth: expected an integer of at least 1, given 0": lambda: replace(DINO, depth=0),
        "num_register_tokens: expected an integer of at least 0, given -1": lambda: replace(DINO, num_register_tokens=-1),
        "mlp_ratio: expected a positive number, given 0": lambda: replace(DINO, mlp_ratio=0),
        "input_size: expected a multiple of patch_size 8, given 30": lambda: replace(POINTS, input_size=30),
        "remap_output: expected one of 'linear', given 'exp'": lambda: replace(POINTS, remap_output="exp"),
        "kind: expected one of 'image', 'mask', 'pointmap', given 'depth'": lambda: Embedder("depth", DINO, ()),
        "model: expected a PointPatchConfig for kind 'pointmap'": lambda: Embedder("pointmap", DINO, ()),
        "model: expected a DinoConfig for kind 'mask'": lambda: Embedder("mask", POINTS, ()),
        "embedders: expected kinds that differ, and one at least, given none": lambda: EmbedderFuserConfig(()),
        "embedders: expected inputs that differ, and one at least, given a, a": lambda: EmbedderFuserConfig(
            (Embedder("image", DINO, (("a", "x"), ("a", "y"))),)
        ),
        "projection_net_hidden_dim_multiplier: expected a positive number": lambda: replace(
            CONFIG, projection_net_hidden_dim_multiplier=-1
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            make()
