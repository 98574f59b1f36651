"""What is planned for a module is what it then takes; storages are shared, freed, and returned to the system."""

import ctypes
import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import tvm
from tvm import relax

from sparse_ops.op import strided_map, submanifold_map, unique
from sparse_ops.transform import cpu_pipeline
from sparse_ops.transform.memory import measured_memory, planned_memory
from tests.sparse_ops.walk import module_of
from tir_kernels.cpu.threads import threads
from tir_kernels.dispatch import host_target

ROWS, CHANNELS = 3000, 1000
RESULT = ROWS * CHANNELS * 4  # bytes
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's mallopt: larger buffers go back to the system at once; heaps
WEIGHT = np.full((CHANNELS,), 2, "float32")


def chain(x):
    """Five results, none of which fuses with the next; two are alive at a time."""
    for axis in (0, 1, 0, 1):
        x = relax.op.nn.softmax(x, axis)
    return relax.op.multiply(relax.op.flip(x, 0), relax.const(WEIGHT))


def compiled(rows, bound: int | None = None):
    mod = module_of(chain, [np.empty((1, CHANNELS), "float32")], [(rows, CHANNELS)])
    if bound is not None:
        mod["main"] = mod["main"].with_attr("tir_var_upper_bound", {"n": bound})
    target = host_target()
    with planned_memory() as plan:
        executable = tvm.compile(mod, target, relax_pipeline=cpu_pipeline())
    return executable, plan


@pytest.fixture(scope="module")
def static():
    return compiled(ROWS)


@pytest.fixture(scope="module")
def symbolic():
    return compiled("n")


SIZES = range(1000, 2000, 100)


def measurements() -> dict[str, int | None]:
    """Bytes that one call takes, and calls of ten sizes, under either allocator. To be run in a new process, see `measured`."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
    set_option(M_ARENA_MAX, 1)
    set_option(M_MMAP_THRESHOLD, 1 << 20)
    executable, _ = compiled("n")

    def taken(allocator: str, sizes) -> int | None:
        machine = relax.VirtualMachine(executable, tvm.cpu(), memory_cfg=allocator)
        inputs = [tvm.runtime.tensor(np.zeros((n, CHANNELS), "float32")) for n in sizes]
        return measured_memory(lambda: [machine["main"](x) and None for x in inputs])

    return {"one": taken("naive", [ROWS]), "naive": taken("naive", SIZES), "pooled": taken("pooled", SIZES)}


@pytest.fixture(scope="module")
def measured():
    """`measurements` in a process with an empty heap: what fits into holes that other tests left is never given back."""
    script = f"import json; from {__name__} import measurements; print(json.dumps(measurements()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    taken = json.loads(done.stdout)
    if None in taken.values():
        pytest.skip("this system does not tell")
    return taken


def test_static_storages_are_shared(static):
    memory = static[1].of("main")
    assert memory.activations == 2 * RESULT
    assert memory.weights == WEIGHT.nbytes and memory.inputs == RESULT
    assert memory.peak <= memory.activations + memory.workspace


def test_symbolic_storages_are_freed_after_their_last_use(symbolic):
    assert symbolic[1].of(n=ROWS).activations == 2 * RESULT
    assert symbolic[1].of(n=0).activations == 0


def test_an_upper_bound_fixes_the_size_of_storages():
    small, most = (compiled("n", bound=ROWS)[1].of(n=n).activations for n in (1, ROWS))
    assert most == 2 * RESULT and RESULT < small <= most  # the result itself has the size of the call


def test_what_is_planned_is_what_is_measured(symbolic, measured):
    assert 0.9 * symbolic[1].of(n=ROWS).peak <= measured["one"] <= 1.1 * symbolic[1].of(n=ROWS).peak


def test_workspace_of_a_parallel_loop_is_counted_for_every_thread():
    from tvm.script import tirx as T

    @T.prim_func(private=True, s_tir=True)
    def kernel(x: T.Buffer((16,), "float32"), out: T.Buffer((16,), "float32")):
        with T.sblock("root"):
            for i in T.parallel(16):
                own = T.alloc_buffer((1000,), "float32")
                own[0] = x[i]
                out[i] = own[0]

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([16], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.call_tir(builder.add_func(kernel, "kernel"), [x], out_ty=x.ty))
        builder.emit_func_output(result)
    with planned_memory() as plan:
        tvm.compile(builder.get(), host_target())
    assert plan.of() == plan.of("main") and plan.of().workspace == 4000 * threads()


INDEXED = {
    "submanifold_map": submanifold_map,
    "strided_map": lambda coords: strided_map(coords, 3, 2, 1, shape=None),
    "unique": unique,
}


def clouds() -> dict[str, np.ndarray]:
    """Coordinates int32 [N, 4] for which "auto" takes a small grid, the largest grid, and none."""
    voxels, side = 20000, 108  # of the largest grid: 63 cells a voxel, 67 with those around the box
    rng = np.random.default_rng(0)
    cells = {"dense": np.arange(voxels), "largest grid": np.sort(rng.choice(side**3, voxels, replace=False))}
    boxes = {name: np.stack([0 * c, c // side**2, c // side % side, c % side], 1) for name, c in cells.items()}
    scattered = np.concatenate([np.zeros((voxels, 1), int), rng.integers(-30000, 30000, (voxels, 3))], 1)
    return {name: array.astype("int32") for name, array in {**boxes, "sparse": np.unique(scattered, axis=0)}.items()}


def index_memory() -> dict[str, tuple[int, int | None]]:
    """Bytes planned and measured for maps and unique coordinates of each cloud. To be run in a new process, see `measured`."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
    set_option(M_ARENA_MAX, 1)
    set_option(M_MMAP_THRESHOLD, 1 << 16)
    found = {}
    for name, call in INDEXED.items():
        mod = module_of(call, [np.empty((1, 4), "int32")], [("n", 4)])
        with planned_memory() as plan:
            executable = tvm.compile(mod, host_target(), relax_pipeline=cpu_pipeline())
        machine = relax.VirtualMachine(executable, tvm.cpu(), memory_cfg="naive")
        machine["main"](tvm.runtime.tensor(np.zeros((1, 4), "int32")))
        for cloud, coords in clouds().items():
            call_it = functools.partial(machine["main"], tvm.runtime.tensor(coords))
            found[f"{name}, {cloud}"] = plan.of(n=len(coords)).peak, measured_memory(call_it)
    return found


def test_an_index_takes_no_more_than_planned():
    """Its size depends on the coordinates; what is planned is the most that their number allows."""
    script = f"import json; from {__name__} import index_memory; print(json.dumps(index_memory()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if None in (measured for _, measured in found.values()):
        pytest.skip("this system does not tell")
    for case, (planned, measured) in found.items():
        assert measured <= planned, f"{case}: {found}"
    planned, measured = found["unique, largest grid"]
    assert measured >= 0.8 * planned, found  # the bound is reached


def test_naive_memory_does_not_grow_with_new_sizes(symbolic, measured):
    """What the docstring recommends: the pool keeps a buffer for every size it has seen."""
    largest = symbolic[1].of(n=max(SIZES)).peak
    assert measured["naive"] <= 2 * largest  # a machine holds its last result until the next call
    assert measured["pooled"] > 4 * largest


def test_measuring_lets_errors_through():
    with pytest.raises(OSError, match="of the call"):
        measured_memory(lambda: (_ for _ in ()).throw(OSError("of the call")))


def test_wrong_questions_are_named(symbolic):
    plan = symbolic[1]
    with pytest.raises(ValueError, match=r"sizes: expected a size for n, given \{'m': 3\}"):
        plan.of(m=3)
    with pytest.raises(ValueError, match="function: expected one of main, given 'other'"):
        plan.of("other")
    with planned_memory() as empty:
        pass
    with pytest.raises(ValueError, match="planned_memory: expected a Relax module to be compiled inside, given none"):
        empty.of()
