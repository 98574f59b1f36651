"""Models of the drop-in through torch.export: every layer is traced, at any number of rows."""

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

import sparse_ops.torch.spconv as spconv  # noqa: E402
from tests.sparse_ops.torch.clouds import SHAPE, features, runnable, voxels  # noqa: E402


class Network(torch.nn.Module):
    """All kinds of layers on a grid of given extents."""

    def __init__(self):
        super().__init__()
        self.body = spconv.SparseSequential(
            spconv.SubMConv3d(4, 4, 3, indice_key="a"),
            spconv.SparseBatchNorm(4),
            torch.nn.ReLU(),
            spconv.SubMConv3d(4, 4, 3, indice_key="a"),
            spconv.SparseConv3d(4, 4, 3, 2, 1, bias=False, indice_key="b", record_voxel_count=True),
            spconv.SubMConv3d(4, 4, 3),
            spconv.SubMConv3d(4, 4, 3),
            spconv.SparseInverseConv3d(4, 4, 3, "b"),
            spconv.SubMConv3d(4, 4, 1),
            spconv.SparseMaxPool3d(2, 2),
        )

    def forward(self, features, indices):
        x = self.body(spconv.SparseConvTensor(features, indices, SHAPE, 2))
        return x.dense(), spconv.SparseGlobalMaxPool()(x)


class DataDecide(Network):
    """Extents and batch size come from the data; sums over other voxels."""

    def forward(self, features, indices):
        shape = torch.add(torch.max(indices[:, 1:], dim=0).values, 9).tolist()
        x = spconv.SparseConvTensor(features, indices, shape, indices[-1, 0].item() + 1)
        y = self.body(x)
        z = spconv.functional.sparse_add(y, y.minus(), y)
        return z.features, z.indices, spconv.SparseGlobalAvgPool()(z), spconv.AddTable()([y, y]).features


class InPlace(Network):
    """Indices are written into between two layers."""

    def forward(self, features, indices):
        x = spconv.SparseConvTensor(features, indices.clone(), [40, 40, 40], 2)
        x = self.body[5](x)
        x.indices[:, 1:] *= 2
        return self.body[6](self.body[5](x)).features


@pytest.mark.parametrize(
    ("cls", "maps"),
    [
        (Network, {"submanifold_map": 2, "strided_map": 2, "inverse_map": 1, "sparse_conv": 6}),
        (DataDecide, {"submanifold_map": 2, "strided_map": 2, "inverse_map": 1, "sparse_conv": 6}),
        (InPlace, {"submanifold_map": 2, "sparse_conv": 3}),
    ],
)
def test_exported_programs_compute_what_the_model_does(cls, maps):
    torch.manual_seed(0)
    model = cls().eval()
    rows = torch.export.Dim("n")
    program = torch.export.export(model, inputs(90), dynamic_shapes=({0: rows}, {0: rows}))
    counts = Counter(node.target.overloadpacket.__name__ for node in ours(program))
    assert {name: counts[name] for name in maps} == maps
    run = runnable(program)
    with torch.no_grad():
        for count in (90, 200, 7, 2, 1, *[0] * (cls is not DataDecide)):  # of no rows there is no largest
            expected, given = model(*inputs(count)), run(*inputs(count))
            for mine, theirs in zip(as_tuple(given), as_tuple(expected), strict=True):
                assert torch.equal(mine, theirs)


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    indices = voxels(rows, batch=2)
    return features(rows), indices[indices[:, 0].argsort()].contiguous()


def ours(program):
    return [node for node in program.graph.nodes if str(node.target).startswith("sparse_ops.")]


def as_tuple(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def test_nothing_of_a_trace_stays():
    from sparse_ops.torch.spconv.sites import _known

    before = len(_known)
    torch.manual_seed(0)
    model = Network().eval()
    with torch.no_grad():
        expected = model(*inputs(50))
        torch.export.export(model, inputs(50))
        assert len(_known) == before and model.body[4].get_max_num_voxels() > 0
        for mine, theirs in zip(model(*inputs(50)), expected, strict=True):
            assert torch.equal(mine, theirs)


class Returns(torch.nn.Module):
    """Sparse tensors among what a dict holds, and a number beside them."""

    def forward(self, features, indices):
        x = spconv.SparseConvTensor(features, indices, SHAPE, 2)
        return {"x": x, "all": [x.replace_feature(features * 2), (features, indices)]}

    def strides(self, features, indices):
        return {"x": features, "strides": {"x": 8}}

    def rows(self, features, indices):
        return {"x": features, "rows": features.shape[0]}


def test_a_component_returns_sparse_tensors_as_features_and_indices():
    from sparse_ops.deploy import port_component

    rows = torch.export.Dim("n")
    dynamic = {"features": {0: rows}, "indices": {0: rows}}
    component = port_component(Returns(), inputs(9), "returns", dynamic=dynamic)
    for count in (0, 1, 9):
        given, (feats, coords) = component(*inputs(count)), inputs(count)
        assert given.keys() == {"x", "all"}
        assert torch.equal(given["x"]["features"], feats)
        assert torch.equal(given["x"]["indices"], coords)
        assert torch.equal(given["all"][0]["features"], feats * 2)
    numbers = {"strides": r"output\.strides\.x: expected a tensor, given 8", "rows": r"output\.rows: .* given a size"}
    for method, message in numbers.items():
        with pytest.raises(ValueError, match=message):
            port_component(Returns(), {method: inputs(9)}, "returns", dynamic={method: dynamic})
