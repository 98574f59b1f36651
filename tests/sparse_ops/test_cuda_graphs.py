"""CUDA graphs on the emulated device: the same bits as without, whatever is captured, and what is not captured runs as ever."""

import functools
import inspect
import re
import threading
import weakref

import numpy as np
import pytest
import tvm
from tvm import relax

from sparse_ops import devices, graphs, op
from sparse_ops.build import build
from sparse_ops.graphs import Captured
from sparse_ops.program import tensors_of
from tests.cuda_device import cuda_graphs, cuda_target, device
from tests.sparse_ops.walk import CASES, case_id, example_module, example_of
from tir_kernels import guards


@pytest.fixture(autouse=True)
def emulated():
    with cuda_graphs():
        yield


NAMES = ("attention-float16", "dense_group_norm-float32", "group_norm-float32", "layer_norm-float16", "linear-float32")


@pytest.mark.parametrize("case", [case for case in CASES if case_id(case) in NAMES], ids=case_id)
def test_ops_give_the_bits_of_calls_without_graphs(case):
    """Kernels with scratch, and kernels that report errors, among others."""
    row, dtype = case
    program = build(example_module(row, dtype), cuda_target())
    devices.use_cuda_graphs(False)
    plain = build(example_module(row, dtype), cuda_target())
    devices.use_cuda_graphs()
    captured = Captured(lambda *args: tensors_of(program["main"](*args)), device())
    for rows in row.sizes:
        inputs = [np.asarray(array) for array in example_of(row, dtype, rows).inputs]
        expected = [out.numpy().tobytes() for out in tensors_of(plain["main"](*map(tvm.runtime.tensor, inputs)))]
        for _ in range(3):
            assert [out.tobytes() for out in captured(*inputs)] == expected
    assert captured.graphs == len(row.sizes)


WIDTH = 16


@functools.cache
def network(for_graphs: bool = True):
    """`layer`, with weights in the program; `select`, which refuses wrong rows; `kept`, which finds the size of its result."""
    devices.use_cuda_graphs(for_graphs)
    rng = np.random.default_rng(3)
    w, b = (relax.const(rng.standard_normal(shape).astype("float32") / 4) for shape in ((WIDTH, WIDTH), WIDTH))
    functions = {
        "layer": lambda x, index: relax.op.nn.silu(relax.op.add(relax.op.matmul(x, w), b)),
        "select": lambda x, index: op.gather_rows(x, index),
        "kept": lambda x, index: op.flatnonzero(index),
    }
    builder = relax.BlockBuilder()
    for name, call in functions.items():
        rows, places = tvm.tirx.Var("n", "int64"), tvm.tirx.Var("m", "int64")
        x = relax.Var("x", relax.TensorType([rows, WIDTH], "float32"))
        index = relax.Var("index", relax.TensorType([places], "int32"))
        with builder.function(name, [x, index][name == "kept" : 1 + (name != "layer")]):
            builder.emit_func_output(builder.emit(call(x, index)))
    program = build(builder.get(), cuda_target())
    devices.use_cuda_graphs()
    return program


def step(program):
    """Of a sampler: a chain of calls, whose memory is used again from call to call."""

    def run(x, index):
        h = program["layer"](x)
        for _ in range(3):
            h = program["layer"](program["select"](h, index))
        return [h, program["select"](x, index)]

    return run


def arguments(rows, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, WIDTH)).astype("float32"), rng.integers(-1, rows, rows).astype("int32")


def plainly(function, *arrays):
    return [out.numpy() for out in function(*(tvm.runtime.tensor(array, device()) for array in arrays))]


def assert_same(outs, expected):
    assert [(out.shape, out.tobytes()) for out in outs] == [(out.shape, out.tobytes()) for out in expected]


def test_calls_without_a_graph_wait_once(monkeypatch):
    """Of several calls that refuse something it is the first whose words are raised, before those of what fails on the host."""
    events, program = [], network()
    devices.use_cuda_graphs(False)
    read = guards.read_status
    monkeypatch.setattr(guards, "read_status", lambda status: (events.append("read"), read(status)))

    def run(x, index):
        h = x
        for _ in range(3):
            h = program["select"](h, index)
            events.append("called")
        return [h]

    x, index = arguments(9)
    (out,) = Captured(run, device())(x, index)
    assert events == ["called"] * 3 + ["read"] * 3
    assert_same([out], plainly(run, x, index))
    index[4] = 9
    with pytest.raises(ValueError, match="index: entry 4 is 9, expected a row from 0 to 8, or -1"):
        Captured(run, device())(x, index)
    with pytest.raises(ValueError, match="index: entry 4 is 9"):
        Captured(lambda x, index: [program["select"](*run(x, index), x)], device())(x, index)  # no index at all
    index[4] = 0
    assert_same(Captured(run, device())(x, index), plainly(run, x, index))


def test_steps_of_a_sampler_are_one_launch_with_the_same_bits():
    run = step(network())
    calls = []

    def counted(*args):
        calls.append(args)
        return run(*args)

    captured, others = Captured(counted, device()), []
    for turn in range(6):
        for rows in (40, 130):
            given = arguments(rows, turn)
            assert_same(captured(*given), plainly(run, *given))
            # What others hold was not taken from a graph, and graphs do not write into it.
            x = tvm.runtime.tensor(given[0], device())
            held = [network()["layer"](x) for _ in range(6)]
            others += [(tensor, tensor.numpy()) for tensor in held]
    for tensor, before in others:
        np.testing.assert_array_equal(tensor.numpy(), before)
    assert captured.graphs == 2
    assert len(calls) == 4  # for both sizes once to look, and once to capture


def test_errors_of_a_graph_are_those_of_calls_without():
    run = step(network())
    captured, (x, index) = Captured(run, device()), arguments(40)
    expected = plainly(run, x, index)
    wrong = index.copy()
    wrong[[7, 30]] = 99, -5
    with pytest.raises(ValueError) as error:
        plainly(run, x, wrong)
    for turn in range(4):
        assert_same(captured(x, index), expected)
        if turn:
            with pytest.raises(ValueError) as again:
                captured(x, wrong)
            assert str(again.value) == str(error.value) and "entry 7 is 99" in str(error.value)


def test_as_many_graphs_are_kept_as_asked_for_and_the_rest_is_given_up():
    captured = Captured(step(network()), device(), graphs=2)
    first = []
    for rows in (20, 40, 60, 20):
        for _ in range(3):
            captured(*arguments(rows))
        graph = next(reversed(captured._kept.values()))
        assert graph.handle is not None and captured.graphs <= 2
        first.append(weakref.ref(graph))
    del graph
    assert captured.graphs == 2
    assert [graph() is not None for graph in first] == [False, False, True, True]
    memory = device().total_global_memory - device().available_global_memory
    for _ in range(3):
        for rows in (20, 40, 60):
            for _ in range(3):
                captured(*arguments(rows))
    assert device().total_global_memory - device().available_global_memory <= 1.5 * memory


def test_threads_share_graphs():
    run = step(network())
    captured, plain = Captured(run, device()), []
    given = [arguments(rows, seed) for seed in range(4) for rows in (30, 70)]
    expected = [plainly(run, *each) for each in given]
    errors = []

    def work(first):
        try:
            for i in range(len(given)):
                place = (first + i) % len(given)
                assert_same(captured(*given[place]), expected[place])
                plain.append(plainly(run, *given[place]))
                assert_same(plain[-1], expected[place])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("thefts", [1, graphs.TRIES])
def test_memory_that_others_took_meanwhile_is_not_written_to(monkeypatch, thefts):
    """Another thread asks for memory right behind the capture: the graph is given up, and tried again by the next call."""
    run, stolen = step(network()), []
    captured, given = Captured(run, device()), arguments(50)
    expected, held = plainly(run, *given), graphs._held

    def late(memory, kept, where):
        if len(stolen) < 20 * thefts:
            x = tvm.runtime.tensor(given[0], device())
            stolen.extend(network()["layer"](x) for _ in range(20))
        return held(memory, kept, where)

    monkeypatch.setattr(graphs, "_held", late)
    for turn in range(6):
        assert_same(captured(*given), expected)
        assert captured.graphs == (thefts < graphs.TRIES and turn > thefts)
    for tensor in stolen:
        np.testing.assert_array_equal(tensor.numpy(), stolen[0].numpy())


def refused(function, *arrays):
    """Runs without a graph, with the same results, each time."""
    captured, expected = Captured(function, device()), plainly(function, *arrays)
    for _ in range(3):
        assert_same(captured(*arrays), expected)
        assert captured.graphs == 0


def test_a_capture_that_fails_is_told_and_calls_go_on_without(monkeypatch):
    def fail(*args):
        raise RuntimeError("cudaStreamEndCapture: operation failed")

    end = type(graphs.cuda()).end
    monkeypatch.setattr(type(graphs.cuda()), "end", lambda *args: (end(*args), fail())[1])
    with pytest.warns(RuntimeWarning, match="not captured, calls go on without: cudaStreamEndCapture: operation failed"):
        refused(step(network()), *arguments(40))


def test_what_the_host_reads_is_not_captured():
    refused(lambda x: [network()["kept"](x)], arguments(40)[1])


def test_arguments_in_the_memory_of_the_host_are_not_captured():
    index = tvm.runtime.tensor(arguments(40)[1])
    refused(lambda x: [network()["select"](x, index)], arguments(40)[0])


def test_programs_that_were_not_made_for_graphs_are_not_captured():
    refused(step(network(False)), *arguments(40))


def test_what_is_observed_is_not_captured():
    program, told = network(), []
    with program.observed(lambda name, args: told.append(name)):
        refused(step(program), *arguments(40))
    assert told


def test_nothing_is_captured_unless_asked_for():
    devices.use_cuda_graphs(False)
    refused(step(network()), *arguments(40))


def test_names_of_the_runtime_are_those_of_cuda():
    """On machines with CUDA's runtime but without a device, too."""
    try:
        runtime = graphs.Cuda()
    except OSError:
        pytest.skip("CUDA's runtime is not installed")
    for name in re.findall(r'"(cuda[A-Z]\w+)"', inspect.getsource(graphs.Cuda)):
        assert hasattr(runtime.library, name)
