"""Whole sparse networks after recognition: a convolution takes in the norm, the residual and the activation behind it."""

import collections
import re

import pytest
import torch
from torch import nn
from torch.export import Dim

import sparse_ops.torch.spconv as spconv
from sparse_ops.deploy.importer import CONVERTERS, export, import_program
from sparse_ops.transform.recognize import recognize
from tests import DATA
from tests.golden.networks import second, spunet
from tests.golden.runner import read
from tir_kernels.dispatch import host_target

NETWORKS = {"second": second.build, "second_res": second.build, "spunet": spunet.build}
MAPS = {"submanifold_map", "strided_map", "inverse_map"}


class Features(nn.Module):
    """A network as a function of tensors to tensors."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, features, indices):
        return self.network(features, indices).features


def calls(module) -> collections.Counter:
    """How often each op is called in a module's function; those that only rename parts of tuples are left out."""
    found = re.findall(r"R\.((?:\w+\.)*\w+)\(", module.script())
    names = (name.removeprefix("sparse_ops.") for name in found)
    return collections.Counter(name for name in names if name not in ("function", "func_attr", "output", "dataflow"))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_follows_a_convolution_is_part_of_it(name):
    tensors, config = read(DATA / "golden" / f"{name}.safetensors")
    network = Features(NETWORKS[name](spconv, config)).eval()
    given = torch.from_numpy(tensors["in.feats"]), torch.from_numpy(tensors["in.coords"])
    n = Dim("n")
    module = import_program(export(network, given, {"features": {0: n}, "indices": {0: n}}, CONVERTERS), {})
    with host_target():
        found = calls(recognize()(module))
    kinds = collections.Counter(entry["kind"] for entry in config["trace"])
    assert found["sparse_conv"] == sum(kinds.values()) - kinds["pointwise"]
    assert found["linear"] == kinds["pointwise"]
    for absorbed in ("nn.batch_norm", "channel_affine", "nn.relu", "activation", "matmul"):
        assert found[absorbed] == 0, found
    # Each geometry has one map: the layers of a stage share theirs.
    keys = {(entry["indice_key"], entry["kind"]) for entry in config["trace"] if entry["kind"] != "pointwise"}
    assert sum(found[name] for name in MAPS) <= len(keys)
