"""`torture`: single layers of spconv and one chain, in one to three dimensions (four are refused).

`config["layers"]` lists each layer with its class, constructor arguments and input: the name of an earlier layer or of an
input tensor. Parameters are `state.<layer>.*`; `mid.<layer>.feats / coords / spatial_shape` are its result, rows sorted by
coordinates. `config["extra"]["sparse_add"]` names two inputs whose sites are united.
"""

import math
from functools import partial

import numpy as np

import sparse_ops
from tests.golden.case import Case, Tensors
from tests.golden.together import run_together

CLASSES = {
    f"{name}{ndim}d": getattr(sparse_ops, f"{name}{ndim}d", None)
    for ndim in (1, 2, 3, 4)
    for name in ("SubMConv", "SparseConv", "SparseConvTranspose", "SparseInverseConv", "SparseMaxPool")
}


def run(tensors: Tensors, config: dict) -> Tensors:
    results: dict[str, sparse_ops.SparseTensor | ValueError] = {}
    for name in {key.split(".")[0] for key in tensors if key.startswith("in")}:
        shape = tensors[f"{name}.spatial_shape"].tolist()
        try:
            results[name] = sparse_ops.SparseTensor(tensors[f"{name}.feats"], tensors[f"{name}.coords"], shape)
        except ValueError as error:
            if len(shape) <= 3:
                raise
            results[name] = error  # four axes are refused, and so is every layer on them
    jobs = {layer["name"]: partial(_result, layer, results, tensors) for layer in config["layers"]}
    if "sparse_add" in config.get("extra", {}):
        names = config["extra"]["sparse_add"]
        jobs["sparse_add"] = lambda: sparse_ops.sparse_add(*(results[name] for name in names))
    for name, result in run_together(jobs):
        results[name] = result

    out = {}
    for key in tensors:
        part, _, rest = key.partition(".")
        if part in ("mid", "out"):
            name, field = rest.rsplit(".", 1) if part == "mid" else (_out_layer(config), rest)
            out[key] = _field(results[name], field)
    return out


def _result(layer: dict, results: dict, tensors: Tensors):
    """What a layer makes of its input; KeyError while that is not there."""
    x = results[layer["input"]]
    return x if isinstance(x, ValueError) else _layer(layer, tensors)(x)


def _layer(layer: dict, tensors: Tensors):
    """The layer of a config entry, with its parameters."""
    arguments = dict(layer["ctor"])
    if layer["kind"] == "maxpool":
        return CLASSES[layer["op"]](**arguments, from_zero=True)
    module = CLASSES[layer["op"]](layer["c_in"], layer["c_out"], **arguments)
    prefix = f"state.{layer['name']}."
    module.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    return module


def _field(result, field: str):
    """One recorded array of a result, rows sorted by coordinates; a refusal stays what it is."""
    if isinstance(result, ValueError):
        return result
    if field == "spatial_shape":
        return np.array(result.spatial_shape, "int32")
    order = np.lexsort(result.coords.T[::-1])
    return {"coords": result.coords, "feats": result.feats}[field][order]


def _out_layer(config: dict) -> str:
    """The layer that `out.*` repeats: the config says "same as mid.<layer>"."""
    return config["out"].rsplit(".", 1)[-1]


def depth(name: str, tensors: Tensors, config: dict) -> float:
    """Products behind a value: those of the layer and of the layers before it."""
    layers = {layer["name"]: layer for layer in config["layers"]}
    layer = layers.get(name.split(".")[1] if name.startswith("mid.") else _out_layer(config))
    total = 0
    while layer is not None:
        total += 1 if layer["kind"] == "maxpool" else math.prod(layer["kernel"]) * layer["c_in"]
        layer = layers.get(layer["input"])
    return max(total, 1)


CASE = Case(run, depth)
