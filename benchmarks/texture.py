"""Textured meshes: how near their pictures come to the splat's own, and what each step of baking takes.

    python -m benchmarks.texture                        # a ring of real size: 460,000 triangles, 400,000 Gaussians
    python -m benchmarks.texture --demo                 # and the demo's photo, with random weights
    python -m benchmarks.texture --triangles 20000 --texture-size 1024 --views 100 --json FILE

PSNR over eight views that nothing was baked from, against pictures of the splat, on white: of the mesh with its texture, of
the whole mesh with the colours of its vertices, and of the simplified one with those; without light. "Inside" counts the
pixels that all three cover.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.texture_object import ring_gaussians, ring_mesh
from sam3d_tvm.mesh.bake import TEXTURE_SIZE, TRIANGLES, VIEWS, bake, textured_picture
from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.mesh.picture import mesh_picture
from sam3d_tvm.mesh.textured_files import save_textured_glb
from sam3d_tvm.splat.cameras import orbit_box
from sam3d_tvm.splat.gaussians import Gaussians
from sam3d_tvm.splat.picture import splat_picture

SIZE = 400  # pixels of a picture
ELEVATIONS = (25.0, -35.0)  # four held-out views from each


def measure(name: str, mesh: Mesh, gaussians: Gaussians, triangles: int, texture_size: int, views: int) -> dict:
    """A row: sizes, PSNR and seconds."""
    start, used = time.perf_counter(), time.process_time()
    textured = bake(mesh, gaussians, triangles, texture_size, views)
    seconds = dict(textured.seconds)
    seconds["bake"], seconds["bake, CPU"] = time.perf_counter() - start, time.process_time() - used
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        save_textured_glb(Path(folder) / "textured.glb", [("mesh", textured, None)])
    seconds["write"] = time.perf_counter() - start
    shown = {"texture": [], "vertices": [], "simplified vertices": []}
    inside: dict[str, list[float]] = {way: [] for way in shown}
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    for elevation in ELEVATIONS:
        for camera in orbit_box(low, high, 4, elevation):
            wanted = np.asarray(splat_picture(gaussians, camera, SIZE), float)
            found = {
                "texture": textured_picture(textured, camera, SIZE),
                "vertices": mesh_picture(mesh, camera, SIZE, light=False),
                "simplified vertices": mesh_picture(textured.mesh, camera, SIZE, light=False),
            }
            pictures = {way: np.asarray(picture, float) for way, picture in found.items()}
            covered = np.all([(picture < 255).any(-1) for picture in (wanted, *pictures.values())], 0)
            for way, picture in pictures.items():
                shown[way].append(_psnr(picture - wanted))
                inside[way].append(_psnr((picture - wanted)[covered]))
    return {
        "object": name,
        "triangles": [len(mesh.faces), len(textured.faces)],
        "gaussians": len(gaussians),
        "watertight": [mesh.is_watertight, textured.is_watertight],
        "psnr": {way: float(np.mean(values)) for way, values in shown.items()},
        "psnr_inside": {way: float(np.mean(values)) for way, values in inside.items()},
        "seconds": seconds,
    }


def _psnr(difference: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max((difference**2).mean(), 1e-12))) if difference.size else np.nan


def _demo() -> tuple[Mesh, Gaussians]:
    """What random weights make of the photo of the demo."""
    from sam3d_tvm.tvm_without_torch import import_tvm

    import_tvm()
    from importlib import resources

    from sam3d_tvm.pipeline import Pipeline

    data = resources.files("sam3d_tvm") / "data"
    with resources.as_file(data / "coffee.png") as image, resources.as_file(data / "coffee_mask.png") as mask:
        result = Pipeline.from_preset("random-tiny").generate(image, mask, seed=42, formats=["ply", "glb"])
    return result.mesh, result.gaussians


def main() -> None:
    parser = argparse.ArgumentParser(description="Textured meshes against the splat that they were baked from.")
    parser.add_argument("--triangles", type=int, default=TRIANGLES)
    parser.add_argument("--texture-size", type=int, default=TEXTURE_SIZE)
    parser.add_argument("--views", type=int, default=VIEWS)
    parser.add_argument("--demo", action="store_true", help="the demo's photo, too; may compile the preset random-tiny")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows to FILE")
    options = parser.parse_args()
    mesh = ring_mesh()
    cases = {"ring": (mesh, ring_gaussians(mesh))}
    if options.demo:
        cases["demo"] = _demo()
    rows = [measure(name, *case, options.triangles, options.texture_size, options.views) for name, case in cases.items()]
    console = Console()
    for row in rows:
        table = Table(
            title=f"{row['object']}: {row['triangles'][0]:,} to {row['triangles'][1]:,} triangles, "
            f"{row['gaussians']:,} Gaussians, watertight {row['watertight'][0]} to {row['watertight'][1]}"
        )
        for column in ("colours", "PSNR, dB", "inside, dB"):
            table.add_column(column)
        for way, value in row["psnr"].items():
            table.add_row(way, f"{value:.2f}", f"{row['psnr_inside'][way]:.2f}")
        console.print(table)
        console.print(", ".join(f"{step} {value:.1f} s" for step, value in row["seconds"].items()))
    if options.json:
        options.json.write_text(json.dumps({"machine": platform.processor(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
