"""Settings of all tests."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.instruction_sets import INTEGER_ISAS, ISAS
from tir_kernels.cpu.isa import Isa, forced_isa

# Compiled functions are kept beside the project, not in the user's cache, and shared with the processes that tests start.
os.environ.setdefault("SPARSE_OPS_CACHE", str(Path(__file__).parent.parent / "build" / "cache"))
# No test finds what the user's hub cache may have.
os.environ["HF_HUB_CACHE"] = str(Path(__file__).parent.parent / "build" / "no_hub_cache")
# Tests run beside each other on all cores, so workers that wait for their next kernel leave theirs to others.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")

# A first example may compile a kernel, so time says nothing; the same examples on every run keep failures repeatable.
settings.register_profile("default-project", deadline=None, derandomize=True)
settings.load_profile("default-project")


# Files that compile most, the longest first: what is left to the end is short, so that no worker waits long for the last one.
# A file is one worker's, so that what its tests share is compiled once. `--durations` tells when this is out of date.
LONGEST = (
    "test_networks.py",
    "test_golden.py",
    "test_registry.py",
    "test_pipeline.py",
    "test_cli.py",
    "test_batch.py",
    "test_against_spconv.py",
    "test_ray.py",
    "test_cuda.py",
    "test_nvcc.py",
    "test_cuda_golden.py",
    "test_cuda_graphs.py",
    "test_cuda_pipeline.py",
    "test_tiny.py",
    "test_quality.py",
    "test_loop.py",
    "test_schedule_rest.py",
    "test_structure_flow.py",
    "test_assembly.py",
    "test_slat_backends.py",
    "test_eager.py",
    "test_slat_generator.py",
    "test_linear.py",
    "test_kernel_map.py",
    "test_pipeline_benchmark.py",
    "test_attention.py",
    "test_mesh_decoder.py",
    "test_upsampled_conv.py",
    "test_dispatch.py",
    "test_gaussian_decoder.py",
    "test_readme.py",
    "test_descriptors.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """What is imported by now stays: where the pipeline collects garbage between its models, that need not be looked at."""
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--isa", choices=[*ISAS], help="build every kernel for this instruction set instead of the machine's")


def pytest_configure(config):
    if name := config.getoption("--isa"):
        scope = forced_isa(ISAS[name])
        scope.__enter__()
        config.add_cleanup(lambda: scope.__exit__(None, None, None))


@pytest.fixture(params=[isa for isa in ISAS.values() if not isa.bf16_dot], ids=lambda isa: isa.name)
def isa_of_float32(request) -> Iterator[Isa]:
    """Each instruction set that differs where nothing is bfloat16."""
    with forced_isa(request.param):
        yield request.param


@pytest.fixture(params=ISAS.values(), ids=ISAS)
def isa(request) -> Iterator[Isa]:
    """Each instruction set in turn; what the test builds is built for it."""
    with forced_isa(request.param):
        yield request.param


@pytest.fixture(params=INTEGER_ISAS.values(), ids=INTEGER_ISAS)
def integer_isa(request) -> Iterator[Isa]:
    """Each way to add integer products in turn."""
    with forced_isa(request.param):
        yield request.param
