"""Networks of spconv's users: SECOND plain and residual, SpUNet, VoxelNeXt, TRELLIS' mesh decoder.

Run eagerly through `sparse_ops.torch.spconv`, compiled at the file's rows, and compiled for any number of rows, which is
compared with the file at all of them and with the eager network at few.
"""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from sparse_ops.eager import functional as F
from tests.golden import case_mesh_subdivide_block as block
from tests.golden import depths
from tests.golden.case import FEW, Case, Tensors
from tir_kernels.spec import windows


def run(kind: str, tensors: Tensors, config: dict) -> Tensors:
    return _network(kind, tensors, config).eager()


def ways(kind: str, tensors: Tensors, config: dict) -> Iterator[tuple[str, Tensors, Tensors]]:
    network = _network(kind, tensors, config)
    yield "compiled", network.run(network.compiled(symbolic=False)), tensors
    component = network.compiled()
    yield "any rows", network.run(component), tensors
    for rows in FEW:
        yield f"{rows} rows", *_few(network, component, rows)
    if kind == "spunet":
        constant = _network(kind, tensors, config, constant_shape=True)
        yield "constant shape", constant.run(constant.compiled()), tensors
        yield "constant shape, 0 rows", *_few(constant, constant.compiled(), 0)


def _few(network, component, rows: int) -> tuple[Tensors, Tensors]:
    """What the compiled and the eager network make of few rows."""
    found, eager = network.run(component, rows), network
    if not rows and "constant_shape" not in network.options and network.kind == "spunet":
        # Torch has no maximum of nothing, so no grid's size from no data; a compiled network has.
        eager = _network(network.kind, network.tensors, network.config, constant_shape=True)
        found = {name: x for name, x in found.items() if not name.endswith("spatial_shape")}
    feats, coords = network.inputs(rows)
    expected = {name: x for name, x in eager.eager(rows).items() if name in found}
    return found, expected | {"in.feats": feats, "in.coords": coords}


def _network(kind: str, tensors: Tensors, config: dict, **options):
    from tests.golden.networks.ways import network_of  # imports torch, which other cases do without

    return network_of(kind, tensors, config, **options)


def depth(kind: str, name: str, tensors: Tensors, config: dict) -> float:
    """Products behind a value: those of its layer and of all that run before it."""
    path = _path(name, config)
    if kind == "trellis_meshdec":
        return _decoder_depths(tensors["in.coords"], config)[path]
    trace = config["trace"]
    if path == "merged":  # what is left of it where two dimensions begin, and the rows of a column
        trace = [layer for layer in trace if len(layer["kernel"]) == 3]
        return _convolutions(trace) + sum(layer["shape_out"][0] for layer in trace if layer["kind"] == "strided")
    # A module without layers returns what it is given: it counts as if it were the last one.
    last = max((i for i, layer in enumerate(trace) if f"{layer['name']}.".startswith(f"{path}.")), default=len(trace) - 1)
    return _convolutions(trace if not path else trace[: last + 1])


def _path(name: str, config: dict) -> str:
    """Where the network has what a file calls `name`, "" for its end."""
    from tests.golden.networks.recorded import module_of  # imports torch, which other cases do without

    return "" if name.startswith("out.") else module_of(name.split(".")[1], config)


def _convolutions(trace: list[dict]) -> float:
    """Each with the multiplication and addition of a norm."""
    return sum(depths.conv(layer["c_in"], math.prod(layer["kernel"])) + 2 for layer in trace)


def _decoder_depths(coords: np.ndarray, config: dict) -> dict[str, float]:
    """Additions behind what the modules of a mesh decoder return, by their path, "" for the whole."""
    arch, found = config["arch"], {}
    channels = arch["model_channels"]
    so_far = depths.linear(arch["latent_channels"]) + 1
    for i in range(arch["num_blocks"]):
        keys = _keys(coords, arch, i)
        so_far += 2 * depths.layer_norm(channels) + depths.attention(channels // arch["num_heads"], keys)
        so_far += 3 * depths.linear(channels) + depths.linear(int(channels * arch["mlp_ratio"]))
        found[f"blocks.{i}"] = so_far
    trace = {layer["name"]: layer for layer in config["trace"]}
    for i in range(sum(name.endswith(".out_layers.0.conv") for name in trace)):
        first = trace[f"upsample.{i}.out_layers.0.conv"]
        so_far += block.depths_of(coords, first["c_in"], first["c_out"], arch.get("group_norm_groups", 32))["y"]
        coords = F.subdivide(coords)
        found[f"upsample.{i}"] = so_far
    return found | {"": so_far + depths.linear(channels)}


def _keys(coords: np.ndarray, arch: dict, number: int) -> int:
    """The most voxels that one attends to in block `number`."""
    everything = depths.rows_of_element(coords)
    if arch["attn_mode"] == "full":
        return everything
    window = arch["window_size"]
    if arch["attn_mode"] != "swin":  # along a curve
        return min(window, everything)
    shift = window // 2 * (number % 2)
    return int(np.diff(windows.naive(coords, (window,) * 3, (shift,) * 3)[1]).max(initial=1))


KINDS = "second", "second_res", "spunet", "trellis_meshdec", "voxelnext"
CASES = {kind: Case(partial(run, kind), partial(depth, kind), ways=partial(ways, kind)) for kind in KINDS}
