"""A run into a folder: every file is written as soon as what it holds is ready, and a run that was interrupted goes on.

    generate_into(pipeline, "out", "photo.png", ["mask.png"], formats=["ply", "glb"], resume=True, seed=42)

One object lies in the folder itself, of several each in `object_1`, `object_2` and so on.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sam3d_tvm.mesh.bake import TEXTURE_SIZE, Surface
from sam3d_tvm.notices import say
from sam3d_tvm.outputs import FORMATS, POSE, VIEWS, Result, ResultFolder, check_formats, lacks_scene, write_scene
from sam3d_tvm.pipeline import OVERLAP, OnProgress, Picture, Pipeline, PointMaps, Progress, check_masks, of_object
from sam3d_tvm.run_folder import RunFolder, check_free, check_writable
from sam3d_tvm.structure import STRUCTURE, Structure


def generate_into(
    pipeline: Pipeline,
    folder: str | os.PathLike,
    image: Picture,
    masks: Sequence[Picture] = (),
    *,
    formats: Sequence[str] = ("ply", "glb"),
    resume: bool = False,
    from_structure: str | os.PathLike | None = None,
    scene: bool | None = None,
    names: Sequence[str] | None = None,
    triangles: int | None = None,
    texture_size: int = TEXTURE_SIZE,
    on_progress: OnProgress = lambda progress: None,
    **options,
) -> tuple[list[Result], list[Path]]:
    """The objects of a photo, an object a mask, as `Pipeline.generate` makes them, and the paths of all files of the run.

    structure.safetensors and pose.json are written after the first stage, latents and the file of each format when they are
    there, pictures and the files of the scene at last. If anything is raised what is written stays. `scene`: whether several
    objects are also written into one file for each format, by default where a point map or depth says where they are. `names`:
    what the objects are called in it, in place of their folders' names.

    resume: goes on with what an earlier run with the same options wrote to the folder, or begins where there is nothing:
    finished objects and files are kept, and in the end there are the bytes of a run that was not interrupted, with the formats
    of both. Otherwise files that an earlier run left are removed when the first one is written; files that are not, or not any
    more, as a run wrote them never are. from_structure: the structure.safetensors of another run, or the folder of one, whose
    voxels and poses are taken. triangles, texture_size: as of `Pipeline.generate`.

    Raises ValueError as `Pipeline.generate`, also for a run to be resumed whose options differ, or that had one object in place
    of several, several in place of one, or more; and before any work for something in the way of the folder or its files.
    OSError, with the name of the folder or file, where it cannot be written.
    """
    if isinstance(masks, (str, os.PathLike)):
        raise ValueError(f"masks: expected a list, given {masks!r}")
    if names is not None and len(names) != max(1, len(masks)):
        raise ValueError(f"names: expected one an object, {max(1, len(masks))}, given {len(names)}")
    masks, several = list(masks), len(masks) > 1
    check_masks(image, masks, options)
    run = check_folder(folder, max(1, len(masks)), formats, resume, from_structure)
    scene_known = pipeline.has_points(options)
    scene = scene_known if scene is None else scene
    if several and not scene_known:
        say(OVERLAP if scene else f"{OVERLAP}; no scene_* file is written, unless asked for by --scene (scene=True)")
    results: list[Result] = []
    written: list[Path] = []
    point_maps = PointMaps() if several else None

    def told(number: int) -> OnProgress:
        return of_object(on_progress, number) if several else on_progress

    def generate(number: int, wanted: Sequence[str], writer: ResultFolder) -> Result:
        name = f"object_{number}" if several else ""
        result = pipeline.generate(
            image,
            masks[number - 1] if masks else None,
            formats=wanted,
            structure=_file(from_structure, name),
            resume=writer.structure,
            on_progress=told(number),
            on_part=writer,
            point_maps=point_maps,
            triangles=triangles,
            texture_size=texture_size,
            **options,
        )
        return replace(result, name=names[number - 1] if names else name or result.name)

    surface = Surface(triangles, texture_size)
    writers = [
        ResultFolder(run.below(f"object_{n + 1}") if several else run, formats, surface) for n in range(max(1, len(masks)))
    ]
    for number, writer in enumerate(writers, 1):
        results.append(result := generate(number, writer.lacking, writer))
        told(number)(Progress("pictures", 0, 1))
        written += writer.finish(result)
        told(number)(Progress("pictures", 1, 1))
    if not several:
        run.keep_objects([])
        return results, written
    scene_formats = writers[0].formats if scene else []
    if lacks_scene(run, results, scene_formats):
        for number, writer in enumerate(writers, 1):
            if not results[number - 1].has_all(scene_formats):  # files of it were kept: decoded again, from its latents
                results[number - 1] = generate(number, scene_formats, writer)
    return results, written + write_scene(run, results, scene_formats)


def check_folder(
    folder: str | os.PathLike,
    objects: int,
    formats: Sequence[str],
    resume: bool = False,
    from_structure: str | os.PathLike | None = None,
) -> RunFolder:
    """The folder of a run, of which all is tried before any work: that files can be written to it and to those of its objects,
    that nothing is in their way, and that structures can be read. Errors as of `generate_into`."""
    check_formats(formats)
    check_writable(folder)
    run = RunFolder(folder, resume)
    if resume:
        run.check_objects(objects)
    kinds = [FORMATS[name] for name in FORMATS if name in formats]
    if objects > 1:
        check_free(run.folder, (file for kind in kinds for file in kind.scene_writers))
    for name in (f"object_{number}" for number in range(1, objects + 1)) if objects > 1 else ("",):
        if name:
            check_writable(run.folder / name)
            RunFolder(run.folder / name)
        check_free(run.folder / name, (STRUCTURE, POSE, VIEWS, *(file for kind in kinds for file in kind.writers)))
        if from_structure is not None:
            Structure.load(_file(from_structure, name))
    return run


def is_begun(folder: str | os.PathLike) -> bool:
    """Whether there is something in the folder that a run can go on with: the structure of an object."""
    run = RunFolder(folder, resume=True)
    return any(STRUCTURE in names for names in run.names.values())


def _file(from_structure: str | os.PathLike | None, name: str) -> Path | None:
    """The structure of an object: of the folder of a run, or the file itself if there is but one object."""
    if from_structure is None:
        return None
    path = Path(from_structure)
    if path.is_dir():
        return path / name / STRUCTURE
    if name:
        raise ValueError(f"from_structure: expected the folder of a run of several objects, given {str(path)!r}")
    return path
