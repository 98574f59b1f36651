"""`mesh_extract`, `mesh_extract_nocolor` and `mesh_extract_random`: from features in cubes to a mesh, and what lies between."""

import numpy as np

from sam3d_tvm.mesh.flexicubes import (
    COLOR,
    DEFORM,
    SHEETS,
    corner_means,
    corner_numbers,
    corner_positions,
    crossed_ends,
    cube_weights,
    extract_mesh,
    grid_sdf,
    surface_cubes,
)
from tests.golden.case import Case, Tensors

CORNER = 8 + 1  # a mean of eight cubes, and what is done with it
CROSSING = CORNER + 4  # four products of a signed distance, a weight and a position
VERTEX = CROSSING + 12  # a mean of the crossings of at most twelve edges
DEPTHS = {
    "mid.grid_vertices": CORNER,
    "mid.sdf": CORNER,
    "mid.grid_colors_raw_nonzero_rows": CORNER,
    "mid.dual_vertices": VERTEX,
    "out.vertices": VERTEX,
    "out.vertex_attrs": VERTEX,
    "out.face_normal": VERTEX,
    "out.vertex_normal": VERTEX,
}


def run(tensors: Tensors, config: dict) -> Tensors:
    coords, feats, resolution = tensors["in.coords"], tensors["in.feats"], config["res"]
    mesh = extract_mesh(coords, feats, resolution, config["use_color"])
    cells = coords[:, 1:].astype(np.int64)
    corners = corner_numbers(cells, resolution)
    sdf = grid_sdf(corners, feats, resolution)
    cubes, cases = surface_cubes(sdf, resolution)
    beta, alpha, gamma = cube_weights(cubes, cells, feats, resolution)
    everywhere = np.arange(len(sdf))
    deform = corner_means(everywhere, corners, feats[:, DEFORM], resolution)
    found = {
        "mid.grid_vertices": corner_positions(everywhere, deform, resolution),
        "mid.sdf": sdf,
        "mid.surf_cubes": cubes,
        "mid.case_ids": cases,
        "mid.surf_edges": np.unique(crossed_ends(cubes, *np.nonzero(SHEETS[cases] >= 0), resolution), axis=0),
        "mid.dual_vertices": mesh.vertices,
        "mid.beta": beta,
        "mid.alpha": alpha,
        "mid.gamma": gamma,
        "out.vertices": mesh.vertices,
        "out.faces": mesh.faces,
        "out.face_normal": mesh.face_normals,
        "out.vertex_normal": mesh.vertex_normals,
    }
    if config["use_color"]:
        colors = corner_means(everywhere, corners, feats[:, COLOR], resolution)
        found["mid.grid_colors_raw_nonzero_rows"] = colors[colors.any(1)]
        found["out.vertex_attrs"] = mesh.vertex_attributes
    return found


def scale(name: str, tensors: Tensors, config: dict) -> float | None:
    """Normals: how far a rounded vertex turns a face, by its size and the least height of any face; they are within 1."""
    if not name.endswith("_normal"):
        return None
    vertices = tensors["out.vertices"].astype(np.float64)
    a, b, c = vertices[tensors["out.faces"].T]
    longest = np.linalg.norm([b - a, c - b, a - c], axis=2).max(0)
    heights = np.linalg.norm(np.cross(b - a, c - a), axis=1) / longest
    return np.abs(vertices).max() / heights.min()


CASE = Case(run, lambda name, tensors, config: DEPTHS.get(name, 1), scale)
