"""The whole of SAM-3D-Objects: one photo and a mask -> Gaussians and a mesh, stage by stage.

    pipeline = Pipeline.from_checkpoint("checkpoints/hf")           # compiles once; needs torch that once
    result = pipeline.generate("photo.png", "mask.png", seed=42)
    result.save("out", formats=("ply", "glb"))

Only one stage is in memory at a time: its weights are mapped from the artifact folder and let go of before the next.
"""

import gc
import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
import tvm

from sam3d_tvm import __version__, memory
from sam3d_tvm.artifacts import (
    GAUSSIAN_DECODERS,
    Artifacts,
    CheckpointSource,
    OnCompile,
    compile_artifacts,
    default_folder,
)
from sam3d_tvm.checks import Failure, check_size
from sam3d_tvm.config import PipelineConfig, Sampling
from sam3d_tvm.depth import DEPTH_MODEL, check_view, fov_of, point_map
from sam3d_tvm.mesh.bake import TEXTURE_SIZE, Surface, TexturedMesh
from sam3d_tvm.mesh.flexicubes import extract_mesh
from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.models import MODELS
from sam3d_tvm.multi_view import MEAN, Views
from sam3d_tvm.notices import say
from sam3d_tvm.outputs import DECODED, FORMATS, Result, check_formats
from sam3d_tvm.overview import thumbnail
from sam3d_tvm.photo import images, pointmaps
from sam3d_tvm.photo.camera import PhotoCamera
from sam3d_tvm.photo.images import Picture
from sam3d_tvm.photo.pointmaps import PointMap
from sam3d_tvm.photo.preprocess import Preprocessed, preprocess
from sam3d_tvm.pose import decode_pose
from sam3d_tvm.presets import preset_source
from sam3d_tvm.quality import Plan, Quality, StagePlan, plan
from sam3d_tvm.resize import resized_nearest
from sam3d_tvm.sampler import Evaluations, Guidance, Step
from sam3d_tvm.splat.gaussians import Gaussians
from sam3d_tvm.structure import STAGES, Structure, differences
from sam3d_tvm.tiny import NAME as TINY
from sam3d_tvm.velocity_caching import EVERYTHING, GuidanceReuse, Saving
from sam3d_tvm.velocity_caching.saving import Cache
from tir_kernels.cpu.threads import available_cores

POINTMAPS = ("pointmap", "rgb_pointmap")
OVERLAP = (
    "several masks without a point map: nothing tells where the objects are, and they lie over one another in a scene; give "
    "a point map, depth or a depth model (--pointmap, --depth, --depth-model)"
)
GIVEN = ("image", "mask", "pointmap", "views")
View = Picture | tuple[Picture, Picture | None]


@dataclass(frozen=True)
class Progress:
    """What `on_progress` is told: `done` of `total` parts of a stage; a part is a call of a model, or all of a short stage.
    The first time `done` is 0, the last time `total`."""

    stage: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]
OnPart = Callable[[Result], Any]
Options = ParamSpec("Options")


def of_object(on_progress: OnProgress, number: int) -> OnProgress:
    """What is told of the stages of one of several objects."""
    return lambda progress: on_progress(replace(progress, stage=f"object {number}: {progress.stage}"))


def _to_the_end(steps: Callable[Options, Generator[Any, None, Result]]) -> Callable[Options, Result]:
    """What takes the same arguments, and goes through all steps."""

    @wraps(steps)
    def generate(*args: Options.args, **options: Options.kwargs) -> Result:
        going = steps(*args, **options)
        while True:
            try:
                next(going)
            except StopIteration as end:
                return end.value

    generate.__name__, generate.__qualname__ = "generate", "Pipeline.generate"
    return generate


class Pipeline:
    """Compiled models in an artifact folder, and what goes on between them. Make one with one of the `from_` methods."""

    def __init__(self, artifacts: Artifacts):
        self.artifacts = artifacts

    @property
    def config(self) -> PipelineConfig:
        return self.artifacts.config

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | os.PathLike,
        artifacts: str | os.PathLike | None = None,
        *,
        formats: Sequence[str] | None = None,
        precision: str = "float32",
        target: tvm.target.Target | None = None,
        depth_model: str | os.PathLike | None = None,
        on_model: OnCompile = lambda name, done, total: None,
    ) -> "Pipeline":
        """The pipeline of a checkpoint folder as SAM-3D-Objects publishes it, or of another path that `Checkpoint` takes.

        formats: the decoders that these need must be there; by default any may be missing. A notice says which is left out, and
        which file was taken for another.

        depth_model: the file of its depth model, a folder with a model.pt, or that in the cache of a hub; by default it is
        looked for where `pipeline.yaml` says, see `Checkpoint`, and the pipeline goes without where it is not.

        Compiled for `target`, by default this CPU, into the folder `artifacts`, by default one in the user's cache, unless that
        was done before. `precision`: "float32", or another of `PRECISIONS` inside the models. `on_model` as in
        `compile_artifacts`.

        Raises ValueError for anything about the folder that is not as it should be: a file that is missing, truncated or holds
        code, a `_target_` that is not known, parameters that are missing, not known, misshapen or not finite.
        """
        source = CheckpointSource(folder, None if formats is None else check_formats(formats), depth_model)
        for note in source.notes:
            say(note)
        place = artifacts or default_folder(source.label(precision, target))
        return cls(compile_artifacts(source, place, precision, target, on_model))

    @classmethod
    def from_preset(
        cls,
        name: str = "tiny",
        artifacts: str | os.PathLike | None = None,
        *,
        seed: int = 0,
        precision: str = "float32",
        target: tvm.target.Target | None = None,
        depth_model: bool = False,
        on_model: OnCompile = lambda name, done, total: None,
    ) -> "Pipeline":
        """A pipeline without a checkpoint: "tiny" is small and trained, on tableware, and comes with the package; of random
        weights from `seed` are "random-tiny", which runs in seconds, and "full", which has the sizes of SAM-3D-Objects.

        depth_model: whether it has one, of random weights too, as those of random weights may. Other options as of
        `from_checkpoint`. ValueError as `presets.preset_source`, and for another precision.
        """
        source = preset_source(name, seed, depth_model)
        place = artifacts or default_folder(source.label(precision, target))
        processes = available_cores() if name == TINY else 1  # small enough to be in memory several times
        return cls(compile_artifacts(source, place, precision, target, on_model, processes))

    @classmethod
    def from_artifacts(cls, folder: str | os.PathLike) -> "Pipeline":
        """A pipeline that was compiled before; needs neither checkpoint nor torch. ValueError as `Artifacts`."""
        return cls(Artifacts(folder))

    def steps(
        self,
        image: Picture,
        mask: Picture | None = None,
        *,
        pointmap: str | os.PathLike | np.ndarray | None = None,
        pointmap_axes: str = pointmaps.AUTO,
        depth: Picture | None = None,
        depth_scale: float | None = None,
        intrinsics: str | os.PathLike | Sequence[float] | np.ndarray | None = None,
        depth_model: bool = True,
        fov: float | str | None = None,
        mask_upright: bool = False,
        views: Sequence[View] = (),
        multi_view: str = MEAN,
        seed: int = 42,
        steps: int | None = None,
        slat_steps: int | None = None,
        guidance: float | None = None,
        slat_guidance: float | None = None,
        shortcut: bool = False,
        quality: str | Quality | None = None,
        structure_cache: str | Cache | None = None,
        latents_cache: str | Cache | None = None,
        reuse_guidance: bool | GuidanceReuse | None = None,
        formats: Sequence[str] = ("ply", "glb"),
        triangles: int | None = None,
        texture_size: int = TEXTURE_SIZE,
        stage1_only: bool = False,
        max_memory: int | None = None,
        structure: str | os.PathLike | Structure | None = None,
        resume: str | os.PathLike | Structure | None = None,
        on_progress: OnProgress = lambda progress: None,
        on_part: OnPart = lambda result: None,
        models: "OpenModels | None" = None,
        point_maps: "PointMaps | None" = None,
    ) -> Generator[str, None, Result]:
        """One object from a photo. `generate` returns it; `steps` is for who has several objects, and opens each model once for
        all of them: it yields the name of the model that the next stage runs, and returns the object in the end.

        image, mask, mask_upright: files, arrays or Pillow images, see `images.load_photo`; without a mask the image's alpha
        channel is it. pointmap: a position in space for each pixel, floats [H, W, 3] or [3, H, W] or a file of such, in
        `pointmap_axes`, which "auto" tells from the points; or depth with intrinsics, see `pointmaps.load_point_map`. Without
        them the depth model makes a point map of the photo, if the pipeline has one and `depth_model` is true; fov: the angle
        of view across the photo in degrees, or "exif" for that of its EXIF data, which the depth model then need not find.
        Without any of them the pose is in units of the object, and the structure sees no crop. What was understood is said by
        a `notices.Notice`.

        views: up to seven further photos of the same object, each (image, mask), or an image whose alpha channel is its mask.
        What both generators follow is the mean of all photos, or each photo has its turn, "cycle", see `multi_view`. The pose
        is that in the first photo, `image`, whose are also the point map or depth that are given; of the others, the depth
        model makes point maps where there is one, for the same `fov`.

        seed: of the noise. steps, guidance: of the structure, slat_steps, slat_guidance: of the structured latents, which
        default to the same steps, and all else to the checkpoint's values. shortcut: a structure in few steps, 4 unless `steps`
        says otherwise, without guidance.

        quality: a choice of all of these and the next three, by a name of `quality.QUALITIES` or one's own; options beside it
        win. By default everything is "exact". structure_cache, latents_cache: which velocities of the two are forecast and
        not evaluated, by a name of `velocity_caching.CACHES` or an object of that package; reuse_guidance: whether, or how,
        some differences by guidance are used again. `self.plan` tells how many evaluations all this comes to.

        formats: what the result is for, a part of `outputs.FORMATS`: only what they need is decoded. triangles,
        texture_size: of meshes and textures when they are written, see `bake.Surface`. stage1_only: voxels and pose alone.
        max_memory: bytes.

        structure: what another run came to, or its structure.safetensors: voxels and pose are taken in place of the first
        stage, and latents in place of the second generator if this run would come to the same. resume: what an earlier run
        with these very arguments came to, which is refused if an option differs, but for formats. on_part: told what is known
        so far after the first stage, after the latents and after each decoder, so that it can be written at once, see
        `runs.generate_into`, which does all this. models: where models stay open between stages. point_maps: where the point
        map of a photo stays, for several objects of it.

        Equal arguments give equal results. Raises ValueError for arguments that make no sense, and for models that this machine
        cannot run, before any work is done; if the memory that a stage is estimated to take is above `max_memory`, as soon as
        that is known: for a typical number of voxels before any work, for the real number after the structure; and,
        `checks.Failure`, where no voxel is occupied.
        """
        check_size("seed", seed, 0)
        self.artifacts.check_runs_here()
        further = as_views(views, multi_view)
        points = {"pointmap": pointmap, "depth": depth}
        looks = self.runs_depth_model(points | {"depth_model": depth_model})
        looks_on = bool(further) and self.runs_depth_model({"depth_model": depth_model})  # of further views
        check_view(fov)
        if fov is not None and not (looks or looks_on):
            raise ValueError(f"fov: expected with a depth model that makes the point map, given {fov!r} without one")
        wanted, surface = check_formats(formats, self.config.models), Surface(triangles, texture_size)
        begun, resumed = self._structure(structure), self._structure(resume)
        chosen = {"quality": quality, "steps": steps, "slat_steps": slat_steps, "guidance": guidance, "shortcut": shortcut}
        chosen |= {"slat_guidance": slat_guidance, "structure_cache": structure_cache, "latents_cache": latents_cache}
        planned = self.plan(chosen | {"reuse_guidance": reuse_guidance})
        first, second = planned.structure, planned.latents
        known = begun or resumed
        voxels = memory.TYPICAL_VOXELS if known is None else len(known.coords)
        limits = {"depth_model": looks or looks_on, "views": 1 + len(further)}
        self.check_memory(max_memory, voxels, stage1_only, formats, **limits)

        def stages() -> Generator[str, None, Result]:
            nonlocal begun
            photo = 0 if max_memory is None else memory.of_photo(image, mask, _gives_points(points), looks)
            for view in () if max_memory is None else further:
                photo = max(photo, memory.of_photo(*view, False, looks_on))
            self.check_memory(max_memory, voxels, stage1_only, formats, photo, **limits)
            run = Run(self.artifacts, on_progress, models=models, point_maps=point_maps)
            seen = {"depth": depth, "depth_scale": depth_scale, "intrinsics": intrinsics, "mask_upright": mask_upright}
            if looks or looks_on:
                yield DEPTH_MODEL
            inputs = run.inputs(image, mask, pointmap, axes=pointmap_axes, **seen, depth_model=looks, fov=fov)
            all_inputs = [inputs, *run.further_inputs(further, multi_view, mask_upright, looks_on, fov)]
            made_with = self._made_with(run.given | {"seed": seed}, planned)
            if begun is not None:
                begun, made_with = self._from_structure(begun, made_with)
            if resumed is not None:
                begun = self._resumed(resumed, made_with)
            if begun is None:
                yield "ss_condition_embedder"
                tokens = run.conditions("ss_condition_embedder", [found.structure for found in all_inputs])
                for found in all_inputs:
                    found.structure.clear()  # what is held is held for all objects that are under way
                yield "ss_generator"
                latents = run.structure(tokens, seed, first.sampling, first.shortcut, multi_view, first.saving)
                del tokens
                yield "ss_decoder"
                coords, factors = run.voxels(latents["shape"])
                pose = decode_pose(latents, inputs.scale, inputs.shift).scaled(factors)
                feats = None
            else:
                coords, pose, feats = begun.coords, begun.pose, begun.latents
            if len(coords) == 0:
                raise Failure("structure: no voxel is occupied: try another seed, or check that the mask covers the object")
            resolution = self.config.slat_generator.resolution
            result = Result(
                coords,
                resolution,
                pose,
                feats,
                None,
                None,
                None,
                run.seconds,
                evaluations=run.evaluations,
                photo=run.photo,
                random_weights=self.artifacts.random_weights,
                in_pointmap_units=inputs.scale is not None,
                camera=run.camera,
                made_with=made_with,
                surface=surface,
            )
            on_part(result)
            if stage1_only:
                return result
            self.check_memory(max_memory, len(coords), stage1_only, formats, **limits)
            if feats is None:
                yield "slat_condition_embedder"
                tokens = run.conditions("slat_condition_embedder", [found.slat for found in all_inputs])
                for found in all_inputs:
                    found.slat.clear()
                yield "slat_generator"
                feats = run.latents(coords, tokens, seed, second.sampling, multi_view, second.saving)
                del tokens
                result = replace(result, latents=feats)
                on_part(result)
            for name in (name for name in DECODED if name in wanted):
                yield name
                decoded = run.gaussians(name, coords, feats) if name in GAUSSIAN_DECODERS else run.mesh(coords, feats)
                result = replace(result, **{DECODED[name]: decoded})
                if any(FORMATS[other].textured and result.has_all([other]) for other in formats) and result.baked is None:
                    run.texture(result)
                on_part(result)
            return result

        return stages()

    generate = _to_the_end(steps)

    def runs_depth_model(self, options: Mapping[str, Any]) -> bool:
        """Whether a run of these options of `generate` has its point map made by the depth model."""
        return self.config.depth_model is not None and not _gives_points(options) and bool(options.get(DEPTH_MODEL, True))

    def plan(self, options: Mapping[str, Any]) -> Plan:
        """How the generators are sampled with these options of `generate`, of which others are not looked at; what `at_most` of
        it says is how many evaluations that takes. ValueError as there."""
        names = [name for name in inspect.signature(plan).parameters if name in options]
        return plan(self.config, **{name: options[name] for name in names})

    def has_points(self, options: Mapping[str, Any]) -> bool:
        """Whether a run of these options of `generate` has what puts objects into one scene."""
        return _gives_points(options) or self.runs_depth_model(options)

    def _made_with(self, given: Mapping[str, Any], planned: Plan) -> dict[str, dict[str, Any]]:
        """What decides the result, by stage, as JSON has it: options, digests of what was given, and of models. What is saved
        is named only where something is, so that exact results are the bytes that they ever were."""
        config = self.config.to_json()
        between = {name: value for name, value in config.items() if name not in MODELS and not name.endswith("_sampling")}
        shared = {**given, "precision": self.artifacts.precision, "version": __version__, "pipeline": _digest(between)}
        models: dict[str, dict[str, str]] = {stage: {} for stage in STAGES}
        for name in self.config.models:
            if name == DEPTH_MODEL:  # the digest of its point map is what decides
                continue
            stage = STAGES[0] if MODELS[name].stage == 1 else STAGES[2] if name in DECODED else STAGES[1]
            models[stage][name] = _digest(self.artifacts.keys[name])

        def sampled(prefix: str, stage: StagePlan) -> dict[str, Any]:
            sampling = stage.sampling
            values = {"steps": sampling.steps, "guidance": sampling.strength}
            values |= {"rescale_t": sampling.rescale_t, "guidance_interval": sampling.interval}
            values = {prefix + name: value for name, value in values.items()}
            return values | stage.saving.to_json(prefix, stage.argument)

        first, shortcut = sampled("", planned.structure), planned.structure.shortcut
        made_with = {
            "structure": {**shared, **first, "shortcut": shortcut, **models["structure"]},
            "latents": {**shared, **sampled("slat_", planned.latents), **models["latents"]},
            "decoders": models["decoders"],
        }
        return json.loads(json.dumps(made_with, default=lambda number: number.item()))

    def _from_structure(
        self, begun: Structure, made_with: dict[str, dict[str, Any]]
    ) -> tuple[Structure, dict[str, dict[str, Any]]]:
        """The structure of another run, without its latents if this run would come to others, and what the result is then made
        with."""
        theirs = begun.made_with.get("structure")
        if theirs is None:
            theirs = {"from_structure": _digest([_sha256(array) for array in (begun.coords, *vars(begun.pose).values())])}
        for name in GIVEN if "image" in theirs else ():
            if theirs.get(name) != made_with["structure"].get(name):
                say(f"structure: its voxels and pose were made from {'other' if name == 'views' else 'another'} {name}")
        if begun.latents is not None and (found := differences(made_with, begun.made_with, ("latents",))):
            say(f"structure: its latents are made anew, as they are of other options: {found}")
            begun = replace(begun, latents=None)
        return begun, made_with | {"structure": theirs}

    def _resumed(self, begun: Structure, made_with: dict[str, dict[str, Any]]) -> Structure:
        """What an earlier run of the same options came to. ValueError that names those that differ."""
        stages = STAGES if begun.latents is not None else STAGES[:1]
        if found := differences(made_with, begun.made_with, stages):
            raise ValueError(f"resume: expected the options of the run that is there: {found}")
        return begun

    def _structure(self, value: str | os.PathLike | Structure | None) -> Structure | None:
        """What a file holds. ValueError for a structure of another grid or with other latents than the models have."""
        found = value if value is None or isinstance(value, Structure) else Structure.load(value)
        config = self.config.slat_generator
        if found is not None and found.resolution != config.resolution:
            raise ValueError(f"structure: expected voxels on a grid of {config.resolution}, given {found.resolution}")
        if found is not None and found.latents is not None and found.latents.shape[1] != config.out_channels:
            raise ValueError(f"structure: expected latents of {config.out_channels} channels, given {found.latents.shape[1]}")
        return found

    def generate_scene(self, image: Picture, masks: Sequence[Picture], **options) -> list[Result]:
        """The objects of several masks, each as `generate` makes it, with poses in one scene if there is a point map.

        Without one a `notices.Notice` says that they lie over one another. `images.split_labels` makes masks of labels.
        """
        if isinstance(masks, (str, os.PathLike)) or len(masks) < 1:
            raise ValueError(f"masks: expected a list of at least one, given {masks!r}")
        on_progress = options.pop("on_progress", lambda progress: None)
        if len(masks) > 1 and not self.has_points(options):
            say(OVERLAP)
        check_masks(image, masks, options)
        results, point_maps = [], PointMaps() if len(masks) > 1 else None
        for number, mask in enumerate(masks, 1):
            tell = of_object(on_progress, number) if len(masks) > 1 else on_progress
            result = self.generate(image, mask, on_progress=tell, **{"point_maps": point_maps, **options})
            results.append(replace(result, name=f"object_{number}"))
        return results

    def memory(
        self,
        voxels: int = memory.TYPICAL_VOXELS,
        stage1_only: bool = False,
        formats: Sequence[str] | None = None,
        photo: int = 0,
        depth_model: bool = True,
        views: int = 1,
    ) -> dict[str, int]:
        """The bytes that each stage is estimated to take at its peak, for so many voxels. `formats`: those that are decoded,
        by default all. `photo`: what the photo takes, if that is to be a stage, "image", too. `depth_model`: whether that
        runs. `views`: photos of the object."""
        check_size("voxels", voxels, 0)
        weights = {name: self.artifacts.weight_bytes(name) for name in self.config.models}
        found = memory.estimate(self.config, weights, voxels, stage1_only, views)
        idle = set() if formats is None else set(DECODED) - check_formats(formats, self.config.models)
        idle |= set() if depth_model else {DEPTH_MODEL}
        first = {memory.IMAGE: photo} if photo else {}
        if photo and DEPTH_MODEL in found:  # while it runs the photo is there
            found[DEPTH_MODEL] += photo - memory.BASE
        return first | {name: value for name, value in found.items() if name not in idle}

    def check_memory(
        self,
        max_memory: int | None,
        voxels: int,
        stage1_only: bool = False,
        formats: Sequence[str] | None = None,
        photo: int = 0,
        depth_model: bool = True,
        views: int = 1,
    ) -> None:
        """ValueError with the estimate if a stage is estimated to take more than `max_memory` bytes."""
        if max_memory is None:
            return
        found = self.memory(voxels, stage1_only, formats, photo, depth_model, views)
        memory.check(found, max_memory, f"for {voxels:,} voxels")


class OpenModels:
    """Models of an artifact folder, of which the one that was asked for last stays in memory until another is, or all are let
    go of."""

    def __init__(self, artifacts: Artifacts):
        self._artifacts, self._name, self._model = artifacts, "", None

    def __getitem__(self, name: str) -> Any:
        """What runs model `name`, opened if it is not the one that is open."""
        if name != self._name:
            if self._name:
                self.let_go()
            self._model = MODELS[name].open(self._artifacts.load(name), getattr(self._artifacts.config, name))
            self._name = name
        return self._model

    def let_go(self) -> None:
        self._name, self._model = "", None
        gc.collect()


class PointMaps:
    """Keeps the point map that the depth model made last, so that several objects of one photo have it made once."""

    def __init__(self):
        self._of, self._kept = None, None

    def __call__(self, of: Any, make: Callable[[], PointMap]) -> PointMap:
        """The point map of `of`, a photo and what looks at it, which need but compare; from `make` if it is not the one that is
        kept."""
        if self._kept is None or of != self._of:
            self.let_go()
            self._of, self._kept = of, make()
        return self._kept

    def let_go(self) -> None:
        self._of, self._kept = None, None


class Run:
    """The stages of one object; each lets go of its model when it returns, or leaves that to `models`. `on_step(stage, step)`:
    told of every step of a sampler, and its state, beside `on_progress`."""

    def __init__(
        self,
        artifacts: Artifacts,
        on_progress: OnProgress = lambda progress: None,
        on_step: Callable[[str, Step], None] = lambda stage, step: None,
        models: OpenModels | None = None,
        point_maps: PointMaps | None = None,
    ):
        self.artifacts, self.config, self.seconds, self._models = artifacts, artifacts.config, {}, models
        self.evaluations: dict[str, dict[str, int]] = {}  # by stage, as of `Evaluations.counts`
        self.given: dict[str, str | None] = {}  # digests of image, mask and point map
        self.photo = None  # what views.png shows of it
        self.camera: PhotoCamera | None = None  # of the photo, if it is known
        self._point_maps = point_maps
        self._on_progress, self._on_step = on_progress, on_step

    @contextmanager
    def _stage(self, name: str, total: int = 1) -> Iterator[Callable[[Step], None]]:
        """A stage, timed; yields what to call after each of its `total` steps, unless it is one part."""
        start = time.perf_counter()
        self._on_progress(Progress(name, 0, total))

        def on_step(step: Step) -> None:
            self._on_step(name, step)
            self._on_progress(Progress(name, step.index + 1, total))

        yield on_step
        if total == 1:
            self._on_progress(Progress(name, 1, 1))
        self.seconds[name] = time.perf_counter() - start

    @contextmanager
    def _evaluations(self, stage: str, saving: Saving) -> Iterator[Evaluations]:
        """What the sampler of a stage asks; it is counted."""
        evaluations = saving.begin()
        yield evaluations
        self.evaluations[stage] = evaluations.counts()

    @contextmanager
    def _model(self, name: str) -> Iterator[Any]:
        """What runs a model. Nothing of it is left in memory when the caller has returned and all its results are copies."""
        if self._models is not None:
            yield self._models[name]
            return
        models = OpenModels(self.artifacts)
        yield models[name]
        models.let_go()

    def inputs(
        self,
        image: Picture,
        mask: Picture | None,
        pointmap: Any,
        *,
        axes: str = "pytorch3d",
        mask_upright: bool = False,
        depth_model: bool = False,
        fov: float | str | None = None,
        **depth: Any,
    ) -> Preprocessed:
        """What the generators see. `axes`: those of the point map, as upstream has them, or "auto". `depth`: depth, depth_scale
        and intrinsics of `pointmaps.load_point_map`. `depth_model`: whether that makes the point map, for a camera of the field
        of view `fov`."""
        seen = self._seen("", image, mask, pointmap, axes, mask_upright, depth_model, fov, **depth)
        self.given, self.photo, self.camera = seen.given, seen.photo, seen.camera
        return seen.inputs

    def further_inputs(
        self,
        views: Sequence[tuple[Picture, Picture | None]],
        multi_view: str,
        mask_upright: bool = False,
        depth_model: bool = False,
        fov: float | str | None = None,
    ) -> list[Preprocessed]:
        """What the generators see of further photos of the object, each an image and its mask. Options as of `inputs`."""
        seen = [
            self._seen(f" of view {number}", *view, None, pointmaps.AUTO, mask_upright, depth_model, fov)
            for number, view in enumerate(views, 2)
        ]
        if seen:  # with one view results are made with what they ever were
            self.given |= {"views": _digest([view.given for view in seen]), "multi_view": multi_view}
        return [view.inputs for view in seen]

    def _seen(
        self,
        of_view: str,
        image: Picture,
        mask: Picture | None,
        pointmap: Any,
        axes: str,
        mask_upright: bool,
        depth_model: bool,
        fov: float | str | None,
        **depth: Any,
    ) -> "_Seen":
        """A photo as the generators see it; `of_view` is added to the names of its stages."""
        photo = found = None
        if depth_model:
            with self._stage(f"depth{of_view}"):
                photo = images.load_photo(image, mask, mask_upright)
                found = self.looked_at(photo.rgba, fov_of(fov, image))
        with self._stage(f"image{of_view}"):
            if photo is None:
                photo = images.load_photo(image, mask, mask_upright)
                found = pointmaps.load_point_map(pointmap, axes, **depth, size=photo.size, orientation=photo.orientation)
            rgba = photo.rgba
            given = {"image": _sha256(rgba[..., :3]), "mask": _sha256(rgba[..., 3]), "pointmap": None}
            camera = points = None
            options = self.config.preprocessing
            if found is not None:
                camera, points = found.camera(photo.size), found.points
                given["pointmap"] = _sha256(points)
                points = _over_pixels(points, rgba.shape[:2])
                if options.clip_pointmap_beyond_scale is not None:
                    points = clipped(points, rgba[..., 3], options.clip_pointmap_beyond_scale)
            sizes = options.size, options.box_size_factor, options.padding_factor
            inputs = preprocess(rgba, points, *sizes, structure_sees_crop=options.structure_sees_crop)
            return _Seen(given, thumbnail(rgba), camera, inputs)

    def looked_at(self, rgba: np.ndarray, fov_x: float | None) -> PointMap:
        """What the depth model makes of a photo uint8 [H, W, 4], without regard to its mask."""

        def make() -> PointMap:
            with self._model(DEPTH_MODEL) as model:
                return point_map(model, rgba, fov_x)

        if self._point_maps is None:
            return make()
        return self._point_maps((self.artifacts.keys[DEPTH_MODEL], _sha256(rgba[..., :3]), fov_x), make)

    def condition(self, name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 [1, L, C]. Point maps that are not there are dropped, and so is what the model does not look at."""
        return self.conditions(name, [arrays])[0]

    def conditions(self, name: str, views: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        """The same for each of several views."""
        stage, found = f"condition of the {'structure' if MODELS[name].stage == 1 else 'latents'}", []
        with self._stage(stage, len(views)), self._model(name) as model:
            for number, arrays in enumerate(views, 1):
                given = {key: arrays[key] for key in model.rows if key in arrays}
                found.append(model.tokens(given, drop=[key for key in model.rows if key in POINTMAPS and key not in arrays]))
                if len(views) > 1:
                    self._on_progress(Progress(stage, number, len(views)))
        return found

    def structure(
        self,
        tokens: np.ndarray | Sequence[np.ndarray],
        noise: Mapping[str, np.ndarray] | int,
        sampling: Sampling,
        shortcut: bool = False,
        multi_view: str = MEAN,
        saving: Saving = EVERYTHING,
    ) -> dict[str, np.ndarray]:
        """The latents of shape and pose from their noise, or the seed of it. tokens: of one view, or of each of several."""
        with self._stage("structure", sampling.steps) as on_step, self._model("ss_generator") as flow:
            guidance = None if shortcut else Guidance(sampling.strength, sampling.interval)
            options = {"rescale_t": sampling.rescale_t, "shortcut": shortcut, "multi_view": multi_view, "on_step": on_step}
            with self._evaluations("structure", saving) as evaluations:
                return flow.sample(noise, tokens, sampling.steps, guidance, **options, evaluations=evaluations)

    def voxels(self, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates int32 [N, 4], and by how much the scale of the pose grows, int64 [1]."""
        with self._stage("voxels"), self._model("ss_decoder") as decoder:
            return decoder.coords(shape, prune_distance=self.config.prune_distance)

    def latents(
        self,
        coords: np.ndarray,
        tokens: np.ndarray | Sequence[np.ndarray],
        noise: np.ndarray | int,
        sampling: Sampling,
        multi_view: str = MEAN,
        saving: Saving = EVERYTHING,
    ) -> np.ndarray:
        """float32 [N, C], as the decoders take them, from noise of that shape, or the seed of it. tokens: of one view, or of
        each of several."""
        with self._stage("latents", sampling.steps) as on_step, self._model("slat_generator") as generator:
            if not isinstance(noise, np.ndarray):
                shape = (len(coords), self.config.slat_generator.in_channels)
                noise = np.random.default_rng([noise, 1]).standard_normal(shape, np.float32)
            guidance = Guidance(sampling.strength, sampling.interval)
            options = {"rescale_t": sampling.rescale_t, "multi_view": multi_view, "on_step": on_step}
            with self._evaluations("latents", saving) as evaluations:
                feats = generator.sample(coords, tokens, noise, sampling.steps, guidance, **options, evaluations=evaluations)
            return denormalised(feats, self.config)

    def gaussians(self, name: str, coords: np.ndarray, feats: np.ndarray) -> Gaussians:
        with self._stage("gaussians" if name == "slat_decoder_gs" else "few gaussians"), self._model(name) as decoder:
            raw = decoder(coords, feats)
            offsets = self.artifacts.offset_perturbation[name]
            return Gaussians.from_features(coords, raw, decoder.config.resolution, decoder.config.representation, offsets)

    def texture(self, result: Result) -> TexturedMesh:
        with self._stage("texture"):
            return result.textured

    def mesh(self, coords: np.ndarray, feats: np.ndarray) -> Mesh:
        with self._stage("mesh"), self._model("slat_decoder_mesh") as decoder:
            features, fine = decoder(coords, feats)
            resolution = decoder.config.out_resolution
            return extract_mesh(fine, features, resolution, decoder.config.representation_config["use_color"])


@dataclass(frozen=True, eq=False)
class _Seen:
    """A photo as the generators see it: digests of image, mask and point map; a small picture of it; its camera, if known."""

    given: dict[str, str | None]
    photo: np.ndarray
    camera: PhotoCamera | None
    inputs: Preprocessed


def _sha256(array: np.ndarray) -> str:
    """Of the shape and the values of an array; its rows are copied one at a time where they are not contiguous."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    for row in [array] if array.flags.c_contiguous else array:
        digest.update(np.ascontiguousarray(row).data)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    """Of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def as_views(views: Sequence[View], multi_view: str = MEAN) -> list[tuple[Picture, Picture | None]]:
    """Further photos of an object, each with its mask, None where that is the alpha channel. ValueError for what is no list of
    photos, more of them than there may be, and another mode of `multi_view`."""
    if not isinstance(views, (list, tuple)):
        raise ValueError(f"views: expected a list of photos, each (image, mask) or an image, given {type(views).__name__}")
    Views(1 + len(views), multi_view)
    found = []
    for number, view in enumerate(views, 2):
        pair = tuple(view) if isinstance(view, (list, tuple)) else (view, None)
        if len(pair) != 2:
            raise ValueError(f"views: expected (image, mask) or an image, given {len(pair)} values as view {number}")
        found.append(pair)
    return found


def _gives_points(options: Mapping[str, Any]) -> bool:
    """Whether options of `Pipeline.generate` say where the points of a photo are, so that no model need find them."""
    return any(options.get(name) is not None for name in ("pointmap", "depth"))


def check_masks(image: Picture, masks: Sequence[Picture], options: Mapping[str, Any]) -> None:
    """ValueError for any of several masks that is refused, before work on the first one begins, and for several masks with
    several views."""
    if len(masks) > 1 and options.get("views"):
        raise ValueError(f"masks: expected one with several views, as they are of one object, given {len(masks)}")
    for mask in masks if len(masks) > 1 else ():
        images.check_mask(image, mask, options.get("mask_upright", False))


def denormalised(feats: np.ndarray, config: PipelineConfig) -> np.ndarray:
    """Structured latents float32 [N, C] in the units that the decoders were trained with."""
    return feats * np.float32(config.slat_std) + np.float32(config.slat_mean)


def clipped(pointmap: np.ndarray, mask: np.ndarray, beyond: float) -> np.ndarray:
    """A point map float32 [3, H, W] with NaN where it is further away than `beyond` times the object, mask uint8 [H, W]: in
    depth, against the lower median of the object's."""
    depths = np.sort(pointmap[2][(mask > 127) & ~np.isnan(pointmap[2])])
    if len(depths) == 0:
        return pointmap
    far = np.abs(pointmap[2]) > beyond * depths[(len(depths) - 1) // 2]
    return np.where(far, np.float32(np.nan), pointmap)


def _over_pixels(pointmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A point map [3, h, w] with a point for every pixel of a picture (H, W), the nearest one."""
    return pointmap if pointmap.shape[1:] == size else resized_nearest(pointmap, size)
