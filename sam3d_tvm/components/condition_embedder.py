"""The condition embedder: images, masks and point maps -> the tokens that the generators see, by compiled functions.

Every embedder is one function, called for each of its inputs: `embed_image`, `embed_mask` and `embed_pointmap` of
`sam3d_tvm.torch_modules.embedder_fuser`. Inputs are brought to the size of their embedder here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sam3d_tvm.checks import check_choice, check_finite, check_size
from sparse_ops.deploy.component import Component

CHANNELS = {"image": 3, "mask": 1, "pointmap": 3}  # of every kind of input
HIDDEN_MULTIPLE = 256


@dataclass(frozen=True)
class DinoConfig:
    """Sizes of a DINOv2 with registers, named as upstream names them.

    Images are resized to `input_size`; positional embeddings are those of an image of `img_size`. `prenorm_features`: tokens
    as they are before the last norm, registers included.
    """

    embed_dim: int
    depth: int
    num_heads: int
    input_size: int
    img_size: int
    patch_size: int = 14
    num_register_tokens: int = 4
    mlp_ratio: float = 4
    prenorm_features: bool = False

    def __post_init__(self):
        for name in ("embed_dim", "depth", "num_heads", "patch_size", "input_size", "img_size"):
            check_size(name, getattr(self, name), 1)
        check_size("num_register_tokens", self.num_register_tokens, 0)
        for name in ("input_size", "img_size"):
            _check_multiple(name, getattr(self, name), "patch_size", self.patch_size)
        _check_multiple("embed_dim", self.embed_dim, "num_heads", self.num_heads)
        _check_ratio("mlp_ratio", self.mlp_ratio, self.embed_dim)

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layers."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def grid(self) -> int:
        """Patches along each side of an image."""
        return self.input_size // self.patch_size

    @property
    def stored_grid(self) -> int:
        """Patches along each side of an image for which there are positional embeddings."""
        return self.img_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return 1 + (self.num_register_tokens if self.prenorm_features else 0) + self.grid**2


@dataclass(frozen=True)
class PointPatchConfig:
    """Sizes of the point patch embedding, named as upstream names them."""

    embed_dim: int
    input_size: int
    patch_size: int = 8
    num_heads: int = 16
    mlp_ratio: float = 2
    remap_output: str = "linear"

    def __post_init__(self):
        for name in ("embed_dim", "input_size", "patch_size", "num_heads"):
            check_size(name, getattr(self, name), 1)
        _check_multiple("input_size", self.input_size, "patch_size", self.patch_size)
        _check_multiple("embed_dim", self.embed_dim, "num_heads", self.num_heads)
        _check_ratio("mlp_ratio", self.mlp_ratio, self.embed_dim)
        check_choice("remap_output", self.remap_output, ("linear",))

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def grid(self) -> int:
        """Windows along each side of a point map."""
        return self.input_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of a point map."""
        return self.grid**2


@dataclass(frozen=True)
class Embedder:
    """A model and its inputs: `kind` is one of `CHANNELS`, `inputs` are pairs of a name and the group that it belongs to."""

    kind: str
    model: DinoConfig | PointPatchConfig
    inputs: tuple[tuple[str, str], ...]

    def __post_init__(self):
        check_choice("kind", self.kind, CHANNELS)
        expected = PointPatchConfig if self.kind == "pointmap" else DinoConfig
        if not isinstance(self.model, expected):
            raise ValueError(f"model: expected a {expected.__name__} for kind {self.kind!r}, given {self.model!r}")
        object.__setattr__(self, "inputs", tuple((str(name), str(group)) for name, group in self.inputs))

    @property
    def method(self) -> str:
        """The compiled function."""
        return f"embed_{self.kind}"

    @property
    def channels(self) -> int:
        """Channels of its inputs."""
        return CHANNELS[self.kind]


@dataclass(frozen=True)
class EmbedderFuserConfig:
    """The embedders in the order of their tokens, each kind once. Raises ValueError for inputs that repeat, or none."""

    embedders: tuple[Embedder, ...]
    projection_net_hidden_dim_multiplier: float = 4

    def __post_init__(self):
        object.__setattr__(self, "embedders", tuple(self.embedders))
        names = [name for embedder in self.embedders for name, _ in embedder.inputs]
        for what, given in (("kinds", [embedder.kind for embedder in self.embedders]), ("inputs", names)):
            if len(set(given)) != len(given) or not given:
                raise ValueError(
                    f"embedders: expected {what} that differ, and one at least, given {', '.join(given) or 'none'}"
                )
        _check_ratio("projection_net_hidden_dim_multiplier", self.projection_net_hidden_dim_multiplier, self.channels)

    @property
    def channels(self) -> int:
        """Width of the tokens: that of the widest embedder."""
        return max(embedder.model.embed_dim for embedder in self.embedders)

    @property
    def hidden(self) -> int:
        """Width of the projections' gated layers: two thirds of what the multiplier says, as they have three matrices."""
        width = 2 * int(self.projection_net_hidden_dim_multiplier * self.channels) // 3
        return -(-width // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE

    @property
    def groups(self) -> dict[str, int]:
        """The number of every group, in the order in which they appear."""
        names = dict.fromkeys(group for embedder in self.embedders for _, group in embedder.inputs)
        return {name: i for i, name in enumerate(names)}

    @property
    def rows(self) -> dict[str, slice]:
        """Which tokens belong to which input, in order."""
        found, start = {}, 0
        for embedder in self.embedders:
            for name, _ in embedder.inputs:
                found[name] = slice(start, start + embedder.model.tokens)
                start += embedder.model.tokens
        return found

    @property
    def tokens(self) -> int:
        """Tokens of all inputs."""
        return sum(len(embedder.inputs) * embedder.model.tokens for embedder in self.embedders)


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
                        image = np.ascontiguousarray(resize(image, embedder.model.input_size))
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


def nearest_index(old: int, new: int) -> np.ndarray:
    """int64 [new]: which of `old` pixels each of `new` ones takes, rounded as torch's "nearest" does."""
    scale = np.float32(old) / np.float32(new)
    return np.minimum(np.arange(new, dtype=np.float32) * scale, old - 1).astype(np.int64)


def resized_nearest(image: np.ndarray, size: int) -> np.ndarray:
    """[C, H, W] -> [C, size, size]; every pixel is one of the image."""
    rows, columns = (nearest_index(old, size) for old in image.shape[1:])
    return image[:, rows[:, None], columns]


def resized_bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """float32 [C, H, W] -> [C, size, size], without antialiasing, as torch's "bilinear" with `align_corners=False`."""
    for axis, old in ((1, image.shape[1]), (2, image.shape[2])):
        if old != size:
            scale = np.float32(old) / np.float32(size)
            place = np.clip((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0, old - 1)
            low = place.astype(np.int64)
            share = (place - low).astype(np.float32).reshape(-1, *[1] * (2 - axis))
            high = np.minimum(low + 1, old - 1)
            image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


def _check_image(name: str, image: np.ndarray, kind: str) -> None:
    expected = f"float32 [B, {CHANNELS[kind]}, H, W]"
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{name}: expected a numpy array {expected}, given {type(image).__name__}")
    if image.dtype != np.float32 or image.ndim != 4 or image.shape[1] != CHANNELS[kind] or 0 in image.shape[2:]:
        raise ValueError(f"{name}: expected {expected}, given {image.dtype} {list(image.shape)}")
    if kind != "pointmap":
        check_finite(name, image)


def _check_multiple(name: str, value: int, of: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"{name}: expected a multiple of {of} {divisor}, given {value}")


def _check_ratio(name: str, ratio: float, channels: int) -> None:
    """ValueError unless `ratio` times `channels` is one at least."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not ratio * channels >= 1:
        raise ValueError(f"{name}: expected a positive number, given {ratio!r}")


def fuser_config(image: DinoConfig, pointmap: PointPatchConfig | None = None) -> EmbedderFuserConfig:
    """Every kind of input twice, cropped around the object and as a whole; point maps where there is an embedder for them."""

    def pair(kind: str, model: DinoConfig | PointPatchConfig, full: str) -> Embedder:
        return Embedder(kind, model, ((kind, "cropped"), (full, "full")))

    embedders = [pair("image", image, "rgb_image"), pair("mask", image, "rgb_image_mask")]
    embedders += [] if pointmap is None else [pair("pointmap", pointmap, "rgb_pointmap")]
    return EmbedderFuserConfig(tuple(embedders))


# "tiny" is for tests; "full" are the sizes of SAM-3D-Objects, whose DINOv2 is ViT-L/14.
DINO_PRESETS = {
    "tiny": DinoConfig(embed_dim=32, depth=2, num_heads=2, input_size=56, img_size=70),
    "full": DinoConfig(embed_dim=1024, depth=24, num_heads=16, input_size=518, img_size=518),
}
POINT_PATCH_PRESETS = {
    "tiny": PointPatchConfig(embed_dim=16, input_size=32),
    "full": PointPatchConfig(embed_dim=512, input_size=256),
}
# "ss": the condition of the sparse structure. "slat": that of the structured latents, without point maps.
FUSER_PRESETS = {
    "ss": {size: fuser_config(DINO_PRESETS[size], POINT_PATCH_PRESETS[size]) for size in DINO_PRESETS},
    "slat": {size: fuser_config(replace(DINO_PRESETS[size], prenorm_features=True)) for size in DINO_PRESETS},
}
