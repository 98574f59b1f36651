"""`windowed_attention`: attention layers within windows of voxels, batch elements, and windows along a curve; and to a context.

`config["ops"]` lists the layers; `out.<name>` is what a layer returns. `mid.window_s<shift>.*` says how voxels fall into
windows. `mid.<name>.fwd` are the rows of every serialized window, one after the other, `mid.<name>.seq_lens` their number
and `mid.<name>.bwd` where each row stands that is a query; `mid.<name>.code` is the order.
"""

import numpy as np
import tvm
from tvm.relax.frontend.nn import spec

from sparse_ops import nn
from sparse_ops.build import pack_params
from sparse_ops.eager import functional as F
from tests.golden import depths
from tests.golden.case import Case, Tensors, compiled
from tir_kernels.spec import windows


class Layers(nn.Module):
    """Every layer of the config under its name, all on the same input."""

    def __init__(self, ops: list[dict]):
        self.names = [op["name"] for op in ops]
        for op in ops:
            setattr(self, op["name"], _layer(op))

    def forward(self, feats: nn.Tensor, coords: nn.Tensor, context: nn.Tensor, context_offsets: nn.Tensor):
        x = nn.SymbolicSparseTensor.of(feats, coords, context_offsets.shape[0] - 1)
        results = []
        for name in self.names:
            layer = getattr(self, name)
            cross = isinstance(layer, nn.CrossAttention)
            results.append(layer(x, layer.context(context), context_offsets) if cross else layer(x))
        return [result.feats for result in results]


def _layer(op: dict) -> nn.Module:
    if op["type"] == "cross":
        return nn.CrossAttention(op["channels"], op["ctx_channels"], op["num_heads"])
    arguments = op["channels"], op["num_heads"]
    if op["attn_mode"] == "windowed":
        return nn.WindowedSelfAttention(*arguments, op["window_size"], op["shift_window"], op["qk_rms_norm"])
    if op["attn_mode"] == "serialized":
        return nn.SerializedSelfAttention(*arguments, *_serialized(op), qk_rms_norm=op["qk_rms_norm"])
    return nn.SelfAttention(*arguments, op["qk_rms_norm"])


def _serialized(op: dict) -> tuple:
    """window, shift_sequence, shift and mode of a serialized layer."""
    return op["window_size"], op["shift_sequence"], tuple(op["shift_window"]), op["serialize_mode"].lower()


def run(tensors: Tensors, config: dict) -> Tensors:
    context = tensors["in.ctx"]  # [B, L, C]
    layers = Layers(config["ops"])
    inputs = {
        "feats": spec.Tensor(["rows", tensors["in.x"].shape[1]], "float32"),
        "coords": spec.Tensor(["rows", 4], "int32"),
        "context": spec.Tensor(["tokens", context.shape[2]], "float32"),
        "context_offsets": spec.Tensor([len(context) + 1], "int32"),
    }
    mod, params = layers.export_tvm({"forward": inputs})
    program = compiled(mod)
    weights = [tvm.runtime.tensor(tensors[f"state.{name}"]) for name, _ in params]
    offsets = np.arange(len(context) + 1, dtype="int32") * context.shape[1]
    arrays = tensors["in.x"], tensors["in.coords"], context.reshape(-1, context.shape[2]), offsets
    results = program["forward"](*map(tvm.runtime.tensor, arrays), *pack_params(program, "forward", weights.__getitem__))
    out = {f"out.{name}": value.numpy() for name, value in zip(layers.names, results, strict=True)}
    for op in config["ops"]:
        if op["attn_mode"] == "windowed":
            out |= _window_mids(tensors["in.coords"], op)
        if op["attn_mode"] == "serialized":
            out |= _serialized_mids(tensors["in.coords"], op)
    return out


def _window_mids(coords: np.ndarray, op: dict) -> Tensors:
    order, offsets = F.window_partition(coords, op["window_size"], op["shift_window"])
    lengths = np.diff(offsets)
    window_of_voxel = np.empty(len(coords), "int64")
    window_of_voxel[order] = np.repeat(np.arange(len(lengths)), lengths)
    found = {"seq_lens": lengths, "seq_batch": coords[order[offsets[:-1]], 0], "window_of_voxel": window_of_voxel}
    return {f"mid.window_s{op['shift_window']}.{key}": value.astype("int64") for key, value in found.items()}


def _serialized_mids(coords: np.ndarray, op: dict) -> Tensors:
    window, shift_sequence, shift, mode = _serialized(op)
    q_order, q_offsets, k_order, k_offsets = F.serialized_partition(coords, window, shift_sequence, shift, mode)
    place = np.empty(len(coords), "int64")
    for queries, first, last in zip(np.split(q_order, q_offsets[1:-1]), k_offsets[:-1], k_offsets[1:], strict=True):
        keys = k_order[first:last]
        by_row = np.argsort(keys)
        place[queries] = first + by_row[np.searchsorted(keys, queries, sorter=by_row)]
    found = {"fwd": k_order, "bwd": place, "seq_lens": np.diff(k_offsets)}
    found = {key: value.astype("int64") for key, value in found.items()} | {"code": F.serialize(coords, mode, shift)}
    return {f"mid.{op['name']}.{key}": value for key, value in found.items()}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    """Additions behind a layer: projections, logits and the weighted sum of its longest window."""
    if name.startswith("mid."):
        return 1.0
    (op,) = (op for op in config["ops"] if name == f"out.{op['name']}")
    projections = depths.linear(op["channels"]) + depths.linear(op.get("ctx_channels", op["channels"]))
    return projections + depths.attention(op["channels"] // op["num_heads"], _most_keys(tensors, op))


def _most_keys(tensors: Tensors, op: dict) -> int:
    coords = tensors["in.coords"]
    if op["type"] == "cross":
        return tensors["in.ctx"].shape[1]
    if op["attn_mode"] == "windowed":
        window, shift = ((op[key],) * 3 for key in ("window_size", "shift_window"))
        return int(np.diff(windows.naive(coords, window, shift)[1]).max(initial=1))
    if op["attn_mode"] == "serialized":
        return op["window_size"]
    return depths.rows_of_element(coords)


CASE = Case(run, depth)
