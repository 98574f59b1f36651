"""Every kind of file that is read: valid ones, where they lie, and what reads them."""

import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sam3d_tvm.artifacts import MADE_FROM, PIPELINE, Artifacts, CheckpointSource, DepthModelSource, SeededSource, begin
from sam3d_tvm.batch.jobs import read_jobs
from sam3d_tvm.checkpoint import Checkpoint
from sam3d_tvm.frames import CAMERA
from sam3d_tvm.models import MODELS
from sam3d_tvm.occupancy import load_occupancy
from sam3d_tvm.photo.images import load_image, load_mask
from sam3d_tvm.photo.pictures import readable_formats
from sam3d_tvm.photo.pointmaps import as_intrinsics, load_points
from sam3d_tvm.pose import Pose
from sam3d_tvm.run_folder import RUN, RunFolder
from sam3d_tvm.splat.files import SPLAT_FORMATS, load_splat
from sam3d_tvm.splat.gaussians import SHAPES, Gaussians
from sam3d_tvm.structure import STRUCTURE, Structure
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.files import write_bytes
from sparse_ops.deploy.weights import check_arrays
from tests.sam3d_tvm.fake_checkpoint import PUBLISHED, states, write_checkpoint, write_state
from tests.sparse_ops.deploy.test_from_nn import made, random_state


@dataclass(frozen=True)
class Kind:
    """A kind of file. `form`: of `mutations.FORMS`. `place(folder, data)`: writes a file where its readers want it, and what
    belongs to it, into a new folder. `reads`: what reads it. `also`: other files that may be blamed for it."""

    name: str
    form: str
    samples: Callable[[], tuple[bytes, ...]]
    place: Callable[[Path, bytes], Path]
    reads: Callable[[Path], object] | tuple[Callable[[Path], object], ...]
    also: tuple[str, ...] = ()


def _alone(name: str) -> Callable[[Path, bytes], Path]:
    def place(folder: Path, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return place


def _within(base: Callable[[], Path], name: str) -> Callable[[Path, bytes], Path]:
    """The file `name` in a folder whose others are links to those of `base`."""

    def place(folder: Path, data: bytes) -> Path:
        for file in base().rglob("*"):
            if file.is_file() and file.relative_to(base()) != Path(name):
                link = folder / file.relative_to(base())
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return folder / name

    return place


# Checkpoints.


@cache
def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz_files"))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def checkpoint() -> Path:
    return write_checkpoint(_new_folder() / "hf", config=PUBLISHED)


def _compile_up_to_code(folder: Path) -> None:
    """What a checkpoint goes through until something is compiled."""
    source = CheckpointSource(folder)
    for name, config in source.config.models.items():
        source.identity(name)
        if config != getattr(PUBLISHED, name):  # else its weights are those that other kinds look at
            try:
                check_arrays(MODELS[name].shapes(config), source.state(name))
            except ValueError as error:
                raise ValueError(f"{name} in {source.file(name).name}: {error}") from error


def _weights(folder: Path) -> None:
    found = Checkpoint(folder)
    state = found.state("ss_decoder")
    try:
        check_arrays(MODELS["ss_decoder"].shapes(found.config.ss_decoder), state)
    except ValueError as error:
        raise ValueError(f"ss_decoder in {found.file('ss_decoder').name}: {error}") from error
    for value in state.values():
        np.asarray(value)


def _yaml(name: str) -> Kind:
    return Kind(
        f"checkpoint {name}",
        "yaml",
        cache(lambda: ((checkpoint() / name).read_bytes(),)),
        _within(checkpoint, name),
        lambda file: _compile_up_to_code(file.parent),
        (name.replace(".yaml", ".ckpt"), "pipeline.yaml"),
    )


@cache
def _torch_files() -> tuple[bytes, ...]:
    """As torch writes them, with a step of training beside, and in halves."""
    state, found = states()["ss_decoder"], []
    for value in (state, {"state_dict": state, "epoch": 3}, {name: tensor.half() for name, tensor in state.items()}):
        torch.save(value, data := io.BytesIO())
        found.append(data.getvalue())
    return tuple(found)


@cache
def _old_torch_files() -> tuple[bytes, ...]:
    torch.save(states()["ss_decoder"], data := io.BytesIO(), _use_new_zipfile_serialization=False)
    return (data.getvalue(),)


@cache
def _safetensors() -> tuple[bytes, ...]:
    write_state(file := _new_folder() / "ss_decoder.safetensors", states()["ss_decoder"])
    return (file.read_bytes(),)


# Artifacts.


@cache
def component() -> Path:
    """A small one, compiled."""
    return made(random_state()).save(_new_folder() / "component")


@cache
def artifacts() -> Path:
    """A folder in the form of the artifacts of a pipeline, whose components are all the small one."""
    folder = begin(SeededSource("random-tiny"), _new_folder() / "artifacts")
    for name, key in json.loads((folder / PIPELINE).read_text())["models"].items():
        shutil.copytree(component(), folder / name)
        sizes = {file.name: file.stat().st_size for file in component().iterdir()}
        (folder / name / MADE_FROM).write_text(json.dumps(key | {"files": sizes}))
    return folder


def _open(folder: Path) -> None:
    Artifacts(folder).load("ss_decoder")


def _of_component(name: str, form: str) -> Kind:
    samples = cache(lambda: ((component() / name).read_bytes(),))
    return Kind(f"artifact {name}", form, samples, _within(component, name), lambda file: Component.load(file.parent))


def _of_artifacts(name: str) -> Kind:
    samples = cache(lambda: ((artifacts() / name).read_bytes(),))
    up = len(Path(name).parts) - 1
    return Kind(
        f"artifacts {Path(name).name}",
        "json",
        samples,
        _within(artifacts, name),
        lambda file: _open(file.parents[up]),
        (Path(name).parts[0], *(f"{model} not compiled yet" for model in MODELS)),  # whose file it does not fit
    )


# Splats.


@cache
def _gaussians() -> Gaussians:
    random = np.random.default_rng(0)
    return Gaussians(**{name: random.standard_normal((300, *rest), np.float32) for name, rest in SHAPES.items()})


def _splat(name: str) -> Kind:
    @cache
    def samples() -> tuple[bytes, ...]:
        found = [SPLAT_FORMATS[name].encode(_gaussians())]
        if name == "ply":
            from plyfile import PlyData

            ply = PlyData.read(io.BytesIO(found[0]))
            for text, order in ((True, "="), (False, ">")):
                PlyData(ply.elements, text=text, byte_order=order).write(data := io.BytesIO())
                found.append(data.getvalue())
            found.append(SPLAT_FORMATS[name].encode(_gaussians().in_frame(CAMERA)))
        return tuple(found)

    file = f"cloud{SPLAT_FORMATS[name].suffix}"
    form = "ply" if "ply" in name else "bytes"
    return Kind(f"splat {file.partition('.')[2]}", form, samples, _alone(file), load_splat)


# Photos and what comes with them.


def _pixels() -> np.ndarray:
    rows, columns = np.mgrid[:48, :64]
    rgba = np.stack([rows * 5, columns * 4, rows + columns, 255 * ((rows - 20) ** 2 + (columns - 30) ** 2 < 200)], 2)
    return rgba.astype(np.uint8)


@cache
def _picture_files(form: str) -> tuple[bytes, ...]:
    """Pictures of several modes and ways of packing."""
    found, rgba = [], Image.fromarray(_pixels())
    exif = Image.Exif()
    exif[0x0112] = 6
    ways = {
        "PNG": [("RGBA", {}), ("P", {}), ("L", {"exif": exif}), ("1", {}), ("I;16", {}), ("RGB", {"interlace": 1})],
        "JPEG": [("RGB", {"exif": exif}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})],
        "TIFF": [("RGBA", {"compression": way}) for way in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")]
        + [("1", {"compression": "group4"}), ("I;16", {})],
        "WEBP": [("RGBA", {"lossless": True}), ("RGB", {"exif": exif})],
        "GIF": [("P", {}), ("P", {"save_all": True, "append_images": [rgba.rotate(90).convert("P")]})],
        "PPM": [("RGB", {}), ("L", {}), ("1", {})],
        "BMP": [("RGB", {}), ("P", {}), ("1", {})],
    }
    for mode, options in ways.get(form, [("RGB", {})]):
        if mode == "I;16":
            picture = Image.fromarray(_pixels()[..., 0].astype(np.uint16) * 200)
        else:
            picture = rgba.convert(mode)
        picture.save(data := io.BytesIO(), form, **options)
        found.append(data.getvalue())
    return tuple(found)


@cache
def _heic_files() -> tuple[bytes, ...]:
    from pillow_heif import from_pillow

    data = io.BytesIO()
    from_pillow(Image.fromarray(_pixels()).convert("RGB")).save(data)
    return (data.getvalue(),)


def _picture(form: str) -> Kind:
    return Kind(
        f"picture {form}", "picture", lambda: _picture_files(form), _alone(f"photo.{form.lower()}"), (load_image, load_mask)
    )


@cache
def _points() -> np.ndarray:
    rows, columns = np.mgrid[:48, :64].astype(np.float32)
    return np.stack([(31 - columns) / 64, (23 - rows) / 64, 1 + rows / 100], 2)


def _npy(array: np.ndarray) -> bytes:
    np.save(data := io.BytesIO(), array)
    return data.getvalue()


def _npz(compressed: bool, **arrays: np.ndarray) -> bytes:
    (np.savez_compressed if compressed else np.savez)(data := io.BytesIO(), **arrays)
    return data.getvalue()


@cache
def _point_npy() -> tuple[bytes, ...]:
    points = _points()
    return _npy(points), _npy(points.transpose(2, 0, 1)), _npy(points.astype(np.float16)), _npy(np.asfortranarray(points))


@cache
def _point_npz() -> tuple[bytes, ...]:
    beside = {"axes_seen": np.int8([-1, -1, 1]), "intrinsics": np.float32([[0.8, 0, 0.5], [0, 1.1, 0.5], [0, 0, 1]])}
    return (
        _npz(True, points=_points()),
        _npz(False, pointmap=_points(), other=np.zeros(3)),
        _npz(False, points=_points(), **beside),
    )


@cache
def _point_pt() -> tuple[bytes, ...]:
    torch.save({"points": torch.from_numpy(_points())}, data := io.BytesIO())
    return (data.getvalue(),)


@cache
def _model_pt() -> tuple[bytes, ...]:
    config = {"encoder": "dinov2_vits14", "trained_area_range": [250000, 500000], "dim_upsample": [256, 128, 64]}
    torch.save({"model_config": config, "model": dict(states()["ss_decoder"])}, data := io.BytesIO())
    return (data.getvalue(),)


def _depth_model(file: Path) -> list[np.ndarray]:
    return [np.asarray(value) for value in DepthModelSource(file).state("depth_model").values()]


@cache
def _mask_npy() -> tuple[bytes, ...]:
    mask = _pixels()[..., 3]
    return _npy(mask > 0), _npy(mask), _npy(mask / np.float32(255)), _npy(mask.astype(np.int64))


@cache
def _mask_npz() -> tuple[bytes, ...]:
    return _npz(True, mask=_pixels()[..., 3]), _npz(False, mask=_pixels()[..., 3] > 0)


# Results of earlier runs.


@cache
def _structure() -> tuple[bytes, ...]:
    coords = np.stack([np.zeros(20), *np.unravel_index(np.arange(20) * 7, (8, 8, 8))], 1).astype(np.int32)
    pose = Pose(np.float32([[1, 0, 0, 0]]), np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))
    found = []
    for latents in (None, np.ones((20, 8), np.float32)):
        Structure(coords, 16, pose, latents, {"structure": {"seed": 1}}).save(file := _new_folder() / STRUCTURE)
        found.append(file.read_bytes())
    return tuple(found)


@cache
def _run_json() -> tuple[bytes, ...]:
    folder = RunFolder(_new_folder() / "run")
    folder.write("splat.ply", lambda path: write_bytes(path, b"a splat"), "seed 1")
    return ((folder.folder / RUN).read_bytes(),)


@cache
def _coords_npz() -> tuple[bytes, ...]:
    coords = np.arange(60).reshape(20, 3)
    return _npz(True, coords=coords), _npz(False, coords=coords.astype(np.uint8))


TABLES = (
    b"photo,mask,pointmap,seed,name\nlamp.png,lamp_mask.png,,3,lamp\ntable.png,0.png;1.png,points.npy,,\n",
    b'\xef\xbb\xbfphoto,name\r\n"a, b.png","a ""b"""\r\n',
)
INTRINSICS = (
    b'{"fx": 50.5, "fy": 50.5, "cx": 31.5, "cy": 23.5}',
    b'{"K": [[50.5, 0, 31.5], [0, 50.5, 23.5], [0, 0, 1]]}',
    b"[50.5, 50.5, 31.5, 23.5]",
)

KINDS = [
    *(
        _yaml(name)
        for name in ("pipeline.yaml", "ss_generator.yaml", "slat_generator.yaml", "slat_decoder_gs.yaml", "ss_decoder.yaml")
    ),
    Kind("weights .ckpt", "zip", _torch_files, _within(checkpoint, "ss_decoder.ckpt"), lambda file: _weights(file.parent)),
    Kind(
        "weights .ckpt before 1.6",
        "bytes",
        _old_torch_files,
        _within(checkpoint, "ss_decoder.ckpt"),
        lambda file: _weights(file.parent),
    ),
    Kind(
        "weights .safetensors",
        "safetensors",
        _safetensors,
        _within(checkpoint, "ss_decoder.ckpt"),
        lambda file: _weights(file.parent),
    ),
    _of_component("manifest.json", "json"),
    _of_component("parameters.safetensors", "safetensors"),
    _of_component("library.so", "bytes"),
    _of_artifacts("pipeline.json"),
    _of_artifacts("ss_decoder/made_from.json"),
    *map(_splat, SPLAT_FORMATS),
    *map(_picture, readable_formats()),
    Kind("picture HEIC", "picture", _heic_files, _alone("photo.heic"), (load_image, load_mask)),
    Kind("point map .npy", "npy", _point_npy, _alone("points.npy"), lambda file: load_points(file)),
    Kind("point map .npz", "npz", _point_npz, _alone("points.npz"), lambda file: load_points(file)),
    Kind("point map .pt", "zip", _point_pt, _alone("points.pt"), lambda file: load_points(file)),
    Kind("depth model .pt", "zip", _model_pt, _alone("model.pt"), _depth_model),
    Kind("mask .npy", "npy", _mask_npy, _alone("mask.npy"), load_mask),
    Kind("mask .npz", "npz", _mask_npz, _alone("mask.npz"), load_mask),
    Kind("structure.safetensors", "safetensors", _structure, _alone(STRUCTURE), Structure.load),
    Kind("run.json", "json", _run_json, _alone(RUN), lambda file: RunFolder(file.parent, resume=True).has("splat.ply")),
    Kind("list .csv", "csv", lambda: TABLES, _alone("list.csv"), read_jobs),
    Kind("occupancy .npz", "npz", _coords_npz, _alone("cells.npz"), load_occupancy),
    Kind("intrinsics .json", "json", lambda: INTRINSICS, _alone("camera.json"), lambda file: as_intrinsics(file, (64, 48))),
]
