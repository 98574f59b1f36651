"""The structured-latent generator as Relax functions: the parts that a call of the model consists of.

Parts, and not one function of the whole model, because calls differ in which parts they need: with and without the condition,
for one step or for a whole schedule. All blocks of the transformer have one size, so the parts of one serve them all, each
with weights of its own, and the time to compile does not depend on their number.

    prepare(coords) -> levels, positions       kernel maps and coordinates of every resolution, positional embedding
    time(t) -> embedding, emb                  of T times; emb is its SiLU, which all modulations begin with
    input_block<i>_modulation(emb) -> tables   scale and shift of a residual block at T times; also out_block<i>_modulation
    block_modulation(emb) -> tables            shift, scale and gate of a transformer block, twice
    input_layer(x) -> h
    input_block<i>(h, tables, level) -> h
    add_positions(h, positions) -> h
    block_attend(h, tables, time index, offsets) -> h
    block_context(tokens) -> keys, values      of the condition
    block_cross(h, keys, values, offsets, offsets of the condition) -> h
    add_constant(h, constant) -> h             in its place without a condition
    block_feed(h, tables, time index) -> h
    out_block<i>(h, skip, tables, level) -> h
    out_layer(h) -> normalised, velocity

Rows, times, tokens and batch elements are symbolic. A row finds its modulation by the `time index`, int32 [N].
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial

import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

from sam3d_tvm.checks import check_size
from sam3d_tvm.fingerprint import fingerprint
from sam3d_tvm.models.slat_generator.config import ALL_SAVINGS, FACTOR, Savings, SlatConfig
from sam3d_tvm.models.sparse_blocks import ModulatedCrossBlock, SparseResBlock3d, TimestepEmbedder, absolute_positions
from sam3d_tvm.models.sparse_convolutions import convolution
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_nn import component_from_nn
from sparse_ops.deploy.weights import State
from sparse_ops.eager.cache import compiled
from sparse_ops.nn import (
    Activation,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    Sites,
    SymbolicKernelMap,
    SymbolicSparseTensor,
    Tensor,
    concat,
)
from sparse_ops.nn.carrier import emit
from sparse_ops.op.signature import FLOATS
from sparse_ops.program import Program
from sparse_ops.transform.precision import check_precision, features_of
from tir_kernels.dispatch import current_target

FINAL_NORM_EPS = 1e-5
BLOCK = "block_"  # how the parts of a transformer block are called
FIRST_BLOCK = "blocks.0."  # how names of its parameters begin


def compile_model(
    config: SlatConfig,
    target: tvm.target.Target | None = None,
    *,
    precision: str = "float32",
    savings: Savings = ALL_SAVINGS,
    sparse_backend: str = "native",
) -> Program:
    """Compile the parts for `target`, by default this CPU, and load them. Weights are not part of the result.

    `precision`: one that the target has, see `sparse_ops.transform.precision.to_precision`; x, times, tokens and velocities
    are float32 in any. Packed bfloat16 weights take half of the memory where the target has an instruction for their dot
    product, elsewhere as much as float32 ones.

    The result is kept on disk, see `sparse_ops.eager.cache`, and serves any number of blocks. Raises ValueError for another
    precision, ValueError and ImportError as `sparse_convolutions.convolution`.
    """
    one_block = dataclasses.replace(config, num_blocks=1)
    check_precision(precision, target)
    options = {"sparse_backend": sparse_backend, "parent_convolution": savings.parent_convolution}
    model = SlatFlow(one_block, features_of(precision, target), **options)
    configuration = {"slat": dataclasses.asdict(one_block), **options, "source": fingerprint(__package__)}
    with current_target(target):
        identity = json.dumps(configuration, sort_keys=True)
        return compiled(("slat", identity), lambda: model.export_tvm(model.specs())[0], precision)


def slat_component(
    config: SlatConfig,
    state: State,
    *,
    precision: str = "float32",
    target: tvm.target.Target | None = None,
    name: str = "slat_generator",
) -> Component:
    """The parts with their weights as a component, which can be saved: `SlatGenerator` takes it in place of a state.

    The parts of block i are called `<part>.<i>` from the second one on. ValueError as `component_from_nn`, and for a
    model without blocks.
    """
    check_size("num_blocks", config.num_blocks, 1)
    model = SlatFlow(dataclasses.replace(config, num_blocks=1), features_of(precision, target))
    first = [key for key, _ in model.named_parameters() if key.startswith(FIRST_BLOCK)]
    blocks = [{key: f"blocks.{i}." + key.removeprefix(FIRST_BLOCK) for key in first} for i in range(1, config.num_blocks)]
    with current_target(target):  # maps have other dimensions on a device
        parts = model.specs()
    copies = {part: blocks for part in parts if part.startswith(BLOCK)}
    return component_from_nn(model, parts, name, state, precision=precision, target=target, copies=copies)


def part_parameters(config: SlatConfig) -> tuple[list[str], list[str]]:
    """The names of the parts, and those of the parameters that every part is given, with one block of the transformer."""
    model = SlatFlow(dataclasses.replace(config, num_blocks=1))
    return list(model.specs()), [name for name, _ in model.named_parameters()]


class SlatFlow(Module):
    """The model. Its parameters have the names of the upstream checkpoint.

    `dtype`: of the features that go from part to part. `parent_convolution` as in `Savings`; `sparse_backend` as in
    `sparse_convolutions.convolution`.
    """

    def __init__(
        self,
        config: SlatConfig,
        dtype: str = "float32",
        sparse_backend: str = "native",
        parent_convolution: bool = True,
    ):
        self.config = config
        self.dtype = dtype
        self.has_maps = sparse_backend != "dense"
        inner, widths = config.model_channels, config.widths
        parent_convolution = parent_convolution and sparse_backend == "native"

        def res_block(channels: int, source: int, target: int) -> SparseResBlock3d:
            return SparseResBlock3d(
                channels,
                inner,
                widths[target],
                downsample=source < target,
                upsample=source > target,
                convolution=convolution(sparse_backend, -(-config.resolution // FACTOR**target)),
                parent_convolution=parent_convolution,
            )

        self.input_layer = Linear(config.in_channels, widths[0])
        self.t_embedder = TimestepEmbedder(inner)
        self.input_blocks = ModuleList([res_block(widths[a], a, b) for a, b in config.input_moves])
        self.blocks = ModuleList(
            [
                ModulatedCrossBlock(inner, config.cond_channels, config.heads, config.hidden, config.qk_rms_norm)
                for _ in range(config.num_blocks)
            ]
        )
        self.out_blocks = ModuleList([res_block(2 * widths[a], a, b) for a, b in config.out_moves])
        self.final_norm = LayerNorm(widths[0], affine=False, eps=FINAL_NORM_EPS)
        self.out_layer = Linear(widths[0], config.out_channels)

    def prepare(self, coords: Tensor):
        """coords int32 [N, 4] -> (levels, positions float32 [M, model_channels]).

        A level is a tuple of its coordinates and batch index, of its map where one is needed, and of the row of the next
        level that each of its rows goes to.
        """
        current, levels = Sites(coords), []
        for level in range(self.config.levels + 1):
            if level > 0:
                current, parent = current.downsampled(FACTOR)
                levels[-1].append(parent)
            levels.append([current.coords, current.batch_index(), *(current.submanifold_map().fields if self.has_maps else ())])
        return levels, absolute_positions(current.coords, self.config.model_channels)

    def _time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.t_embedder(t)
        return embedding, Activation("silu")(embedding)

    def _input_block(self, block: SparseResBlock3d, x: Tensor, scale: Tensor, shift: Tensor, *arrays: Tensor) -> Tensor:
        """`arrays`: of the level of the output; with downsampling coordinates and parents of x before them."""
        if block.downsample is None:
            sites = _equip(Sites(arrays[0]), *arrays[1:])
        else:
            coords, parent, coarser, *arrays = arrays
            sites = Sites(coords)
            _equip(sites.put_downsampled(coarser, parent, FACTOR), *arrays)
        return block.modulated(SymbolicSparseTensor(x, sites), scale, shift).feats

    def _out_block(
        self, block: SparseResBlock3d, h: Tensor, skip: Tensor, scale: Tensor, shift: Tensor, *arrays: Tensor
    ) -> Tensor:
        """`arrays`: of the level of the output; with upsampling coordinates of h and the parents there before them."""
        if block.upsample is None:
            sites = _equip(Sites(arrays[0]), *arrays[1:])
        else:
            coords, parent, finer, *arrays = arrays
            sites = _equip(Sites(finer), *arrays).put_downsampled(coords, parent, FACTOR)
        return block.modulated(SymbolicSparseTensor(concat([h, skip]), sites), scale, shift).feats

    def _attend(self, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, time_index: Tensor, offsets: Tensor) -> Tensor:
        return self.blocks[0].attend(_rows(h, time_index, offsets), shift, scale, gate).feats

    def _cross(self, h: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, context_offsets: Tensor) -> Tensor:
        return self.blocks[0].cross(_rows(h, None, offsets), (keys, values), context_offsets).feats

    def _feed(self, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, time_index: Tensor) -> Tensor:
        return self.blocks[0].feed(_rows(h, time_index, None), shift, scale, gate).feats

    def _out_layer(self, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.final_norm(h)
        return h, self.out_layer(h)

    def specs(self) -> dict[str, spec.MethodSpec]:
        """The parts with the types of their arguments, as `export_tvm` takes them."""
        config, widths = self.config, self.config.widths
        inner, found = config.model_channels, {}

        def floats(*shape: int | str) -> spec.Tensor:
            return spec.Tensor(shape, "float32")

        def feats(*shape: int | str) -> spec.Tensor:
            return spec.Tensor(shape, self.dtype)

        def index(*shape: int | str) -> spec.Tensor:
            return spec.Tensor(shape, "int32")

        def add(name: str, method: Callable, *types: spec.Tensor) -> None:
            found[name] = spec.MethodSpec(method, [f"arg{i}" for i in range(len(types))], list(types), "plain", "none")

        def add_features(name: str, method: Callable, *types: spec.Tensor) -> None:
            """A part that returns features."""
            add(name, lambda *args: _astype(method(*_astype(args, "float32")), self.dtype), *types)

        def add_res_block(name: str, block: SparseResBlock3d, move: tuple[int, int], inputs: int, method: Callable) -> None:
            source, target = move
            x, before = "rows", []
            if source != target:
                x, parent = "other_rows", "rows" if block.upsample else "other_rows"
                before = [index(x, 4), index(parent)]
            place = [index("rows", 4), index("rows"), *(SymbolicKernelMap.spec("map") if self.has_maps else ())]
            tables = [floats("times", widths[target])] * 2
            add_features(name, partial(method, block), *[feats(x, widths[source])] * inputs, *tables, *before, *place)
            add(name + "_modulation", block.modulation, emb)

        emb, rows, offsets = floats("times", inner), feats("rows", inner), index("offsets")
        add("prepare", self.prepare, index("rows", 4))
        add("time", self._time, floats("times"))
        add_features("input_layer", self.input_layer, floats("rows", config.in_channels))
        for i, (block, move) in enumerate(zip(self.input_blocks, config.input_moves, strict=True)):
            add_res_block(f"input_block{i}", block, move, 1, self._input_block)
        add_features("add_positions", _add, rows, floats("rows", inner))
        for block in self.blocks[:1]:
            heads = feats("tokens", config.heads, inner // config.heads)
            add(BLOCK + "modulation", block.modulation, emb)
            add_features(BLOCK + "context", block.cross_attn.context, floats("tokens", config.cond_channels))
            add_features(BLOCK + "attend", self._attend, rows, *[emb] * 3, index("rows"), offsets)
            add_features(BLOCK + "cross", self._cross, rows, heads, heads, offsets, offsets)
            add_features("add_constant", _add, rows, feats(1, inner))
            add_features(BLOCK + "feed", self._feed, rows, *[emb] * 3, index("rows"))
        for i, (block, move) in enumerate(zip(self.out_blocks, config.out_moves, strict=True)):
            add_res_block(f"out_block{i}", block, move, 2, self._out_block)
        add("out_layer", lambda h: self._out_layer(_astype(h, "float32")), feats("rows", widths[0]))
        return found


def _equip(sites: Sites, time_index: Tensor, *fields: Tensor) -> Sites:
    """What elsewhere is modulated by batch element is modulated by time here."""
    sites.put_batch_index(time_index)
    if fields:
        sites.put_submanifold_map(SymbolicKernelMap(*fields))
    return sites


def _rows(h: Tensor, time_index: Tensor | None, offsets: Tensor | None) -> SymbolicSparseTensor:
    """Rows of the transformer, which asks its sites for no more than this."""
    sites = Sites(Tensor.placeholder([h.shape[0], 4], "int32", "coords"))
    sites.put_batch_index(time_index)
    sites.put_offsets(offsets)
    return SymbolicSparseTensor(h, sites)


def _add(x: Tensor, y: Tensor) -> Tensor:
    return emit(relax.op.add(x._expr, y._expr))


def _astype(value: Tensor | Sequence[Tensor], dtype: str):
    """A tensor, or each of several, with floats as `dtype`."""
    if not isinstance(value, Tensor):
        return [_astype(element, dtype) for element in value]
    if value.dtype == dtype or value.dtype not in FLOATS:
        return value
    return emit(relax.op.astype(value._expr, dtype))
