"""`moge_infer`: the depth model from a photo to points, focal length and shift, and the solver of these alone.

Each entry of `config["calls"]` is a call of `infer`: its tensors are `mid.<call>.*` and `out.<call>.*`, with an axis for
several photos unless `single`, and its photos `in.<image>.image` [B, 3, H, W]. Each of `config["solver"]` is one of
`recover_focal_shift` alone: `in.<name>.points`, `mask` and maybe `focal`, `out.<name>.focal` and `shift`, with an axis for
several point maps.
"""

import numpy as np

from sam3d_tvm.models.moge.focal import recover_focal_shift
from sam3d_tvm.models.moge.infer import infer
from sam3d_tvm.models.moge.network import NETWORK
from sam3d_tvm.models.moge.run import DepthModel, sizes_of
from tests.golden.case import Case, Tensors, precision
from tests.golden.case_moge_model import config_of, depths_of

# Focal length and shift are those of upstream within this, relative to the depth of what is seen: 1e-5 are 441 roundings.
SOLVED = (1e-5 / (4 * float(np.finfo(np.float32).eps))) ** 2
RESULTS = ("points", "depth", "intrinsics", "mask", "mask_prob")


class Watched:
    """A depth model that keeps what it returned last."""

    def __init__(self, model: DepthModel):
        self.model, self.config, self.returned = model, model.config, None

    def forward(self, image: np.ndarray, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        self.returned = self.model.forward(image, num_tokens)
        return self.returned


def model_of(tensors: Tensors, config: dict) -> DepthModel:
    """The compiled network with the parameters of a file."""
    sizes = config_of(config)
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    return DepthModel(NETWORK.compile(sizes, state, "moge", precision.get(), None), sizes)


def run(tensors: Tensors, config: dict) -> Tensors:
    model, out = Watched(model_of(tensors, config)), {}
    for name, call in config["calls"].items():
        images, options, found = tensors[f"in.{call['image']}.image"], dict(call["arguments"]), []
        fields_of_view = options.pop("fov_x", None)
        for number, image in enumerate(images[:1] if call["single"] else images):
            fov_x = fields_of_view[number] if isinstance(fields_of_view, list) else fields_of_view
            found.append(_results(model, image, fov_x, options))
        for key in found[0]:
            stacked = np.stack([results[key] for results in found])
            alone = call["single"] and key.startswith("out.")
            out[key.replace(".", f".{name}.", 1)] = stacked[0] if alone else stacked
    for name in config["solver"]:
        out |= {f"out.{name}.{key}": value for key, value in _solved(name, tensors).items()}
    return out


def _results(model: Watched, image: np.ndarray, fov_x: float | None, options: dict) -> Tensors:
    found = infer(model, image, fov_x=fov_x, **options)
    points, raw = model.returned
    height, width = raw.shape
    aspect = width / height
    out = {f"out.{key}": getattr(found, key) for key in RESULTS} | {"out.mask": found.mask.astype(np.uint8)}
    focal = 2 * found.intrinsics[0, 0] * np.float32(aspect / np.sqrt(1 + aspect**2))
    shift = recover_focal_shift(points, raw > model.config.mask_threshold, None if fov_x is None else float(focal))[1]
    return out | {"mid.focal": np.float32(focal), "mid.shift": shift, "mid.points_affine": points, "mid.mask_raw": raw}


def _solved(name: str, tensors: Tensors) -> Tensors:
    points, masks, known = (tensors.get(f"in.{name}.{key}") for key in ("points", "mask", "focal"))
    found = [
        recover_focal_shift(points[i], masks[i].astype(bool), None if known is None else float(known[i]))
        for i in range(len(points))
    ]
    focal, shift = zip(*found, strict=True)
    return {"focal": np.array(focal), "shift": np.array(shift)}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    """Additions behind a value: those of the network, and behind the solver what is asked of it."""
    _, call, what = name.split(".")
    if what in ("focal", "shift", "intrinsics"):
        return SOLVED
    photo = tensors[f"in.{config['calls'][call]['image']}.image"].shape[2:]
    found = depths_of(config_of(config), photo, sizes_of(*photo, config["calls"][call]["num_tokens"]))
    return found["mask" if "mask" in what else "points"]


CASE = Case(run, depth)
