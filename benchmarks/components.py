"""The dense components of SAM-3D-Objects against torch eager: DINOv2, the structure flow, the structure decoder.

    python -m benchmarks.components [--quick] [--json FILE] [--only SUBSTRING] [--blocks NUMBER]

    dinov2                   ViT-L/14 with registers, one image of 518 x 518
    moge                     the depth model, one photo of 1024 x 768 at 2,551 tokens, of which its shape leaves 58 x 43
    point_patch_embed        one point map of 256 x 256
    structure_decoder        16^3 latents to 64^3 logits
    structure_flow           one velocity with the condition, its keys and values computed before, as all steps share them
    structure_flow_guided    both velocities of a guided step
    structure_flow_context   what a run computes once for its condition

in float32, in bfloat16 (torch by autocast) and in int8 (torch in float32). Weights are random, at the sizes of SAM-3D-Objects;
--quick takes the tiny ones, where calls are bound by overhead. --blocks: how many of the flow's 24 blocks, which are all alike;
by default all in float32 and two otherwise, as torch in bfloat16 needs minutes for a call of all. A run of 25 steps is added up
from its calls, and compared with as many velocities of torch.

GFLOP/s count what torch computes; savings show as more than is possible. MB are what a call adds. In the JSON: `load_s`, to
load the artifact folder; `packed_mb` and `torch_mb`, the weights of both.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import tvm
from torch.utils.flop_counter import FlopCounterMode

from sam3d_tvm.models.example_torch import Example
from sam3d_tvm.models.structure_flow import GUIDANCE, SHAPE, TIME_SCALE, StructureFlow, network_torch
from sam3d_tvm.sampler import flow_schedule
from sam3d_tvm.validate import BOUNDS, EXAMPLES, relative_errors
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_torch import port_component
from sparse_ops.transform.precision import features_of
from tests.tolerance import Comparison

from .harness import Benchmark, Case, Peer, arrays, parse_options
from .peers import THREADS, use_threads

STEPS, RESCALE_T = 25, 3.0
LONG_WORK = 2e12  # operations from which a call takes many seconds
FEW_BLOCKS = 2
KINDS = ("conditional", "unconditional")


def loaded(example: Example, name: str, precision: str) -> tuple[Component, dict]:
    """The component as a user has it, from its artifact folder, and what there is to say of it."""
    options = {"dynamic": example.dynamic, "precision": precision, "products_only": example.products_only}
    ported = port_component(example.module, example.inputs, name, **options)
    with tempfile.TemporaryDirectory() as folder:
        saved = ported.save(Path(folder) / name)
        start = time.perf_counter()
        component = Component.load(saved)  # its files stay readable until they are unmapped
        facts = {"load_s": time.perf_counter() - start, "packed_mb": component.packed_bytes / 1e6}
    return component, facts | {"torch_mb": sum(p.nbytes for p in example.module.parameters()) / 1e6}


def eager(reference: Callable[[], Mapping[str, torch.Tensor]], precision: str) -> Callable[[], object]:
    """A call of torch, in bfloat16 where that is asked for."""

    def call():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return reference()

    return call


def check_against(expected: Mapping[str, np.ndarray], precision: str) -> Callable[[object], list[Comparison]]:
    """Every output within the bounds of the port's protocol."""
    most, most_l2 = BOUNDS[precision]

    def check(result: Mapping) -> list[Comparison]:
        found = []
        for name, wanted in expected.items():
            (given,) = arrays(result[name])
            error, l2 = relative_errors(given, wanted) if given.shape == wanted.shape else (np.nan, np.nan)
            problem = (
                "" if error <= most and l2 <= most_l2 else f"relative L2 above {most_l2}, or the largest error above {most}"
            )
            found.append(Comparison(name, wanted.shape, error, l2, most, problem))
        return found

    return check


def component_case(name: str, size: str, precision: str) -> Case:
    """A component of `validate` against the module it was ported from."""
    example = EXAMPLES[name](size)
    component, facts = loaded(example, name, precision)
    return paired_case(example, component, facts, precision)


def paired_case(example: Example, component: Component, facts: dict, precision: str) -> Case:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        expected = {output: np.asarray(value) for output, value in example.reference().items()}
    check, flops = check_against(expected, precision), counter.get_total_flops()
    peer = Peer(eager(example.reference, precision), None, use_threads(THREADS), memory=True)
    return Case(precision, example.run(component), check, {"torch": peer}, flops, facts, long=flops > LONG_WORK)


class FlowCases:
    """The structure flow, compiled once for its cases."""

    def __init__(self, size: str, precision: str, blocks: int | None):
        self.size, self.precision, self.blocks = size, precision, blocks
        self._made: tuple[Example, Component, dict] | None = None

    def made(self) -> tuple[Example, Component, dict]:
        if self._made is None:
            example = network_torch.example(self.size, num_blocks=self.blocks)
            component, facts = loaded(example, "structure_flow", self.precision)
            self._made = example, component, facts | {"blocks": example.module.config.num_blocks}
        return self._made

    def velocity(self) -> Case:
        return paired_case(*self.made(), self.precision)

    def guided(self) -> Case:
        example, component, facts = self.made()
        flow, (latents, t, d, cond) = StructureFlow(component, example.module.config), example.arguments
        plan, given = flow.prepare(cond.numpy()), {name: x.numpy() for name, x in latents.items()}

        def both() -> dict[str, np.ndarray]:
            velocities = flow.guided_velocities(given, t.numpy(), d.numpy(), plan)
            return {f"{kind} {name}": x for kind, found in zip(KINDS, velocities, strict=True) for name, x in found.items()}

        expected = {}
        with torch.no_grad():
            for kind, factor in zip(KINDS, (1.0, 0.0), strict=True):
                velocity = example.module(latents, t, d, factor * cond)
                expected |= {f"{kind} {name}": x.numpy() for name, x in velocity.items()}
        # what is a few numbers may happen to be close to 0
        check = check_against({name: x for name, x in expected.items() if name.endswith(SHAPE)}, self.precision)
        return Case(self.precision, both, check, facts=facts, long=self.size == "full")

    def context(self) -> Case:
        example, component, facts = self.made()
        cond = example.arguments[-1]
        with torch.no_grad():
            expected = dict(enumerate(arrays(example.module.context(cond))))
        given, check = tvm.runtime.tensor(cond.numpy()), check_against(expected, self.precision)
        size = sum(array.nbytes for array in expected.values())
        return Case(
            self.precision,
            lambda: component["context"](given),
            lambda result: check(dict(enumerate(arrays(result)))),
            facts=facts | {"context_mb": size / 1e6},
        )


def report_run(bench: Benchmark) -> None:
    """A run of 25 steps in float32, added up from what was measured."""
    found = {row["case"]: row for row in bench.rows if row["dtype"] == "float32" and row["case"].startswith("structure_flow")}
    if len(found) < 3:
        return
    times = flow_schedule(STEPS, RESCALE_T, np.float64)[:-1] * TIME_SCALE
    guided = sum(map(GUIDANCE.applies, times.astype(np.float32)))
    velocity, step, context = (found["structure_flow" + part]["ours_ms"] for part in ("", "_guided", "_context"))
    ours = context + (STEPS - guided) * velocity + guided * step
    theirs = (STEPS + guided) * found["structure_flow"]["peers"]["torch"]
    line = f"a run of {STEPS} steps, {guided} guided: {ours / 1e3:.1f} s, torch {theirs / 1e3:.1f} s, {theirs / ours:.2f}x"
    bench.console.print(line, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--blocks", type=int)
    given, arguments = parser.parse_known_args(arguments)
    options = parse_options("The dense components against torch eager; --blocks NUMBER of the flow.", arguments)
    bench = Benchmark("components", options)
    size = "tiny" if options.quick else "full"
    for precision in ("float32", "bfloat16", "int8"):
        # torch's bfloat16 convolution takes minutes on a CPU without an instruction for it; embedders have no integer layers
        both = ("dinov2", "point_patch_embed")
        moges = ("moge",) if precision == "float32" or features_of("int8") == precision else ()
        names = {"float32": (*both, *moges, "structure_decoder"), "bfloat16": (*both, *moges)}
        for name in names.get(precision, ()):
            bench.run(name, functools.partial(component_case, name, size, precision))
        few = FEW_BLOCKS if precision != "float32" and size == "full" else None
        flow = FlowCases(size, precision, given.blocks or few)
        for name, make in (("", flow.velocity), ("_guided", flow.guided), ("_context", flow.context)):
            bench.run(f"structure_flow{name}", make)
        del flow, make  # 10 GB, which the next one needs
    report_run(bench)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
