"""The depth model: photos of any shape through one component, what it refuses, and what stays float32."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from sam3d_tvm.models.condition_embedder.network import NETWORK as EMBEDDERS
from sam3d_tvm.models.moge import PRESETS, DepthModel, MogeConfig
from sam3d_tvm.models.moge.network import NETWORK
from sam3d_tvm.models.moge.network_torch import MoGeModel
from sam3d_tvm.models.moge.run import arguments_of, resized_with_antialias, shrunk, sizes_of
from sparse_ops.deploy.from_torch import port_component
from sparse_ops.deploy.manifest import Manifest
from tests import DATA
from tests.golden import case_moge_model, case_outliers
from tests.golden.runner import read

TINY = PRESETS["tiny"]
MODEL = DATA / "golden" / "moge_model.safetensors"
OUTLIERS = DATA / "golden" / "outliers.safetensors"


@pytest.fixture(scope="module")
def model() -> DepthModel:
    """Of the golden file's sizes, whose code its case shares."""
    tensors, config = read(MODEL)
    sizes = case_moge_model.config_of(config)
    return DepthModel(case_moge_model.component_of(tensors, sizes), sizes)


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).random((3, height, width), np.float32)


def test_names_and_sizes_of_the_published_model():
    shapes = NETWORK.shapes(PRESETS["full"])
    buffers = {"image_mean", "image_std"}
    assert len(shapes) == 421 and buffers <= set(shapes)
    numbers = {name: int(np.prod(shape)) for name, shape in shapes.items() if name not in buffers}
    assert sum(numbers.values()) == 314_174_020
    assert sum(n for name, n in numbers.items() if name.startswith("head.")) == 9_805_380


def test_names_of_the_golden_file():
    tensors, config = read(MODEL)
    shapes = {name.removeprefix("state."): x.shape for name, x in tensors.items() if name.startswith("state.")}
    assert NETWORK.shapes(case_moge_model.config_of(config)) == shapes


@pytest.mark.parametrize("height, width", [(1, 40), (40, 1), (37, 53), (400, 300), (5, 5)])
def test_photos_of_any_shape_are_those_of_torch(model, height, width):
    tensors, _ = read(MODEL)
    network = MoGeModel(model.config).requires_grad_(False).eval()
    network.load_state_dict({name[6:]: torch.from_numpy(x) for name, x in tensors.items() if name.startswith("state.")})
    image, num_tokens = photo(height, width), 40
    points, mask = model.forward(image, num_tokens)
    assert points.shape == (height, width, 3) and mask.shape == (height, width)
    assert points.dtype == mask.dtype == np.float32
    assert np.isfinite(points).all() and (points[..., 2] > 0).all()
    sizes = sizes_of(height, width, num_tokens)
    arguments = arguments_of(shrunk(image, sizes), sizes, model.config.encoder)
    expected = network(*map(torch.from_numpy, arguments))
    found = model.component(*arguments)
    for name, wanted in expected.items():
        given = torch.from_numpy(found[name])
        assert (given - wanted).norm() <= 1e-5 * wanted.norm(), name


@pytest.mark.parametrize(
    "height, width, expected",
    [
        (512, 512, (707, 707, 50, 50)),
        (768, 1024, (612, 816, 43, 58)),
        (1080, 1920, (530, 942, 37, 67)),
        (400, 1000, (447, 1118, 31, 79)),
        (1, 1000, (22, 22360, 1, 1597)),
        (37, 53, (590, 846, 42, 60)),
        (4000, 3000, (816, 612, 58, 43)),
    ],
)
def test_sizes_of_photos(height, width, expected):
    assert sizes_of(height, width, 2551) == expected


def test_a_photo_too_long_for_its_tokens():
    assert sizes_of(1, 2551, 2551).rows == 1
    with pytest.raises(ValueError) as error:
        sizes_of(1, 2600, 2551)
    expected = "image: expected sides that differ by at most 2551 times, the number of tokens, given 2600 x 1 pixels"
    assert str(error.value).startswith(expected)


@pytest.mark.parametrize(
    "image, num_tokens, message",
    [
        ([1.0], 20, "image: expected a numpy array float32 [3, H, W] of at least a pixel, given list"),
        (np.zeros((3, 4, 5)), 20, "image: expected float32 [3, H, W] of at least a pixel, given float64 [3, 4, 5]"),
        (np.zeros((4, 4, 5), "f4"), 20, "image: expected float32 [3, H, W] of at least a pixel, given float32 [4, 4, 5]"),
        (np.zeros((3, 0, 5), "f4"), 20, "image: expected float32 [3, H, W] of at least a pixel, given float32 [3, 0, 5]"),
        (np.full((3, 1, 1), np.nan, "f4"), 20, "image: expected finite values, given 3 that are not"),
        (photo(5, 5), 0, "num_tokens: expected an integer of at least 1, given 0"),
        (photo(5, 5), 2.5, "num_tokens: expected an integer of at least 1, given 2.5"),
    ],
)
def test_what_forward_refuses(model, image, num_tokens, message):
    with pytest.raises(ValueError) as error:
        model.forward(image, num_tokens)
    assert str(error.value) == message


def test_a_component_of_another_config(model):
    other = replace(model.config, encoder=replace(model.config.encoder, img_size=84))
    with pytest.raises(ValueError, match=r"component: expected patches \[3, 14, 14\] and positions of 6 x 6, given .* 5 x 5"):
        DepthModel(model.component, other)


def test_resizing_with_antialias_is_that_of_torch():
    image = photo(37, 53)
    for kernel, mode in ((Image.Resampling.BICUBIC, "bicubic"), (Image.Resampling.BILINEAR, "bilinear")):
        for size in ((20, 61), (74, 30), (37, 53)):
            wanted = torch.nn.functional.interpolate(torch.from_numpy(image)[None], size, mode=mode, antialias=True)[0]
            # PyTorch rounds places at their own size, Pillow computes in float64
            np.testing.assert_allclose(resized_with_antialias(image, size, kernel), wanted, atol=53 * 2.0**-22)


def test_config_of_the_published_file():
    values = {
        "encoder": "dinov2_vitl14",
        "remap_output": "exp",
        "output_mask": True,
        "split_head": True,
        "intermediate_layers": 4,
        "dim_upsample": [256, 128, 64],
        "dim_times_res_block_hidden": 2,
        "num_res_blocks": 2,
        "trained_area_range": [250000, 500000],
        "last_conv_channels": 32,
        "last_conv_size": 1,
    }
    assert MogeConfig.from_upstream(values) == PRESETS["full"]
    for config in PRESETS.values():
        assert MogeConfig.from_json(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"remap_output": "linear"}, "remap_output: expected one of 'exp', given 'linear'"),
        ({"intermediate_layers": 4}, "intermediate_layers: expected at most the encoder's 3 blocks, given 4"),
        ({"dim_upsample": (24,)}, "dim_upsample: expected widths that times 2 are multiples of 32, given 24"),
        ({"num_tokens_range": (5, 4)}, "num_tokens_range: expected a least and a largest number, given [5, 4]"),
        ({"last_conv_size": 2}, "last_conv_size: expected an odd number, given 2"),
        ({"last_res_blocks": 1}, "last_res_blocks: expected 0, given 1"),
        ({"mask_threshold": "a"}, "mask_threshold: expected a number, given 'a'"),
    ],
)
def test_a_config_that_does_not_fit(change, message):
    with pytest.raises(ValueError) as error:
        replace(TINY, **change)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["dinov2_vitl14_reg2", None, ["dinov2_vitl14"]])
def test_an_encoder_that_is_not_known(name):
    with pytest.raises(ValueError, match=r"^encoder: expected one of 'dinov2_vits14_reg'"):
        MogeConfig.from_upstream({"encoder": name})


def normalised_error(found: dict, exact: dict) -> float:
    """Relative L2 of all tokens under the last norm."""
    given, wanted = found["normalised"], exact["normalised"]
    return float(np.linalg.norm(given - wanted) / np.linalg.norm(wanted))


def test_outliers_in_bfloat16():
    """Only what linear layers multiply is rounded: 0.007 and 0.015, where all of it costs 0.16 and 0.25."""
    tensors, config = read(OUTLIERS)
    exact = case_outliers.reference(tensors, config)
    for part, found in case_outliers.compute(tensors, config, "bfloat16").items():
        assert 1e-4 < normalised_error(found, exact[part]) < 0.02, part


def test_models_of_dinov2_are_compiled_so():
    assert NETWORK.products_only and EMBEDDERS.products_only
    linear = torch.nn.Linear(8, 8).requires_grad_(False)
    for only in (True, False):
        component = port_component(linear, (torch.ones(2, 8),), "layer", precision="bfloat16", products_only=only, check=False)
        manifest, _ = Manifest.from_json(component.manifest.to_json({"file": "", "sha256": ""}))
        assert manifest.functions["forward"].products_only is only
