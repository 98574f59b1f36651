"""Relax functions in numpy, so that passes are tested on numbers without compiling: our ops are their oracles."""

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
import tvm
from tvm import relax

from sparse_ops.op.signature import GIVEN
from tir_kernels.spec import activation as activations
from tir_kernels.spec import (
    attention,
    channel_affine,
    channel_layer_norm,
    conv3d,
    conv_transpose3d,
    dense_group_norm,
    layer_norm,
    linear,
    softmax,
)

UNARY = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "sqrt": np.sqrt,
    "negative": np.negative,
    "erf": lambda x: torch.erf(torch.from_numpy(x)).numpy(),
    "logical_not": np.logical_not,
    "nn.relu": lambda x: np.maximum(x, 0),
    "nn.silu": lambda x: x / (1 + np.exp(-x)),
    "nn.gelu": lambda x: F.gelu(torch.from_numpy(x)).numpy(),
    "nn.gelu_tanh": lambda x: F.gelu(torch.from_numpy(x), approximate="tanh").numpy(),
}
BINARY = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "power": np.power,
    "equal": np.equal,
    "matmul": np.matmul,
}
RESHAPES = ("reshape", "squeeze", "expand_dims", "flatten")


def interpret(mod: tvm.IRModule, *inputs: np.ndarray):
    """The result of `main` for arrays in place of its parameters, floats in float64: an array or a list of them."""
    main = mod["main"]
    given = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in inputs]
    values = dict(zip(main.params, given, strict=True))
    for block in main.body.blocks:
        for binding in block.bindings:
            values[binding.var] = _value(mod, values, binding.value)
    return _value(mod, values, main.body.body)


def _value(mod: tvm.IRModule, values: dict, expr: relax.Expr):
    if isinstance(expr, relax.Var):
        return values[expr]
    if isinstance(expr, tvm.ir.GenericConst):
        array = expr.value.numpy()
        return array.astype(np.float64) if array.dtype.kind == "f" else array
    if isinstance(expr, relax.Tuple):
        return [_value(mod, values, part) for part in expr.fields]
    if isinstance(expr, relax.TupleGetItem):
        return _value(mod, values, expr.tuple_value)[expr.index]
    name, attrs = expr.op.name.removeprefix("relax."), expr.attrs
    if name == "call_tir":
        return _kernel(mod, expr)
    shape = [int(dim) for dim in expr.ty.shape.values] if isinstance(expr.ty, relax.TensorType) else None
    if name == "strided_slice":
        x, axes, begin, end = expr.args[:4]
        cut = [slice(None)] * x.ty.ndim
        for axis, first, last in zip(axes, begin, end, strict=True):
            cut[int(axis)] = slice(int(first), int(last))
        return _value(mod, values, x)[tuple(cut)]
    args = [_value(mod, values, arg) for arg in expr.args if not isinstance(arg, relax.ShapeExpr)]
    if name in UNARY:
        return UNARY[name](*args)
    if name in BINARY:
        return BINARY[name](*args)
    if name in RESHAPES:
        return args[0].reshape(shape)
    match name:
        case "broadcast_to":
            return np.broadcast_to(args[0], shape)
        case "permute_dims":
            return np.transpose(args[0], None if attrs.axes is None else [int(axis) for axis in attrs.axes])
        case "split":
            widths = [int(part.shape.values[int(attrs.axis)]) for part in expr.ty.fields]
            return np.split(args[0], np.cumsum(widths)[:-1], int(attrs.axis))
        case "take":
            return np.take(args[0], args[1], int(attrs.axis))
        case "concat":
            return np.concatenate(args[0], int(attrs.axis))
        case "astype":
            return _rounded(args[0], str(expr.ty.dtype))
        case "full_like":
            return np.full_like(args[0], args[1])
        case "max":
            return args[0].max(-1, keepdims=True)
        case "where":
            return np.where(*args)
    if name == "nn.batch_norm":
        return [F.batch_norm(*map(torch.from_numpy, (args[0], *args[3:], *args[1:3])), eps=attrs.epsilon).numpy(), *args[3:]]
    tensors = [torch.from_numpy(arg) for arg in args if isinstance(arg, np.ndarray)]
    if name.startswith("nn."):
        return _torch(name, attrs, *tensors).numpy()
    dtype = str(expr.ty.dtype)
    activation = {"activation": str(attrs["activation"])} if "activation" in attrs else {}
    match name.removeprefix("sparse_ops."):
        case "linear":
            given = _given(expr, args[2:])
            return _rounded(linear.naive(*args[:2], **given, **activation), dtype)
        case "layer_norm":
            given = _given(expr, args[1:])
            return _rounded(layer_norm.naive(args[0], **given, eps=attrs["eps"], **activation), dtype)
        case "attention":
            scale = {"scale": float(attrs["scale"])} if "scale" in attrs else {}
            return _rounded(attention.naive(*args, **scale), dtype)
        case "conv3d":
            given = _given(expr, args[2:])
            geometry = {key: tuple(int(n) for n in attrs[key]) for key in ("stride", "padding", "dilation")}
            mode = str(attrs["padding_mode"])
            return _rounded(conv3d.naive(*args[:2], **given, **geometry, padding_mode=mode, **activation), dtype)
        case "conv_transpose3d":
            given = _given(expr, args[2:])
            names = ("stride", "padding", "output_padding", "dilation")
            geometry = {key: tuple(int(n) for n in attrs[key]) for key in names}
            return _rounded(conv_transpose3d.naive(*args[:2], **given, **geometry, **activation), dtype)
        case "dense_group_norm":
            return _rounded(dense_group_norm.naive(*args, attrs["groups"], attrs["eps"], **activation), dtype)
        case "activation":
            return _rounded(activations.naive(args[0], str(attrs["name"])), dtype)
        case "channel_affine":
            return _rounded(channel_affine.naive(*args, **activation), dtype)
        case "channel_layer_norm":
            return _rounded(channel_layer_norm.naive(*args, attrs["eps"], **activation), dtype)
        case "softmax":
            return _rounded(softmax.naive(*args), dtype)
    raise NotImplementedError(name)


def _torch(name: str, attrs, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    match name:
        case "nn.softmax":
            return torch.softmax(x, int(attrs.axis))
        case "nn.layer_norm":
            return F.layer_norm(x, x.shape[-1:], *rest, attrs.epsilon)
        case "nn.group_norm":
            return F.group_norm(x, int(attrs.num_groups), *rest, attrs.epsilon)
        case "nn.attention":
            scale = None if attrs.scale is None else float(attrs.scale)
            q, k, v = (tensor.transpose(1, 2) for tensor in (x, *rest))
            return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
        case "nn.conv2d" | "nn.conv3d":
            axes = x.ndim - 2
            stride, padding, dilation = ([int(n) for n in given] for given in (attrs.strides, attrs.padding, attrs.dilation))
            function = F.conv2d if axes == 2 else F.conv3d
            return function(x, *rest, stride=stride, padding=padding[:axes], dilation=dilation)
        case "nn.conv1d_transpose" | "nn.conv2d_transpose" | "nn.conv3d_transpose":
            axes = x.ndim - 2
            names = {"stride": "strides", "output_padding": "output_padding", "dilation": "dilation"}
            options = {name: [int(n) for n in getattr(attrs, own)] for name, own in names.items()}
            function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
            return function(x, *rest, padding=[int(n) for n in attrs.padding[:axes]], **options)
        case "nn.pad":
            widths = [int(n) for n in attrs.pad_width]
            around = [width for axis in range(x.ndim - 1, -1, -1) for width in widths[2 * axis : 2 * axis + 2]]
            if str(attrs.pad_mode) == "constant":
                return F.pad(x, around, value=float(attrs.pad_value))
            return F.pad(x, around[:-4], mode=str(attrs.pad_mode))
    raise NotImplementedError(name)


def _given(call: relax.Call, args: list) -> dict:
    """The optional arguments of a call by name."""
    return dict(zip(map(str, call.attrs[GIVEN]), args, strict=True))


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """In that type; bfloat16 and float16 as float64 of the same values."""
    if dtype in ("bfloat16", "float16"):
        return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).astype(np.float64)
    return array.astype(np.float64 if dtype == "float32" else dtype)


def _kernel(mod: tvm.IRModule, call: relax.Call) -> np.ndarray:
    """A kernel without inputs."""
    out = tvm.runtime.empty([int(dim) for dim in call.ty.shape.values], str(call.ty.dtype))
    tvm.compile(mod[call.args[0]].with_attr("global_symbol", "main"), target="llvm")(out)
    return out.numpy()
