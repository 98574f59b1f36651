"""`torture`: single layers of spconv and one chain, in one to three dimensions (four are refused).

`config["layers"]` lists each layer with its class, constructor arguments and input: the name of an earlier layer or of an
input tensor. Parameters are `state.<layer>.*`; `mid.<layer>.feats / coords / spatial_shape` are its result, rows sorted by
coordinates. `config["extra"]["sparse_add"]` names two inputs whose sites are united.

Run eagerly by our own layers and by those of `sparse_ops.torch.spconv`, and by these compiled as one network for any rows.
"""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

import sparse_ops
from tests.golden.case import FEW, Case, Tensors
from tests.golden.together import run_together

FUNCTIONS: dict = {}  # of eager calls, ours and the drop-in's, which are mostly the same
CLASSES = {
    f"{name}{ndim}d": getattr(sparse_ops, f"{name}{ndim}d", None)
    for ndim in (1, 2, 3, 4)
    for name in ("SubMConv", "SparseConv", "SparseConvTranspose", "SparseInverseConv", "SparseMaxPool")
}


def run(tensors: Tensors, config: dict) -> Tensors:
    results: dict[str, sparse_ops.SparseTensor | ValueError] = {}
    for name in _inputs(tensors):
        shape = tensors[f"{name}.spatial_shape"].tolist()
        try:
            results[name] = sparse_ops.SparseTensor(tensors[f"{name}.feats"], tensors[f"{name}.coords"], shape)
        except ValueError as error:
            if len(shape) <= 3:
                raise
            results[name] = error  # four axes are refused, and so is every layer on them
    jobs = {layer["name"]: partial(_result, layer, results, tensors) for layer in config["layers"]}
    if names := _added(config):
        jobs["sparse_add"] = lambda: sparse_ops.sparse_add(*(results[name] for name in names))
    for name, result in run_together(jobs, FUNCTIONS):
        results[name] = result
    arrays = {
        name: result
        if isinstance(result, ValueError)
        else {"feats": result.feats, "coords": result.coords, "spatial_shape": np.array(result.spatial_shape, "int32")}
        for name, result in results.items()
    }
    return _by_name(arrays, tensors, config)


def ways(tensors: Tensors, config: dict) -> Iterator[tuple[str, Tensors, Tensors]]:
    from tests.golden.networks import torture  # imports torch, which other cases do without

    drop_in = torture.DropIn(tensors, config, FUNCTIONS)
    yield "drop-in", _by_name(drop_in.eager(), tensors, config), tensors
    expected = {name: x for name, x in _by_name(drop_in.eager(), tensors, config).items() if not isinstance(x, ValueError)}
    yield "any rows", _by_name(drop_in.compiled(), tensors, config), {name: tensors[name] for name in expected}
    for rows in FEW:
        expected = _by_name(drop_in.eager(rows), tensors, config)
        expected = {name: x for name, x in expected.items() if not isinstance(x, ValueError)}
        yield f"{rows} rows", _by_name(drop_in.compiled(rows), tensors, config), expected


def _inputs(tensors: Tensors) -> set[str]:
    return {key.split(".")[0] for key in tensors if key.startswith("in")}


def _added(config: dict) -> list[str]:
    """Names of the inputs that are united."""
    return config.get("extra", {}).get("sparse_add", [])


def _by_name(arrays: dict, tensors: Tensors, config: dict) -> Tensors:
    """The arrays of every layer by the names of the file, rows sorted by coordinates; a refusal stays what it is."""
    out = {}
    for key in tensors:
        part, _, rest = key.partition(".")
        if part in ("mid", "out"):
            name, field = rest.rsplit(".", 1) if part == "mid" else (_out_layer(config), rest)
            if name in arrays:
                out[key] = _field(arrays[name], field)
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
    if isinstance(result, ValueError):
        return result
    if field == "spatial_shape":
        return np.asarray(result[field])
    return np.asarray(result[field])[np.lexsort(np.asarray(result["coords"]).T[::-1])]


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


CASE = Case(run, depth, ways=ways)
