"""The structured-latent generator: the flow model that turns noise on active voxels into latents, from our Relax ops.

Two functions of one compiled module, which serves every number of voxels, batch elements and condition tokens:

- `prepare(coords, cond)` computes what does not change over the steps of a sampler: kernel maps and coordinates of every
  resolution, positional embedding, keys and values of the condition for every block, with it and without it;
- `velocity(x, t, *sites, *context)` is one call of the model.

Weights are not part of the module: they are packed for the CPU once, one at a time. Everything is computed in float32.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import islice, pairwise
from pathlib import Path
from zlib import crc32

import ml_dtypes
import numpy as np
import safetensors
import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

from sam3d_tvm.components.blocks import (
    ModulatedCrossBlock,
    Record,
    SparseResBlock3d,
    TimestepEmbedder,
    absolute_positions,
)
from sam3d_tvm.sampler import Guidance, Step, sample_flow
from sparse_ops.build import build, pack_params
from sparse_ops.nn import (
    Activation,
    KernelMap,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    Sites,
    SparseTensor,
    Tensor,
    concat,
)
from sparse_ops.nn.carrier import cast_shape, dimension, emit

TIME_SCALE = 1000.0  # the model sees t in 0..1 times this
FACTOR = 2  # between two resolutions
FINAL_NORM_EPS = 1e-5
# What parameters may be, by the name in a file; all become float32.
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def _check_size(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, given {value!r}")


@dataclass(frozen=True)
class SlatConfig:
    """Sizes of the model, named as upstream names them.

    Around the transformer, which has `model_channels`, lie input and output blocks at the finer resolutions:
    `io_block_channels` has one entry for each, the finest first, and `patch_size` is 2 to their number. `num_heads`
    defaults to model_channels / num_head_channels. `resolution` bounds the coordinates. `use_fp16` is taken and has no
    effect, as everything is computed in float32.

    Raises ValueError for sizes that do not fit together, and for variants of the model that nobody has trained.
    """

    resolution: int
    in_channels: int
    model_channels: int
    cond_channels: int
    out_channels: int
    num_blocks: int
    num_heads: int | None = None
    num_head_channels: int = 64
    mlp_ratio: float = 4
    patch_size: int = 2
    num_io_res_blocks: int = 2
    io_block_channels: tuple[int, ...] = ()
    pe_mode: str = "ape"
    qk_rms_norm: bool = False
    qk_rms_norm_cross: bool = False
    force_zeros_cond: bool = True
    use_fp16: bool = False

    def __post_init__(self):
        object.__setattr__(self, "io_block_channels", tuple(self.io_block_channels or ()))
        for name in (
            "resolution",
            "in_channels",
            "model_channels",
            "cond_channels",
            "out_channels",
            "num_io_res_blocks",
        ):
            _check_size(name, getattr(self, name), 1)
        _check_size("num_blocks", self.num_blocks, 0)
        _check_size("num_head_channels", self.num_head_channels, 1)
        if self.num_heads is not None:
            _check_size("num_heads", self.num_heads, 1)
        for i, channels in enumerate(self.io_block_channels):
            _check_size(f"io_block_channels[{i}]", channels, 1)
        if self.heads < 1 or self.model_channels % self.heads:
            raise ValueError(f"num_heads: expected a divisor of model_channels {self.model_channels}, given {self.heads}")
        if isinstance(self.mlp_ratio, bool) or not isinstance(self.mlp_ratio, (int, float)) or self.hidden < 1:
            raise ValueError(f"mlp_ratio: expected a positive number, given {self.mlp_ratio!r}")
        if self.patch_size != FACTOR**self.levels:
            raise ValueError(
                f"patch_size: expected {FACTOR**self.levels} for {self.levels} io_block_channels, given {self.patch_size!r}"
            )
        only = {"pe_mode": "ape", "qk_rms_norm_cross": False, "force_zeros_cond": True}
        for name, value in only.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}: expected {value!r}, given {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, values: Mapping) -> "SlatConfig":
        """From names and values; ValueError for a name that is unknown or missing, or a value that does not fit."""
        known = {field.name: field.default for field in fields(cls)}
        if extra := sorted(set(values) - set(known)):
            raise ValueError(f"config: expected names among {', '.join(known)}, given {', '.join(extra)} too")
        if missing := [name for name, default in known.items() if default is MISSING and name not in values]:
            raise ValueError(f"config: {', '.join(missing)} missing")
        return cls(**values)

    @property
    def heads(self) -> int:
        return self.num_heads or self.model_channels // self.num_head_channels

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layers."""
        return int(self.model_channels * self.mlp_ratio)

    @property
    def levels(self) -> int:
        """Resolutions above that of the transformer."""
        return len(self.io_block_channels)


PRESETS = {
    # For tests: compiles and runs in seconds.
    "tiny": SlatConfig(
        resolution=64,
        in_channels=8,
        model_channels=48,
        cond_channels=24,
        out_channels=8,
        num_blocks=2,
        num_heads=2,
        io_block_channels=(16,),
        qk_rms_norm=True,
    ),
    # For the demo: the real structure at about a hundredth of its work.
    "small": SlatConfig(
        resolution=64,
        in_channels=8,
        model_channels=192,
        cond_channels=128,
        out_channels=8,
        num_blocks=4,
        num_heads=3,
        io_block_channels=(64,),
        qk_rms_norm=True,
    ),
    # The sizes of SAM-3D-Objects.
    "full": SlatConfig(
        resolution=64,
        in_channels=8,
        model_channels=1024,
        cond_channels=1024,
        out_channels=8,
        num_blocks=24,
        num_heads=16,
        io_block_channels=(128,),
        qk_rms_norm=True,
        use_fp16=True,
    ),
}


class SlatFlow(Module):
    """The model as a graph. Its parameters have the names of the upstream checkpoint."""

    def __init__(self, config: SlatConfig, taps: Sequence[str] = ()):
        self.config = config
        self.taps = tuple(taps)
        io, inner, count = config.io_block_channels, config.model_channels, config.num_io_res_blocks
        widths = (*io, inner)  # of every level
        self.input_layer = Linear(config.in_channels, widths[0])
        self.t_embedder = TimestepEmbedder(inner)
        self.input_blocks = ModuleList([])
        for width, coarser in pairwise(widths):
            for _ in range(count - 1):
                self.input_blocks.append(SparseResBlock3d(width, inner))
            self.input_blocks.append(SparseResBlock3d(width, inner, coarser, downsample=True))
        self.blocks = ModuleList(
            [
                ModulatedCrossBlock(inner, config.cond_channels, config.heads, config.hidden, config.qk_rms_norm)
                for _ in range(config.num_blocks)
            ]
        )
        self.out_blocks = ModuleList([])
        for coarser, width in pairwise(widths[::-1]):
            self.out_blocks.append(SparseResBlock3d(2 * coarser, inner, width, upsample=True))
            for _ in range(count - 1):
                self.out_blocks.append(SparseResBlock3d(2 * width, inner, width))
        self.final_norm = LayerNorm(widths[0], affine=False, eps=FINAL_NORM_EPS)
        self.out_layer = Linear(widths[0], config.out_channels)

    def prepare(self, coords: Tensor, cond: Tensor):
        """coords int32 [N, 4] of B batch elements, each together and ascending; cond float32 [B, L, cond_channels].

        Returns (sites, context with the condition, context without it), each a flat tuple of tensors as `specs` lists
        them.
        """
        batch, tokens, width = cond.shape
        current = Sites(coords, batch)
        sites = []
        for level in range(self.config.levels + 1):
            sites += [current.coords, current.batch_index(), *current.submanifold_map().fields]
            if level < self.config.levels:
                current, parent = current.downsampled(FACTOR)
                sites.append(parent)
        sites += [current.offsets(), absolute_positions(current.coords, self.config.model_channels)]

        rows = emit(relax.op.reshape(cond._expr, (batch * tokens, width)))
        rows = cast_shape(rows._expr, (dimension("tokens"), width))
        # Without a condition all tokens are zeros. Then all keys are equal, every query weighs them alike, and the mean
        # of equal values is their value: one zero token gives the same result, and its keys and values are the bias.
        zero = emit(relax.op.zeros((batch, width), "float32"))
        return sites, self._context(rows, _multiples(batch, tokens)), self._context(zero, _multiples(batch, 1))

    def _context(self, rows: Tensor, offsets: Tensor) -> list[Tensor]:
        """Keys and values of every block for condition tokens [T, cond_channels], after where batch elements start."""
        return [offsets, *(array for block in self.blocks for array in block.cross_attn.context(rows))]

    def velocity(self, x: Tensor, t: Tensor, *plan: Tensor):
        """x float32 [N, in_channels], t float32 [B] times 1000, then the arrays of sites and of a context.

        Returns (float32 [N, out_channels], inner results in the order of `taps`).
        """
        found: dict[str, Tensor] = {}
        out = self._velocity(x, t, plan, found.__setitem__)
        if unknown := [name for name in self.taps if name not in found]:
            raise ValueError(f"taps: expected names among {', '.join(found)}, given {', '.join(unknown)} too")
        return out, [found[name] for name in self.taps]

    def _velocity(self, x: Tensor, t: Tensor, plan: Sequence[Tensor], record: Record) -> Tensor:
        arrays = iter(plan)
        sites = self._sites(arrays, t.shape[0])
        positions, context_offsets, *keys_and_values = arrays

        emb = self.t_embedder(t)
        record("t_emb", emb)
        emb = Activation("silu")(emb)  # every block begins with it
        h = self.input_layer(SparseTensor(x, sites))
        record("input_layer", h.feats)
        skips = []
        for i, block in enumerate(self.input_blocks):
            h = block(h, emb)
            record(f"input_block{i}", h.feats)
            skips.append(h)
        h = h.with_feats(emit(relax.op.add(h.feats._expr, positions._expr)))
        record("block0_in", h.feats)
        for i, block in enumerate(self.blocks):
            h = block(h, emb, tuple(keys_and_values[2 * i : 2 * i + 2]), context_offsets)
            record(f"block{i}", h.feats)
        for i, block in enumerate(self.out_blocks):
            h = block(concat([h, skips.pop()]), emb)
            record(f"out_block{i}", h.feats)
        h = self.final_norm(h)
        record("before_out_layer", h.feats)
        return self.out_layer(h).feats

    def _sites(self, arrays: Iterator[Tensor], batch) -> Sites:
        """The finest sites, with all that `prepare` found for them and the coarser ones."""
        finest = current = parent = None
        for level in range(self.config.levels + 1):
            coords = next(arrays)
            current = Sites(coords, batch) if finest is None else current.put_downsampled(coords, parent, FACTOR)
            finest = finest or current
            current.put_batch_index(next(arrays))
            current.put_submanifold_map(KernelMap(*islice(arrays, 4)))
            parent = next(arrays) if level < self.config.levels else None
        current.put_offsets(next(arrays))
        return finest

    def specs(self) -> dict[str, spec.MethodSpec]:
        """The types of both functions, as `export_tvm` takes them."""
        config = self.config
        sites = []
        for level in range(config.levels + 1):
            rows = f"rows{level}"
            sites += [spec.Tensor([rows, 4], "int32"), spec.Tensor([rows], "int32"), *KernelMap.spec(f"map{level}")]
            if level < config.levels:
                sites.append(spec.Tensor([rows], "int32"))
        offsets = spec.Tensor(["offsets"], "int32")  # one more than the batch
        sites += [offsets, spec.Tensor([rows, config.model_channels], "float32")]
        heads = spec.Tensor(["tokens", config.heads, config.model_channels // config.heads], "float32")
        plan = [*sites, offsets, *[heads] * (2 * config.num_blocks)]
        coords = spec.Tensor(["rows0", 4], "int32")
        cond = spec.Tensor(["batch", "tokens", config.cond_channels], "float32")
        x, t = spec.Tensor(["rows0", config.in_channels], "float32"), spec.Tensor(["batch"], "float32")
        names = ["x", "t", *(f"plan{i}" for i in range(len(plan)))]
        return {
            "prepare": spec.MethodSpec(self.prepare, ["coords", "cond"], [coords, cond], "plain", "none"),
            "velocity": spec.MethodSpec(self.velocity, names, [x, t, *plan], "plain", "none"),
        }


def _multiples(count, step) -> Tensor:
    """int32 [count + 1]: 0, step, 2 * step, ...; both may be symbolic."""
    builder = relax.BlockBuilder.current()
    return Tensor(
        _expr=builder.emit_te(
            lambda count, step: tvm.te.compute((count + 1,), lambda i: (i * step).astype("int32"), name="multiples"),
            count,
            tvm.tirx.IntImm("int64", step) if isinstance(step, int) else step,
        )
    )


class LazyArray:
    """An array that is made when it is asked for: `shape`, `dtype` and `make() -> np.ndarray`."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype, make: Callable[[], np.ndarray]):
        self.shape, self.dtype, self._make = tuple(shape), np.dtype(dtype), make

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._make() if dtype is None else self._make().astype(dtype)


State = Mapping[str, np.ndarray | LazyArray]


def parameter_shapes(config: SlatConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the compiled module."""
    return {name: tuple(int(n) for n in p.shape) for name, p in SlatFlow(config).named_parameters()}


# Seeded weights are no trained ones, but these let the shape of the voxels, not the noise, decide what comes out.
SEEDED_GAINS = {"input_layer.weight": 0.05, "input_layer.bias": 10.0, "out_layer.weight": 4.0}


def seeded_state(config: SlatConfig, seed: int = 0) -> dict[str, LazyArray]:
    """Random parameters that keep the size of what flows through the model.

    A parameter depends on seed, name and shape only. Raises ValueError for a seed that is not an integer of 0 or more.
    """
    _check_size("seed", seed, 0)

    def make(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
        if len(shape) > 1 and not name.endswith("gamma"):
            values *= np.float32(np.prod(shape[1:]) ** -0.5)
        else:
            values *= np.float32(0.1)
            values += np.float32(0 if name.endswith("bias") else 1)  # the others are gains
        return values * np.float32(SEEDED_GAINS.get(name, 1.0))

    return {
        name: LazyArray(shape, np.float32, lambda name=name, shape=shape: make(name, shape))
        for name, shape in parameter_shapes(config).items()
    }


def load_state(path: str | os.PathLike, prefix: str = "") -> dict[str, LazyArray]:
    """The tensors of a .safetensors file whose names begin with `prefix`, without it; read when they are asked for.

    Raises ValueError when the file cannot be read.
    """
    path = Path(path)
    try:
        file = safetensors.safe_open(path, "np")
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"path: expected a .safetensors file, given {str(path)!r}: {error}") from error
    state = {}
    for name in file.keys():  # noqa: SIM118 (no iterator)
        if name.startswith(prefix):
            part = file.get_slice(name)
            dtype = DTYPES.get(part.get_dtype(), np.dtype(object))
            state[name.removeprefix(prefix)] = LazyArray(part.get_shape(), dtype, lambda name=name: file.get_tensor(name))
    return state


def check_state(config: SlatConfig, state: State) -> None:
    """ValueError that lists every parameter of `state` that is missing, not known, or of another shape or dtype.

    Parameters are float32, or float16 or bfloat16, which become float32.
    """
    shapes = parameter_shapes(config)
    problems = [f"{name}: missing, expected {list(shape)}" for name, shape in shapes.items() if name not in state]
    problems += [f"{name}: not a parameter of this model" for name in state if name not in shapes]
    for name, shape in shapes.items():
        value = state.get(name)
        if value is None:
            continue
        if not isinstance(value, (np.ndarray, LazyArray)):
            problems.append(f"{name}: expected an array, given {type(value).__name__}")
        elif tuple(value.shape) != shape or value.dtype not in DTYPES.values():
            problems.append(f"{name}: expected float32 {list(shape)}, given {value.dtype} {list(value.shape)}")
    if problems:
        raise ValueError("state: " + "; ".join(problems))


def compile_model(
    config: SlatConfig, target: tvm.target.Target | None = None, taps: Sequence[str] = ()
) -> relax.VirtualMachine:
    """Compile both functions for `target`, by default this CPU, and load them. Weights are not part of the result.

    `taps`: inner results that `velocity` returns too, for tests: "t_emb", "input_layer", "input_block{i}",
    "block0_in", "block{i}", "out_block{i}" and "before_out_layer". ValueError for another name.
    """
    model = SlatFlow(config, taps)
    mod, _ = model.export_tvm(model.specs())
    return relax.VirtualMachine(build(mod, target, lift_params=True), tvm.cpu())


@dataclass(frozen=True)
class SlatPlan:
    """What `prepare` found for a coordinate set and a condition; all steps of a sampler share it.

    `rows` voxels in `batch` elements. `sites` and the contexts are as the compiled functions return and take them, and
    belong to the weights of the `generator` that made them.
    """

    generator: "SlatGenerator"
    rows: int
    batch: int
    sites: Sequence[tvm.runtime.Tensor]
    conditional: Sequence[tvm.runtime.Tensor]
    unconditional: Sequence[tvm.runtime.Tensor]

    @property
    def low_coords(self) -> np.ndarray:
        """The coordinates that the transformer works on, int32 [M, 4]."""
        return self.sites[-8].numpy()  # before it come finer levels, behind it batch index, map, offsets, positions

    @property
    def positions(self) -> np.ndarray:
        """Their positional embedding, float32 [M, model_channels]."""
        return self.sites[-1].numpy()


class SlatGenerator:
    """The model with its weights, on numpy arrays.

        generator = SlatGenerator.from_preset("small", seed=0)
        latents = generator.sample(coords, cond, noise, steps=12, guidance=Guidance(strength=1.0))

    `taps` as in `compile_model`; results are then in `tapped` after every call of `velocity`. `vm`: what `compile_model`
    returned for the same config and taps; compiled here if not given.

    Raises ValueError for a state that does not fit the config, see `check_state`.
    """

    def __init__(
        self,
        config: SlatConfig,
        state: State,
        vm: relax.VirtualMachine | None = None,
        taps: Sequence[str] = (),
    ):
        check_state(config, state)
        self.config = config
        self.taps = tuple(taps)
        self.tapped: dict[str, np.ndarray] = {}
        self._vm = vm or compile_model(config, taps=taps)
        names = list(parameter_shapes(config))

        def read(index: int) -> tvm.runtime.Tensor:
            return tvm.runtime.tensor(np.asarray(state[names[index]]).astype(np.float32, copy=False))

        self._params = {name: pack_params(self._vm, name, read) for name in ("prepare", "velocity")}

    @classmethod
    def from_preset(cls, name: str = "small", seed: int = 0, vm: relax.VirtualMachine | None = None) -> "SlatGenerator":
        """A model of `PRESETS` with seeded random weights. ValueError for another name or a negative seed."""
        config = preset(name)
        return cls(config, seeded_state(config, seed), vm)

    @classmethod
    def from_state(
        cls,
        config: SlatConfig | Mapping,
        state: State | str | os.PathLike,
        prefix: str = "",
        vm: relax.VirtualMachine | None = None,
    ) -> "SlatGenerator":
        """A model of given weights: arrays by upstream's parameter names, or a .safetensors file of them.

        Only names that begin with `prefix` are looked at. Raises ValueError as `SlatConfig`, `load_state`, `check_state`.
        """
        config = config if isinstance(config, SlatConfig) else SlatConfig.from_dict(config)
        if isinstance(state, Mapping):
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        else:
            state = load_state(state, prefix)
        return cls(config, state, vm)

    def prepare(self, coords: np.ndarray, cond: np.ndarray) -> SlatPlan:
        """Everything that is constant over the steps.

        coords int32 [N, 4] as (batch, x, y, z): every row once, x, y, z from 0 to resolution - 1, the rows of each of the B
        batch elements together and ascending by batch; an element may have none. cond float32 [B, L, cond_channels], B and L
        at least 1. ValueError for anything else.
        """
        _check_array("cond", cond, np.float32, ("B", "L", self.config.cond_channels))
        batch, tokens, _ = cond.shape
        if batch < 1 or tokens < 1:
            raise ValueError(f"cond: expected [B, L, C] with B and L of at least 1, given {list(cond.shape)}")
        _check_array("coords", coords, np.int32, ("N", 4))
        _check_coords(coords, batch, self.config.resolution)
        sites, given, without = self._call("prepare", coords, cond)
        return SlatPlan(self, len(coords), batch, sites, given, without)

    def velocity(self, x: np.ndarray, t: float | np.ndarray, plan: SlatPlan, conditional: bool = True) -> np.ndarray:
        """The model's dx/dt, float32 [N, out_channels].

        x float32 [N, in_channels]; t, the time multiplied by 1000, a number or float32 [B]; with `conditional` False the
        condition is left out, as upstream's guidance does it. ValueError for other shapes, dtypes or values.
        """
        self._check_plan(plan)
        _check_array("x", x, np.float32, (plan.rows, self.config.in_channels))
        times = np.full(plan.batch, t, np.float32) if np.ndim(t) == 0 else t
        _check_array("t", times, np.float32, (plan.batch,))
        context = plan.conditional if conditional else plan.unconditional
        out, tapped = self._call("velocity", x, times, *plan.sites, *context)
        self.tapped = {name: value.numpy() for name, value in zip(self.taps, tapped, strict=True)}
        return out.numpy()

    def sample(
        self,
        coords: np.ndarray,
        cond: np.ndarray,
        noise: np.ndarray,
        steps: int = 25,
        guidance: Guidance | None = None,
        *,
        rescale_t: float = 1.0,
        solver: str = "euler",
        on_step: Callable[[Step], None] | None = None,
    ) -> np.ndarray:
        """Latents float32 [N, out_channels] from noise float32 [N, in_channels]: see `prepare` and `sampler.sample_flow`."""
        plan = self.prepare(coords, cond)
        return self.sample_plan(plan, noise, steps, guidance, rescale_t=rescale_t, solver=solver, on_step=on_step)

    def sample_plan(
        self, plan: SlatPlan, noise: np.ndarray, steps: int = 25, guidance: Guidance | None = None, **options
    ) -> np.ndarray:
        """As `sample`, with what `prepare` returned in place of coordinates and condition."""
        if self.config.in_channels != self.config.out_channels:
            raise ValueError(
                f"config: expected as many out_channels as in_channels {self.config.in_channels} to sample, "
                f"given {self.config.out_channels}"
            )
        self._check_plan(plan)
        _check_array("noise", noise, np.float32, (plan.rows, self.config.in_channels))

        def velocity(x: np.ndarray, time: np.float32, conditional: bool) -> np.ndarray:
            return self.velocity(x, time, plan, conditional)

        return sample_flow(velocity, noise, steps, guidance=guidance, time_scale=TIME_SCALE, **options)

    def _check_plan(self, plan: SlatPlan) -> None:
        """ValueError unless this generator made `plan`: keys and values of another one's weights would go unnoticed."""
        if not isinstance(plan, SlatPlan):
            raise ValueError(f"plan: expected what prepare returns, given {type(plan).__name__}")
        if plan.generator is not self:
            raise ValueError("plan: expected one that this generator prepared, given that of another")

    def _call(self, name: str, *args):
        """Call a compiled function: numpy arrays become tensors, what it returned before is handed on as it is."""
        args = [tvm.runtime.tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
        return self._vm[name](*args, *self._params[name])


def preset(name: str) -> SlatConfig:
    """A config of `PRESETS`; ValueError for another name."""
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(map(repr, PRESETS))}, given {name!r}")
    return PRESETS[name]


def _check_array(name: str, array: np.ndarray, dtype, shape: tuple) -> None:
    """ValueError unless `array` is finite and of `dtype` and `shape`, in which a name stands for any size."""
    expected = f"{np.dtype(dtype)} [{', '.join(map(str, shape))}]"
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: expected a numpy array {expected}, given {type(array).__name__}")
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise ValueError(f"{name}: expected {expected}, given {array.dtype} {list(array.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, given {np.count_nonzero(~np.isfinite(array))} that are not")


def _check_coords(coords: np.ndarray, batch: int, resolution: int) -> None:
    """ValueError for the first row out of range or out of order; duplicates are found by the compiled module."""
    limits = np.array([batch, resolution, resolution, resolution])
    beyond = (coords < 0) | (coords >= limits)
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        axis = ("batch index", "x", "y", "z")[column]
        raise ValueError(f"coords: expected {axis} from 0 to {limits[column] - 1}, given {coords[row, column]} in row {row}")
    if (falls := np.flatnonzero(np.diff(coords[:, 0]) < 0)).size:
        row = falls[0] + 1
        raise ValueError(
            "coords: expected the rows of each batch element together, ascending by batch index, given "
            f"{coords[row, 0]} after {coords[row - 1, 0]} in row {row}"
        )
