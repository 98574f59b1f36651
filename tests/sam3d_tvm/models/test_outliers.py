"""Networks with outlier channels keep what they tell apart in 16 bits: golden data of both settings of DINOv2."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests import DATA  # noqa: E402
from tests.golden import case_outliers  # noqa: E402
from tests.golden.runner import read  # noqa: E402

MOST = 0.02  # relative L2 of all normalised tokens
TOKENS = {"dino": ("normalised",), "moge": ("feature0", "feature1", "feature2", "class_token0", "class_token1", "class_token2")}


@pytest.fixture(scope="module")
def recorded():
    tensors, config = read(DATA / "golden" / "outliers.safetensors")
    return tensors, config, case_outliers.reference(tensors, config)


def errors(recorded, precision: str, products_only: bool = True) -> dict[str, float]:
    """Relative L2 of the tokens of each part against PyTorch in float32."""
    tensors, config, expected = recorded
    found = case_outliers.compute(tensors, config, precision, products_only)

    def tokens(part: str, of: dict) -> np.ndarray:
        return np.concatenate([of[part][name].ravel() for name in TOKENS[part]]).astype(np.float64)

    pairs = {part: (tokens(part, found), tokens(part, expected)) for part in TOKENS}
    return {part: float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)) for part, (ours, theirs) in pairs.items()}


def test_products_alone_may_be_narrow(recorded):
    """With all of it in bfloat16, as other models are, keys and values lose what tells tokens apart."""
    assert max(errors(recorded, "bfloat16").values()) < MOST < min(errors(recorded, "bfloat16", products_only=False).values())
    assert max(errors(recorded, "float16").values()) < MOST
