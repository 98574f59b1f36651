"""Behaviour of the drop-in that is spconv's by what its code says, or differs for a reason: one test for each."""

import copy
import io
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sparse_ops.torch.spconv as spconv  # noqa: E402
from sparse_ops.torch.ops import CALLS  # noqa: E402
from sparse_ops.torch.spconv import functional  # noqa: E402
from sparse_ops.torch.spconv.core import expand_nd, scatter_nd  # noqa: E402
from tests.sparse_ops.torch.clouds import CHANNELS, SHAPE, by_voxel, features, tensor, voxels  # noqa: E402
from tests.sparse_ops.walk import with_threads  # noqa: E402
from tests.tolerance import assert_close  # noqa: E402


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def calls(monkeypatch):
    """How often maps are built, by the name of the op."""
    counts = {}
    for name in ("submanifold_map", "strided_map", "inverse_map"):
        op = CALLS[name]

        def counted(*args, _name=name, _op=op, **kwargs):
            counts[_name] = counts.get(_name, 0) + 1
            return _op(*args, **kwargs)

        monkeypatch.setitem(CALLS, name, counted)
    return counts


def subm(key=None, **options):
    return spconv.SubMConv3d(CHANNELS, CHANNELS, 3, indice_key=key, **options)


def strided(key=None, **options):
    return spconv.SparseConv3d(CHANNELS, CHANNELS, 3, 2, 1, indice_key=key, **options)


def inverse(key):
    return spconv.SparseInverseConv3d(CHANNELS, CHANNELS, 3, key)


# --- maps and keys -------------------------------------------------------------------------------------------------------


def test_a_key_goes_into_a_copy_that_the_result_carries():
    x = tensor(spconv)
    y = subm("a")(x)
    assert x.indice_dict == {} and list(y.indice_dict) == ["a"]
    z = strided("b")(y)
    assert list(y.indice_dict) == ["a"] and list(z.indice_dict) == ["a", "b"]
    assert z.indice_dict["a"] is y.indice_dict["a"]
    assert spconv.SubMConv3d(CHANNELS, CHANNELS, 1, indice_key="c")(z).indice_dict is z.indice_dict  # kernel 1 leaves nothing


def test_an_entry_has_the_fields_of_spconv():
    x = tensor(spconv)
    y = strided("b")(x)
    data = y.find_indice_pair("b")
    assert x.find_indice_pair(None) is None and x.find_indice_pair("none") is None and y.find_indice_pair(None) is None
    assert data.indices is x.indices and data.out_indices is y.indices
    assert data.spatial_shape == SHAPE and data.out_spatial_shape == [5, 4, 4] == y.spatial_shape
    assert (data.ksize, data.stride, data.padding, data.dilation) == ([3] * 3, [2] * 3, [1] * 3, [1] * 3)
    assert data.is_subm is False and data.algo is spconv.ConvAlgo.Native and data.voxel_num is None
    pairs, counts = data.indice_pairs, data.indice_pair_num
    assert pairs.shape == (2, 27, 60) and pairs.dtype == counts.dtype == torch.int32
    for tap, count in enumerate(counts.tolist()):
        offset = np.array(np.unravel_index(tap, (3, 3, 3))) - 1
        sources, targets = (side[tap, :count].long() for side in pairs)
        assert np.array_equal(x.indices[sources, 1:].numpy(), y.indices[targets, 1:].numpy() * 2 + offset)
        assert (pairs[:, tap, count:] == -1).all()


def test_maps_without_a_key_are_built_once_for_all_tensors_of_the_same_indices(calls):
    x = tensor(spconv)
    y = subm()(subm()(x).replace_feature(features(60)))
    subm()(x.shadow_copy())
    subm()(spconv.SparseConvTensor(x.features, x.indices, SHAPE, 1))  # by hand
    assert calls == {"submanifold_map": 1}
    a, b = strided()(x), strided("k")(y)
    assert torch.equal(a.indices, b.indices)
    subm()(a), subm()(b)
    assert calls == {"submanifold_map": 2, "strided_map": 1}
    inverse("k")(b), inverse("k")(subm()(b))
    assert calls["inverse_map"] == 1


def test_maps_are_let_go_with_the_tensors():
    from sparse_ops.torch.spconv.sites import _known

    x = tensor(spconv)
    before = len(_known)
    strided()(strided("k")(x))  # no cycles: nothing waits for the garbage collector
    assert len(_known) == before + 2  # `x` keeps what was built on its voxels
    del x
    assert len(_known) == before - 1


def test_a_tensor_by_hand_with_the_indice_dict_of_another_finds_its_maps(calls):
    x = tensor(spconv)
    y = strided("k")(x)
    by_hand = spconv.SparseConvTensor(y.features, y.indices, y.spatial_shape, 1, indice_dict=y.indice_dict)
    del y
    assert torch.equal(inverse("k")(by_hand).indices, x.indices)
    assert calls == {"strided_map": 1, "inverse_map": 1}


@pytest.mark.parametrize("inference", [False, True])
def test_indices_changed_in_place_are_noticed(calls, inference):
    with torch.inference_mode(inference):
        x = tensor(spconv, 30)
        layer = subm()
        first = layer(x)
        keyed = subm("a")(x)
        x.indices[:, 1] = x.indices[:, 1].flip(0)
        x.indices[:, 2:] = x.indices[:, 2:].flip(0)
        second = layer(x)
        assert calls["submanifold_map"] == 2
        fresh = layer(spconv.SparseConvTensor(x.features, x.indices.clone(), SHAPE, 1))
        assert torch.equal(second.features, fresh.features) and not torch.equal(first.features, second.features)
        with pytest.raises(ValueError, match=r"'a'.*changed in place"):
            subm("a")(keyed)
        y = strided("s")(x)
        y.indices[0, 3] += 1
        with pytest.raises(ValueError, match=r"'s'.*changed in place"):
            inverse("s")(y)


def test_results_of_one_map_have_indices_of_their_own():
    x, layer = tensor(spconv), strided()
    expected = layer(tensor(spconv)).indices
    first, second = layer(x), layer(x)
    first.indices[:, 1:] *= 2  # as VoxelNeXt does
    for result in (second, layer(x)):
        assert torch.equal(result.indices, expected)
    net = subm()
    by_hand = spconv.SparseConvTensor(first.features, first.indices.clone(), SHAPE, 1)
    assert torch.equal(net(first).features, net(by_hand).features)
    assert not torch.equal(net(first).features, net(second).features)


def test_indices_and_spatial_shape_may_be_assigned():
    x = tensor(spconv, 30)
    subm()(x)
    x.indices = voxels(30, seed=8)
    x.spatial_shape = np.array([9, 9, 9])
    y = strided()(x)
    expected = strided_like(y, x)
    assert torch.equal(y.indices, expected.indices) and y.spatial_shape == [5, 5, 5] == expected.spatial_shape


def strided_like(y, x):
    return strided()(spconv.SparseConvTensor(x.features, x.indices.clone(), [9, 9, 9], 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: spconv.SubMConv3d(CHANNELS, 4, (3, 3, 1), indice_key="a"), r"'a'.*kernel_size \[3, 3, 3\].*\[3, 3, 1\]"),
        (lambda: spconv.SubMConv3d(CHANNELS, 4, 3, dilation=2, indice_key="a"), r"'a'.*dilation \[1, 1, 1\].*\[2, 2, 2\]"),
        (lambda: strided("a"), "'a'.*submanifold"),
        (lambda: strided("s"), "'s'.*no layer has"),
        (lambda: subm("s"), "'s'.*strided layer for a submanifold"),
        (lambda: spconv.SparseMaxPool3d(3, 2, indice_key="s"), "no layer has, given 's'"),
        (lambda: spconv.SparseMaxPool3d(3, 2, indice_key="a"), "no layer has, given 'a'"),
        (lambda: inverse("a"), "'a'.*given a submanifold"),
        (lambda: inverse("none"), r"one of \['s'\], given 'none'"),
        (lambda: spconv.SparseInverseConv3d(CHANNELS, 4, (3, 3, 1), "s"), r"'s'.*kernel_size \[3, 3, 3\].*\[3, 3, 1\]"),
        (lambda: inverse("s"), r"'s'.*spatial_shape \[5, 4, 4\].*\[9, 8, 7\]"),
    ],
)
def test_a_key_with_another_geometry_is_refused(make, words):
    x = subm("a")(tensor(spconv))
    x.indice_dict.update(strided("s")(x).indice_dict)
    with pytest.raises(ValueError, match=words):
        make()(x)


def test_a_key_with_other_voxels_is_refused():
    x = subm("a")(tensor(spconv))
    for changed, words in (
        ({"indices": x.indices[:50], "_features": x.features[:50]}, "number of voxels 60.*given 50"),
        ({"spatial_shape": [9, 9, 9]}, r"spatial_shape \[9, 8, 7\].*\[9, 9, 9\]"),
        ({"indices": voxels(60, seed=5)}, "the voxels that its map was built for"),
    ):
        y = x.shadow_copy()
        vars(y).update(changed)
        with pytest.raises(ValueError, match=words):
            subm("a")(y)
    y.indices = x.indices.clone()  # the same voxels
    assert subm("a")(y).indices is x.indices


# --- layers --------------------------------------------------------------------------------------------------------------


def test_kernel_1_reads_its_weight_as_a_matrix():
    x = tensor(spconv, 20)
    for layer in (
        spconv.SubMConv3d(4, 6, 1, stride=2),  # whose stride is ignored
        spconv.SparseConv3d(4, 6, 1),
        spconv.SparseConvTranspose3d(4, 6, 1),
        spconv.SparseInverseConv3d(4, 6, 1, "no key is asked for"),
    ):
        assert layer.conv1x1
        y = layer(x)
        expected = x.features @ layer.weight.reshape(4, 6) + layer.bias
        assert_close(y.features.numpy(), expected.numpy(), 4)
        assert y.indices is x.indices and y.spatial_shape == SHAPE
    strided_one = spconv.SparseConv3d(4, 6, 1, 2)
    assert not strided_one.conv1x1
    y = strided_one(x)
    rows = (x.indices[:, 1:] % 2 == 0).all(1)
    expected = x.features[rows] @ strided_one.weight.reshape(6, 4).T + strided_one.bias
    assert_close(y.features.numpy(), expected.numpy(), 4)


def test_activations_and_what_is_added_to_the_result():
    x, added = tensor(spconv), tensor(spconv, seed=0)
    plain = subm()
    sums = plain(x).features
    functions = {"ReLU": torch.relu, "Sigmoid": torch.sigmoid, "LeakyReLU": lambda v: torch.nn.functional.leaky_relu(v, 0.25)}
    for name, function in functions.items():
        act = spconv.Activation[name]
        layer = spconv.conv.SparseConvolution(3, CHANNELS, CHANNELS, 3, subm=True, act_type=act, act_alpha=0.25)
        layer.load_state_dict(plain.state_dict())
        with pytest.raises(ValueError, match="act_type: expected none in training"):
            layer(x)
        layer.eval()
        assert torch.equal(layer(x).features, function(sums))
        assert torch.equal(layer(x, added).features, function(sums + added.features))
    assert torch.equal(plain(x, added).features, sums + added.features)
    with pytest.raises(ValueError, match="act_type: expected none with kernel size 1"):
        spconv.conv.SparseConvolution(3, 4, 4, 1, act_type=spconv.Activation.ReLU)
    with pytest.raises(ValueError, match="act_type: expected one of"):
        spconv.conv.SparseConvolution(3, 4, 4, 3, act_type="relu")


def test_the_activations_of_cumm_are_taken():
    activation = pytest.importorskip("cumm.tensorview").gemm.Activation
    layer = spconv.conv.SparseConvolution(3, CHANNELS, CHANNELS, 3, subm=True, act_type=activation.ReLU).eval()
    assert (layer(tensor(spconv)).features >= 0).all() and layer.act_type == activation.ReLU


def test_voxels_are_counted():
    layers = strided(record_voxel_count=True), spconv.SparseMaxPool3d(2, record_voxel_count=True)
    for layer in layers:
        assert list(layer.state_dict())[-1:] != [] and layer.get_max_num_voxels().tolist() == [0]
        rows = [layer(tensor(spconv, n)).features.shape[0] for n in (60, 10)]
        assert layer.max_num_voxels_during_training.tolist() == [max(rows)] and rows[0] > rows[1]
        assert layer.max_num_voxels_during_training.dtype == torch.int32
    assert subm().get_max_num_voxels() is None
    bare = strided().state_dict()  # saved before it counted
    layers[0].load_state_dict(bare)
    assert layers[0].get_max_num_voxels().tolist() == [0]


def test_a_maximum_starts_from_zero_and_a_mean_divides_by_the_voxels_met():
    x = tensor(spconv, 40)
    low = x.replace_feature(-1 - x.features.abs())
    assert (spconv.SparseMaxPool3d(2)(low).features == 0).all()
    y, mean = spconv.SparseMaxPool3d(2)(x), spconv.SparseAvgPool3d(2)(x)
    assert torch.equal(y.indices, mean.indices)
    for row, voxel in enumerate(y.indices[:, 1:]):
        met = x.features[(x.indices[:, 1:] // 2 == voxel).all(1)]
        assert torch.equal(y.features[row], met.amax(0).clamp(min=0))
        assert_close(mean.features[row].numpy(), met.mean(0).numpy(), len(met))


@pytest.mark.parametrize("kind", ["Max", "Avg"])
def test_a_pool_may_keep_its_voxels(kind):
    x = tensor(spconv)
    y = getattr(spconv.pool, f"Sparse{kind}Pool")(3, 3, 2, 1, 1, "p", subm=True)(x)
    assert y.indices is x.indices and y.spatial_shape == SHAPE and y.indice_dict["p"].is_subm
    near = (x.indices[:, None, 1:] - x.indices[None, :, 1:]).abs().amax(2) <= 1  # [row, other row]
    for row, met in enumerate(near):
        values = x.features[met]
        expected = values.amax(0).clamp(min=0) if kind == "Max" else values.mean(0)
        assert_close(y.features[row].numpy(), expected.numpy(), len(values))


def test_global_pools_have_a_row_for_each_batch_element():
    x = tensor(spconv, 30, batch=2)
    x = spconv.SparseConvTensor(x.features - 5, x.indices, SHAPE, 3)  # the third element has no voxel
    for layer, reduce in ((spconv.SparseGlobalAvgPool(), torch.mean), (spconv.SparseGlobalMaxPool(), torch.amax)):
        y = layer(x)
        assert y.shape == (3, CHANNELS) and (y[2] == 0).all()
        for element in range(2):
            assert_close(y[element].numpy(), reduce(x.features[x.indices[:, 0] == element], 0).numpy(), 30)


@pytest.mark.parametrize("inference", [False, True])
def test_a_sequence_runs_on_no_voxels_and_on_one(inference):
    with torch.inference_mode(inference):
        one = tensor(spconv, 1)
        up = inverse("k")(strided("k")(subm("a")(one)))
        assert torch.equal(up.indices, one.indices) and up.features.shape == (1, CHANNELS)
        no_voxels()


def no_voxels():
    net = spconv.SparseSequential(subm(), torch.nn.Linear(CHANNELS, 7), torch.nn.ReLU(), spconv.SubMConv3d(7, 3, 1))
    x = tensor(spconv, 0)
    y = net(x)
    assert y.features.shape == (0, 3) and y.indices.shape == (0, 4)
    z = strided("k")(x)
    assert z.features.shape == (0, CHANNELS) and inverse("k")(z).features.shape == (0, CHANNELS)
    assert z.dense().shape == (1, CHANNELS, 5, 4, 4) and spconv.SparseMaxPool3d(2)(x).features.shape == (0, CHANNELS)


def test_sequences_are_made_and_read_as_spconv_has_them():
    from collections import OrderedDict

    a, b = torch.nn.ReLU(), torch.nn.Identity()
    named = spconv.SparseSequential(OrderedDict([("x", a), ("y", b)]), z=a)
    assert list(named._modules) == ["x", "y", "z"] and named[0] is a and named[-2] is b and len(named) == 3
    numbered = spconv.SparseSequential(a, last=b)
    numbered.add(a)
    numbered.add(b, "end")
    assert list(numbered._modules) == ["0", "last", "2", "end"]
    with pytest.raises(ValueError, match="name"):
        spconv.SparseSequential(OrderedDict(z=a), z=b)
    with pytest.raises(IndexError):
        named[3]


def test_modules_know_their_names():
    net = spconv.SparseSequential(subm(), inner=spconv.SparseSequential(subm()))
    spconv.assign_name_for_sparse_modules(net)
    assert net.inner[0]._sparse_unique_name == "inner.0" and net._sparse_unique_name == ""
    assert spconv.modules.is_spconv_module(spconv.SparseReLU()) and not spconv.modules.is_spconv_module(torch.nn.ReLU())
    assert spconv.modules.is_sparse_conv(net[0]) and not spconv.modules.is_sparse_conv(net)


def test_layers_of_torch_take_both():
    x = tensor(spconv, 30)
    for layer, torchs in (
        (spconv.SparseBatchNorm(CHANNELS), torch.nn.BatchNorm1d(CHANNELS)),
        (spconv.SparseReLU(), torch.nn.ReLU()),
        (spconv.SparseIdentity(), torch.nn.Identity()),
    ):
        expected = torchs(x.features)
        assert torch.equal(layer(x).features, expected) and torch.equal(layer.eval()(x).indices, x.indices)
        assert torch.equal(type(layer)(CHANNELS)(x.features), expected) if "Batch" in type(layer).__name__ else True


def test_tables():
    x, y = tensor(spconv, 30), tensor(spconv, 30, seed=0)
    y = y.replace_feature(y.features * 2)
    assert torch.equal(spconv.JoinTable()([x, y]).features, torch.cat([x.features, y.features], 1))
    assert torch.equal(spconv.AddTable()([x, y]).features, x.features + y.features)
    both = spconv.ConcatTable().add(spconv.SparseIdentity()).add(spconv.SparseReLU())
    assert [torch.equal(a.features, b) for a, b in zip(both(x), (x.features, x.features.relu()), strict=True)] == [True, True]
    with pytest.raises(ValueError, match=r"input\[1\]: expected rows 30, as input\[0\], given 20"):
        spconv.AddTable()([x, tensor(spconv, 20)])


def test_sums_over_the_voxels_of_all():
    x, y = tensor(spconv, 30), tensor(spconv, 40, seed=7)
    expected = x.dense() + y.dense()
    for summed in (functional.sparse_add(x, y), spconv.AddTableMisaligned()([x, y])):
        assert torch.equal(summed.dense(), expected) and summed.indice_dict == {}
        assert np.array_equal(by_voxel(summed)[0], summed.indices.numpy())
    inside = x.moved(x.features[:20], indices=x.indices[:20])
    assert functional.sparse_add(subm("a")(x), inside).indice_dict.keys() == {"a"}
    with pytest.raises(ValueError, match=r"tens\[1\]: expected channels 4"):
        functional.sparse_add(x, tensor(spconv, 30, channels=5))


@pytest.mark.parametrize("shape", [[9], [9, 8], [9, 8, 7]])
def test_dense_and_back(shape):
    x = tensor(spconv, 8, shape=shape, batch=2)
    dense = scatter_nd(x.indices.long(), x.features, [2, *shape, CHANNELS])
    assert torch.equal(x.dense(False), dense)
    assert torch.equal(x.dense(), dense.movedim(-1, 1)) and torch.equal(spconv.ToDense()(x), x.dense(True))
    back = spconv.SparseConvTensor.from_dense(dense)
    assert back.spatial_shape == shape and back.batch_size == 2 and back.indices.dtype == torch.int32
    for mine, theirs in zip(by_voxel(back), by_voxel(x), strict=True):
        assert np.array_equal(mine, theirs)


def test_a_tensor_is_made_of_others():
    x = subm("a")(tensor(spconv, 30))
    mask = torch.arange(30) % 2 == 0
    half = x.select_by_index(mask)
    assert torch.equal(half.indices, x.indices[mask]) and torch.equal(half.features, x.features[mask])
    assert half.indice_dict == {} and "a" in x.indice_dict
    assert torch.equal(x.minus().features, -x.features)
    assert torch.equal((x + x).features, 2 * x.features) and torch.equal((x + x.features).features, 2 * x.features)
    assert torch.equal(sum([x, x]).features, 2 * x.features)
    y = x.shadow_copy()
    y += x
    assert torch.equal(y.features, 2 * x.features) and y.indice_dict is x.indice_dict
    with pytest.raises(ValueError, match="replace_feature"):
        x.features = x.features
    with pytest.raises(ValueError, match=r"\+: expected features \[30, 4\], given \[1, 4\]"):
        x + tensor(spconv, 1)
    assert not x.is_quantized
    with pytest.raises(ValueError, match="quantized"):
        x.q_scale()
    assert spconv.RemoveGrid()(x) is x and x.grid is None


def test_what_users_set_is_carried_on():
    x = tensor(spconv, benchmark=False, force_algo=spconv.ConvAlgo.Native, voxel_num=torch.tensor([3]))
    x.int8_scale, x._timer, x.thrust_allocator = np.ones(2), "timer", "allocator"
    net = spconv.SparseSequential(subm(), strided("k"), inverse("k"), spconv.SparseMaxPool3d(2), spconv.SubMConv3d(4, 3, 1))
    for y in (net(x), x.replace_feature(x.features), x.shadow_copy(), x.minus()):
        for name in ("force_algo", "voxel_num", "int8_scale", "_timer", "thrust_allocator", "benchmark_record", "grid"):
            assert getattr(y, name) is getattr(x, name), name


def test_a_benchmark_notes_times_and_points():
    x = tensor(spconv, benchmark=True)
    with pytest.raises(ValueError, match="name"):
        strided()(x)
    y = spconv.SparseMaxPool3d(2, name="pool")(strided(name="down")(x))
    record = y.benchmark_record
    assert record is x.benchmark_record and list(record) == ["down", "pool"]
    assert record["down"]["type"] == "SparseConvolution" and record["down"]["num_points"] == [60]
    assert record["pool"]["num_points"] == record["down"]["num_out_points"]
    assert len(record["down"]["time"]) == len(record["down"]["indice_gen_time"]) == 1
    assert record["down"]["params"]["stride"] == [2, 2, 2] and record["pool"]["params"]["channels"] == CHANNELS


# --- numbers, dtypes, threads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_features(dtype):
    x = tensor(spconv, 30)
    net = spconv.SparseSequential(subm(), strided(), spconv.SubMConv3d(CHANNELS, CHANNELS, 1), spconv.SparseMaxPool3d(2))
    expected = net(x).features
    y = copy.deepcopy(net).to(dtype)(x.replace_feature(x.features.to(dtype))).features
    assert y.dtype == dtype
    depth = 2 * 27 * CHANNELS + CHANNELS  # products behind a value
    assert_close(y.float().numpy(), expected.numpy(), depth, dtype=dtype_name(dtype))
    with torch.autocast("cpu", dtype):
        mixed = net(x).features
    assert mixed.dtype == dtype
    assert_close(mixed.float().numpy(), expected.numpy(), depth, dtype=dtype_name(dtype))
    with pytest.raises(ValueError, match="features: expected float32, as weight"):
        subm()(x.replace_feature(x.features.to(dtype)))


def dtype_name(dtype):
    import ml_dtypes

    return np.float16 if dtype == torch.float16 else ml_dtypes.bfloat16


def test_any_number_of_threads_gives_the_same_bits():
    net = spconv.SparseSequential(subm(), strided("k"), inverse("k"), spconv.SubMConv3d(CHANNELS, 5, 1)).eval()
    x = tensor(spconv, 400)

    def run():
        return net(tensor(spconv, 400)).features

    expected = run()
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert torch.equal(with_threads(threads, run), expected)
        finally:
            torch.set_num_threads(before)
    results = []
    own = [
        threading.Thread(target=lambda given=given: results.append(net(given).features)) for given in (x, x, x.shadow_copy())
    ]
    for thread in own:
        thread.start()
    for thread in own:
        thread.join()
    assert len(results) == 3 and all(torch.equal(result, expected) for result in results)


def test_gradients_reach_every_parameter():
    down = strided("k", bias=False)  # a norm behind a bias takes it off again
    layers = (subm("a"), down, spconv.SparseBatchNorm(CHANNELS), inverse("k"), spconv.SubMConv3d(CHANNELS, 3, 1))
    for dimensions, net in ((3, spconv.SparseSequential(*layers)), (2, spconv.SparseSequential(spconv.SubMConv2d(4, 4, 3)))):
        x = tensor(spconv, 30, shape=SHAPE[:dimensions])
        with torch.enable_grad():
            feats = x.features.clone().requires_grad_()
            net(x.replace_feature(feats)).features.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (feats, *net.parameters()))
        assert net[0].weight.grad.shape == net[0].weight.shape


def test_other_strides_of_memory_are_taken():
    x, layer = tensor(spconv, 30), subm()
    wide = torch.cat([x.features, x.features], 1)[:, :CHANNELS]
    columns = torch.cat([x.indices, x.indices], 1)[:, :4]
    assert not wide.is_contiguous() and not columns.is_contiguous()
    y = layer(spconv.SparseConvTensor(wide, columns, SHAPE, 1))
    assert torch.equal(y.features, layer(x).features) and y.indices is columns
    assert torch.equal(strided("k")(y).indices, strided("k")(x).indices)


def test_sizes_of_any_kind_are_ints():
    x = tensor(spconv, 5)
    for shape in (
        np.array([9, 8, 7]),
        torch.Size([9, 8, 7]),
        (9, 8, 7),
        torch.tensor([9, 8, 7]),
        list(torch.tensor([9, 8, 7])),
    ):
        y = spconv.SparseConvTensor(x.features, x.indices, shape, torch.tensor(1))
        assert y.spatial_shape == [9, 8, 7] and [type(n) for n in (*y.spatial_shape, y.batch_size)] == [int] * 4
    assert spconv.SparseConvTensor(x.features, x.indices, SHAPE, np.int64(2)).batch_size == 2


def test_models_and_tensors_are_copied_and_saved():
    net = spconv.SparseSequential(subm("a"), strided("k"), inverse("k"), spconv.SparseMaxPool3d(2, indice_key="p"))
    x = tensor(spconv)
    y = net(x)
    file = io.BytesIO()
    torch.save((net, y), file)
    file.seek(0)
    for other, result in (copy.deepcopy((net, y)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x).features, y.features) and torch.equal(result.features, y.features)
        up = spconv.SparseInverseConv3d(CHANNELS, 3, 2, "p")
        assert torch.equal(up(result).features, up(y).features)  # what lies under keys came along
    assert torch.equal(net.half()(x.replace_feature(x.features.half())).indices, y.indices)


@pytest.mark.parametrize("layout", ["KRSC", "RSKC", "RSCK"])
def test_weights_of_other_layouts_are_loaded(monkeypatch, layout):
    layer = spconv.SparseConv3d(3, 5, (3, 1, 2))
    weight = layer.weight.clone()
    order = {"KRSC": (0, 1, 2, 3, 4), "RSKC": (1, 2, 3, 0, 4), "RSCK": (1, 2, 3, 4, 0)}[layout]
    monkeypatch.setenv("SPCONV_SAVED_WEIGHT_LAYOUT", layout)
    other = spconv.SparseSequential(spconv.SparseConv3d(3, 5, (3, 1, 2)))
    other.load_state_dict({"0.weight": weight.permute(order).contiguous(), "0.bias": layer.bias})
    assert torch.equal(other[0].weight, weight)


# --- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: spconv.SubMConv4d(2, 2, 3), "ndim: expected one to 3 axes, given 4"),
        (lambda: spconv.SparseConv4d(2, 2, 3), "ndim: .* given 4"),
        (lambda: spconv.SparseConvTranspose4d(2, 2, 3), "ndim: .* given 4"),
        (lambda: spconv.SparseInverseConv4d(2, 2, 3, "k"), "ndim: .* given 4"),
        (lambda: spconv.SparseMaxPool4d(2), "ndim: .* given 4"),
        (lambda: spconv.SubMConv3d(2, 2, 3, groups=2), "groups: expected 1"),
        (lambda: spconv.SubMConv3d(2, 2, 2), "kernel_size: expected odd sizes"),
        (lambda: spconv.SparseConv3d(2, 2, 1, padding=1), "padding: expected 0 with kernel size 1"),
        (lambda: spconv.SparseConv3d(2, 2, (3, 3)), "kernel_size: expected an int or 3"),
        (lambda: spconv.SparseConv3d(2, 2, 3, stride=0), "stride: expected an int or 3 of at least 1"),
        (lambda: spconv.SparseConv3d(0, 2, 3), "in_channels: expected an int of at least 1, given 0"),
        (lambda: expand_nd(3, [1, 2]), "val: expected an int or 3"),
    ],
)
def test_layers_that_there_are_not(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_tensors_that_there_are_not():
    feats, indices = features(5), voxels(5)
    for arguments, words in (
        ((feats, indices.long(), SHAPE, 1), r"indices: only int32 is supported, given int64 \[5, 4\]"),
        ((feats[0], indices, SHAPE, 1), r"features: expected a tensor \[N, C\], given float32 \[4\]"),
        ((feats, indices[:, 0], SHAPE, 1), r"indices: expected int32 \[N, 1 \+ axes\]"),
        ((feats, torch.zeros(5, 5, dtype=torch.int32), [3] * 4, 1), "indices: .*one to three axes"),
        ((feats, indices, SHAPE[:2], 1), r"spatial_shape: expected 3 extents.*given \[9, 8\]"),
        ((feats, indices, [9, 8, 7.5], 1), "spatial_shape: expected an int, given 7.5"),
        ((feats, indices, SHAPE, 0), "batch_size: expected an int of at least 1, given 0"),
        ((feats, indices, [8, -8, 8], 2), r"spatial_shape: expected extents of at least 1, given \[8, -8, 8\]"),
        ((feats.numpy(), indices, SHAPE, 1), "features: expected a tensor"),
    ):
        with pytest.raises(ValueError, match=words):
            spconv.SparseConvTensor(*arguments)


def test_inputs_that_do_not_fit():
    x = tensor(spconv, 5)
    rows = spconv.SparseConvTensor(features(6), x.indices, SHAPE, 1)
    for layer, given, words in (
        (subm(), x.features, "input: expected a SparseConvTensor, given float32"),
        (spconv.SubMConv2d(4, 4, 3), x, "input: expected indices of 2 axes, given 3"),
        (spconv.SubMConv3d(5, 4, 3), x, "features: expected 5 channels, as in_channels, given 4"),
        (subm(), rows, "features: expected 5 rows, one for each of indices, given 6"),
        (subm(), x.replace_feature(x.features.to("meta")), "features: expected a tensor on a CPU.*meta"),
        (subm(), x.replace_feature(x.features.double()), "features: expected float32, as weight, given float64"),
        (
            spconv.SparseConv3d(4, 4, 3),
            tensor(spconv, 2, shape=[2, 9, 9]),
            "kernel_size: expected a kernel that the padded grid",
        ),
        (spconv.SparseGlobalAvgPool(), x.features, "input: expected a SparseConvTensor"),
    ):
        with pytest.raises(ValueError, match=words):
            layer(given)
    twice = spconv.SparseConvTensor(features(2), torch.zeros(2, 4, dtype=torch.int32), SHAPE, 1)
    for layer in (subm(), strided()):
        with pytest.raises(ValueError, match="row 1"):
            layer(twice)
