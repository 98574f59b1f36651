"""Runs a compiled condition embedder: images, masks and point maps -> the tokens that the generators see.

Every embedder is one function, called for each of its inputs: `embed_image`, `embed_mask` and `embed_pointmap` of
`network_torch`. Inputs are brought to the size of their embedder here.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from sam3d_tvm.checks import check_finite
from sam3d_tvm.models.condition_embedder.config import CHANNELS, EmbedderFuserConfig
from sam3d_tvm.resize import resized_bilinear, resized_nearest
from sparse_ops.deploy.component import Component


class ConditionEmbedder:
    """The embedders with their weights, on numpy arrays.

        component = Component.load("artifacts/ss_condition")
        embedder = ConditionEmbedder(component, FUSER_PRESETS["ss"]["full"])
        tokens = embedder.tokens(images, drop=("pointmap", "rgb_pointmap"))

    `component`: an `EmbedderFuser` of the same config, ported with a method for each embedder. ValueError for any other.
    """

    def __init__(self, component: Component, config: EmbedderFuserConfig):
        self.config = config
        self._functions = {embedder.kind: component[embedder.method] for embedder in config.embedders}
        for embedder in config.embedders:
            (image, *_), (out,) = self._functions[embedder.kind].spec.inputs, self._functions[embedder.kind].spec.outputs
            size, tokens = embedder.model.input_size, embedder.model.tokens
            for what, given, expected in (
                ("input", image.shape, (1, embedder.channels, size, size)),
                ("output", out.shape, (1, tokens, config.channels)),
            ):
                if given != expected:
                    raise ValueError(f"component: expected {what} {list(expected)} of {embedder.method}, given {list(given)}")

    @property
    def rows(self) -> dict[str, slice]:
        """Which tokens belong to which input."""
        return self.config.rows

    def tokens(self, images: Mapping[str, np.ndarray], drop: Iterable[str] = ()) -> np.ndarray:
        """float32 [B, L, C], the tokens of all inputs, see `rows`.

        `images` by name, float32: images [B, 3, H, W] and masks [B, 1, H, W] in 0..1; point maps [B, 3, H, W], in which NaN and
        infinity mark pixels without a point. Any H and W of at least 1. Inputs named in `drop` may be left out: their tokens
        are zeros, and nothing is computed.

        Raises ValueError for a name that is missing or not known, and for an array of another dtype or shape, of another batch
        size than the others, or, but for point maps, with values that are not finite.
        """
        dropped = self._checked_names(images, drop)
        batch = self._checked_arrays(images, dropped)
        out = np.zeros((batch, self.config.tokens, self.config.channels), np.float32)
        for embedder in self.config.embedders:
            resize = resized_nearest if embedder.kind == "pointmap" else resized_bilinear
            for name, group in embedder.inputs:
                if name not in dropped:
                    number = np.array([self.config.groups[group]])
                    for b, image in enumerate(images[name]):
                        image = np.ascontiguousarray(resize(image, (embedder.model.input_size,) * 2))
                        out[b, self.rows[name]] = self._functions[embedder.kind](image[None], number)[0]
        return out

    def _checked_names(self, images: Mapping[str, np.ndarray], drop: Iterable[str]) -> set[str]:
        if not isinstance(images, Mapping):
            raise ValueError(f"images: expected arrays by name, given {type(images).__name__}")
        if isinstance(drop, str):
            raise ValueError(f"drop: expected names, given the string {drop!r}")
        known, drop = list(self.rows), set(drop)
        for what, given in (("images", images), ("drop", drop)):
            if unknown := [str(name) for name in given if name not in known]:
                raise ValueError(f"{what}: expected names among {', '.join(known)}, given {', '.join(sorted(unknown))} too")
        if missing := [name for name in known if name not in images and name not in drop]:
            raise ValueError(f"images: {', '.join(missing)} missing; name it in drop to do without")
        return drop

    def _checked_arrays(self, images: Mapping[str, np.ndarray], dropped: set[str]) -> int:
        """The batch size."""
        batch = {}
        for embedder in self.config.embedders:
            for name, _ in embedder.inputs:
                if name in images:
                    _check_image(name, images[name], embedder.kind)
                    batch[name] = len(images[name])
        if len(set(batch.values())) > 1:
            raise ValueError(
                f"images: expected one batch size, given {', '.join(f'{n} of {name}' for name, n in batch.items())}"
            )
        return next(iter(batch.values()), 1)


def _check_image(name: str, image: np.ndarray, kind: str) -> None:
    expected = f"float32 [B, {CHANNELS[kind]}, H, W]"
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{name}: expected a numpy array {expected}, given {type(image).__name__}")
    if image.dtype != np.float32 or image.ndim != 4 or image.shape[1] != CHANNELS[kind] or 0 in image.shape[2:]:
        raise ValueError(f"{name}: expected {expected}, given {image.dtype} {list(image.shape)}")
    if kind != "pointmap":
        check_finite(name, image)
