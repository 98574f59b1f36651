"""Exports a network, and runs the saved component where torch cannot be imported, as a user's program would."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.export import Dim

from sparse_ops.deploy import port_component

WORST = 1e-4  # of the largest value: what rounding may come to

PROGRAM = """
import sys, time
sys.modules["torch"] = sys.modules["spconv"] = None  # neither can be imported
import numpy as np
from sparse_ops.deploy import Component

component = Component.load(sys.argv[1])
for file in sys.argv[2:]:
    given = dict(np.load(file))
    component(**given)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        found = component(**given)
        seconds.append(time.perf_counter() - start)
    np.savez(file, seconds=min(seconds), **found)
"""


def exported_and_run(
    network: torch.nn.Module, argument: str, inputs: list[np.ndarray], things: str, out: Path
) -> list[dict[str, np.ndarray]]:
    """What a network of one `argument`, which returns a dict, makes of arrays of any number of `things`, without torch.

    It is exported once, on the first of the inputs, and saved as `out`/component. Ends the process if the component computes
    something else than the network.
    """
    start = time.perf_counter()
    example = torch.from_numpy(inputs[0])
    component = port_component(network, (example,), things, dynamic={argument: {0: Dim(things)}})
    component.save(out / "component")
    print(f"exported and compiled for any number of {things} in {time.perf_counter() - start:.0f} s: {out / 'component'}")
    results = run_without_torch(out / "component", [{argument: array} for array in inputs])
    for array, (found, milliseconds) in zip(inputs, results, strict=True):
        with torch.no_grad():
            expected = {name: x.numpy() for name, x in network(torch.from_numpy(array)).items()}
        worst = difference(found, expected)
        print(f"{len(array):6d} {things}: {milliseconds:6.1f} ms without torch, {worst:.1e} from the eager network")
        if worst > WORST:
            raise SystemExit("the compiled network computes something else")
    return [found for found, _ in results]


def run_without_torch(folder: Path, inputs: list[dict[str, np.ndarray]]) -> list[tuple[dict[str, np.ndarray], float]]:
    """What the component in `folder`, which returns a dict, makes of each of the inputs, and the best of five times in
    milliseconds; in a process without torch."""
    with tempfile.TemporaryDirectory() as temporary:
        files = [Path(temporary) / f"{number}.npz" for number in range(len(inputs))]
        for file, given in zip(files, inputs, strict=True):
            np.savez(file, **given)
        subprocess.run([sys.executable, "-c", PROGRAM, str(folder), *map(str, files)], check=True)
        found = [dict(np.load(file)) for file in files]
    return [(result, 1000 * float(result.pop("seconds"))) for result in found]


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference of two results, relative to the largest value of each array. ValueError if shapes differ."""
    worst = 0.0
    for name, b in expected.items():
        a = found[name]
        if a.shape != b.shape:
            raise ValueError(f"{name}: expected {list(b.shape)}, given {list(a.shape)}")
        worst = max(worst, float(np.abs(a.astype("float64") - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30)))
    return worst
