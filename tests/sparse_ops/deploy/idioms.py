"""What models of sparse networks do beside convolutions, by theme: each a function of (model, feats, coords, index).

feats float32 [N, 8], coords int32 [N, 4], index int64 [N] of 0 and 1. `THEMES` has them all; one component computes a theme.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

THEMES: dict[str, dict[str, Callable]] = {}
SIDE = 12  # of the grid that coords lie in


def idiom(theme: str) -> Callable[[Callable], Callable]:
    def register(function: Callable) -> Callable:
        THEMES.setdefault(theme, {})[function.__name__] = function
        return function

    return register


class Idioms(nn.Module):
    """All of a theme, one output each."""

    def __init__(self, theme: str):
        super().__init__()
        torch.manual_seed(0)
        self.functions = list(THEMES[theme].values())
        self.linear, self.layer_norm, self.group_norm = nn.Linear(8, 8), nn.LayerNorm(8), nn.GroupNorm(2, 8)
        self.batch_norm, self.embedding = nn.BatchNorm1d(8), nn.Embedding(SIDE, 5)
        self.conv, self.up, self.norm2d = (
            nn.Conv2d(8, 4, 3, padding=1),
            nn.ConvTranspose2d(8, 4, 2, stride=2),
            nn.BatchNorm2d(8),
        )
        with torch.no_grad():
            self.batch_norm.running_mean.normal_()
            self.batch_norm.running_var.uniform_(0.5, 2)

    def forward(self, x, c, i):
        return [list(function(self, x, c, i)) for function in self.functions]


# --- arithmetic -----------------------------------------------------------------------------------------------------------


@idiom("arithmetic")
def promotion(s, x, c, i):
    return x + x * 2.0, c + 1, c * 2.5, i - c[:, 0], (x > 0) * x, torch.add(c, c, alpha=3), torch.rsub(c, 5)


@idiom("arithmetic")
def division(s, x, c, i):
    low = c - 6
    trunc, floor = (torch.div(low, 4, rounding_mode=mode) for mode in ("trunc", "floor"))
    return c // 2, c / 2, trunc, floor, -c // 4, low % 4, torch.remainder(x, 0.7), x.floor_divide(0.5)


@idiom("arithmetic")
def comparisons(s, x, c, i):
    return c > 5.5, (c[:, 0] == 0) & (c[:, 1] > 3), ~(c[:, 0] == 1), c.float() >= x[:, :4], (c > 3) != (c > 5)


@idiom("arithmetic")
def choices(s, x, c, i):
    return (
        torch.where(x > 0, x, x * 0.1),
        torch.where(c > 3, c, 0),
        torch.where(c[:, :1] > 3, x, 1.0),
        x.masked_fill(x > 1, 0.5),
    )


@idiom("arithmetic")
def bounds(s, x, c, i):
    return c.clamp(min=3), x.clamp(-1, 1), c.clamp(2, 5), c.clamp(max=c.shape[0]), torch.maximum(x, x[:, :1]), x.pow(2), c**3


@idiom("arithmetic")
def casts(s, x, c, i):
    return x.int(), x.long(), x.bool(), c.float(), (x > 0).float(), c.bool(), i.int(), (x > 0).long() * 2, x.double(), x.half()


@idiom("arithmetic")
def position_embedding(s, x, c, i):
    angle = c[:, 1:, None].float() * (10 ** (-torch.arange(4).float() / 4))
    return (torch.cat([angle.sin(), angle.cos()], -1).flatten(1),)


@idiom("arithmetic")
def subdivided(s, x, c, i):
    steps = torch.tensor([[0, a, b, e] for a in (0, 1) for b in (0, 1) for e in (0, 1)], dtype=torch.int32)
    fine = c.clone()
    fine[:, 1:] *= 2
    return (fine.unsqueeze(1) + steps.unsqueeze(0)).flatten(0, 1), torch.cat([c[:, :1], c[:, 1:] // 2], 1)


# --- rows ------------------------------------------------------------------------------------------------------------------


@idiom("rows")
def masks(s, x, c, i):
    mask = x[:, 0] > 0
    return (
        x[mask],
        c[mask],
        mask.nonzero(),
        x[mask] + x[mask] * 2,
        x.masked_select(x > 1),
        torch.cat([x[mask], x[~mask].relu(), x]),
    )


@idiom("rows")
def assigned_under_masks(s, x, c, i):
    rows, elements, other, mask = x.clone(), x.clone(), x.clone(), c[:, 0] == 1
    rows[rows[:, 0] > 0] = 0.5
    elements[elements > 1] = 1.0
    other[mask] = x[mask] * 2
    return rows, elements, other


@idiom("rows")
def assigned_slices(s, x, c, i):
    k = c.clone()
    k[:, 0] = 7
    k[:, 2:] += 1
    k[:, 1] = c[:, 2]
    k[c[:, 1] > 3, 3] = 9
    return (k,)


@idiom("rows")
def indices(s, x, c, i):
    i = i.clamp(max=x.shape[0] - 1)
    heads = x.reshape(-1, 2, 4)
    return x[i], c[i], (x > 0)[i], i[i], heads[i], heads[i.int()], x.index_select(0, i)


@idiom("rows")
def tables(s, x, c, i):
    table = torch.arange(16, dtype=torch.float32).reshape(2, 8)
    return x * table[c[:, 0].long()], table[c[:, 0] - 2], s.embedding(c[:, 1]), s.embedding(c[:, 1:].long())


@idiom("rows")
def gathered(s, x, c, i):
    i = i.clamp(max=x.shape[0] - 1)
    return x.gather(1, c[:, :2].long() % 8), x.gather(0, i[:, None].expand(-1, 8)), x[:, c.new_tensor([3, 1, -1])]


@idiom("rows")
def cut_and_joined(s, x, c, i):
    kept = x[c[:, 0] == 0]
    n = kept.shape[0]
    a, b = x.chunk(2, 1)
    return kept[: n // 2], kept[n // 2 :], kept[:5], kept[-2:], x[:, -3:], x[:, ::2], x[:, -1], a * b.sigmoid(), *c.unbind(1)


@idiom("rows")
def reshaped(s, x, c, i):
    n = x.shape[0]
    heads = x.reshape(n, 2, 4)
    return heads.permute(1, 0, 2), heads.softmax(-1), heads.reshape(n, 8), x.T, x.unsqueeze(1).expand(-1, 3, -1).flatten(0, 1)


@idiom("rows")
def repeated(s, x, c, i):
    return x.repeat_interleave(i, dim=0), torch.repeat_interleave(i), x.repeat_interleave(2, dim=0), x.repeat(2, 1)


@idiom("rows")
def turned(s, x, c, i):
    return x.flip(0), c.flip(1), x[torch.flip(torch.arange(x.shape[0]), (0,))], torch.stack([x, x * 2], 1)


@idiom("rows")
def dense_index(s, x, c, i):
    b, k, y, z = c.long().unbind(1)
    grid = torch.zeros(2, SIDE, SIDE, SIDE, 8)
    grid[b, k, y, z] = x
    return grid, grid[b, k, y, z], torch.zeros(SIDE, 8).index_put((k,), x, accumulate=True)


# --- groups of rows --------------------------------------------------------------------------------------------------------


@idiom("groups")
def added_by_index(s, x, c, i):
    zeros, counts = torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64)
    return zeros.index_add(0, i, x), zeros.index_add(0, i, x, alpha=2.0), counts.index_add(0, i, c[:, 1].long())


@idiom("groups")
def scattered(s, x, c, i):
    index, ones = i[:, None].expand(-1, 8), torch.ones(2, 8)
    reduced = [
        ones.scatter_reduce(0, index, x, how, include_self=own)
        for how in ("sum", "mean", "amax", "amin")
        for own in (True, False)
    ]
    return ones.scatter_add(0, index, x), *reduced


@idiom("groups")
def scattered_elements(s, x, c, i):
    most = torch.zeros(2, dtype=torch.int64).scatter_reduce(0, i, c[:, 1].long(), "amax", include_self=False)
    return torch.zeros(2).scatter_add(0, i, x[:, 0]), most, torch.zeros_like(x).scatter(1, c[:, 1:2].long() % 8, 1.0)


@idiom("groups")
def unique_rows(s, x, c, i):
    coarse = torch.cat([c[:, :1], c[:, 1:] // 4], 1)
    found, inverse, counts = torch.unique(coarse, dim=0, return_inverse=True, return_counts=True)
    mean = x.new_zeros(found.shape[0], 8).index_add(0, inverse, x) / counts[:, None]
    flat, back = torch.unique(c[:, 1:3] // 4 - 1, dim=0, return_inverse=True)
    return found, inverse, counts, flat, back, s.batch_norm(mean), mean[inverse] - x


@idiom("groups")
def unique_numbers(s, x, c, i):
    key = c[:, 0].long() * 10**10 + c[:, 1] * 1000
    pillars, inverse, counts = torch.unique(key, return_inverse=True, return_counts=True)
    found, back = torch.unique(c[:, 1], return_inverse=True, dim=0)
    return pillars, inverse, counts, found, back, torch.unique(i)


@idiom("groups")
def merged_scales(s, x, c, i):
    scales = [torch.cat([c[:, :1], c[:, 1:] // step * step], 1) for step in (1, 2, 4)]
    flat, inverse = torch.unique(torch.cat(scales)[:, [0, 2, 3]], dim=0, return_inverse=True)
    return flat, x.new_zeros((flat.shape[0], 8)).index_add_(0, inverse, torch.cat([x, x * 2, x * 3]))


@idiom("groups")
def counted(s, x, c, i):
    return torch.bincount(i, minlength=2), torch.bincount(c[:, 0].long(), minlength=5).cumsum(0), c[:, 1].cumsum(0), x.cumsum(1)


@idiom("groups")
def sorted_rows(s, x, c, i):
    by_column = c[torch.argsort(c[:, 2], descending=True, stable=True)]
    return torch.argsort(c[:, 1].long(), stable=True), *torch.sort(c[:, 1], stable=True), by_column, torch.topk(x, 3, 1).values


@idiom("groups")
def batch_loop(s, x, c, i):
    return (torch.stack([x[c[:, 0] == b].sum(0) for b in range(2)]),)


@idiom("groups")
def reductions(s, x, c, i):
    return x.sum(0), c.sum(), c.sum(1), (x > 0).sum(0), x.var(1), x.std(1, unbiased=False), x.norm(dim=1), c[:, 1:].prod(1)


@idiom("groups")
def quantifiers(s, x, c, i):
    return (
        (x > 2).any()[None],
        (x > -1).all()[None],
        (x > 0).any(0),
        (x > 0).all(1),
        *x.max(1),
        x.argmin(1),
        x.amax(1),
        c.amin(1),
    )


# --- numbers ---------------------------------------------------------------------------------------------------------------


@idiom("numbers")
def sizes_as_scalars(s, x, c, i):
    n = x.shape[0] + 1
    return x / n, x * n, x + n, c + n, c // n, x * float(n), x / n**0.5, torch.full((n,), n), torch.arange(n, n + 3)


@idiom("numbers")
def sizes_of_new_tensors(s, x, c, i):
    n = x.shape[0]
    return torch.zeros(n, 3), x.new_ones(n * 2, 2), torch.arange(n), torch.zeros_like(c), torch.cat([c.new_zeros(n, 1), c], 1)


@idiom("numbers")
def items(s, x, c, i):
    n = (i.sum() + 3).item()
    torch._check(n >= 0)
    return torch.zeros(n, 2), torch.arange(n), x * n, x / n, torch.full((n,), 1.5), x.sum(0, keepdim=True).expand(n, 8)


@idiom("numbers")
def items_of_a_row(s, x, c, i):
    ends = torch.cat([i.new_zeros(1), i])
    return torch.zeros(ends[-1].item() + 1, 2), x.new_zeros(ends[-1].tolist() + 2)


@idiom("numbers")
def one_size_twice(s, x, c, i):
    batch = (i.sum() + 2).item() + 1
    flat, cubes = torch.ones(batch, 1) * x.sum(0), torch.ones(batch, 1, 1) * x.sum(0)[:, None]
    return flat.unsqueeze(-1) + cubes[..., :1], flat + torch.zeros(batch, 8)


@idiom("numbers")
def infinite(s, x, c, i):
    n = x.shape[0]
    largest = torch.full((n, 8), float("-inf")).index_reduce(0, torch.zeros_like(i), x, "amax")
    return torch.full((n, 3), float("inf")), torch.full_like(x, float("-inf")), torch.full((2,), float("nan")), largest


@idiom("numbers")
def lists(s, x, c, i):
    a, b, d = (c.new_tensor([3, 4, 5]) + i.sum().int()).tolist()
    return x * a, torch.zeros(b // 2 + 1, 3), x + (a + d) * 0.5, x + b % 3


@idiom("numbers")
def python_numbers(s, x, c, i):
    batch = int(i.sum()) + 1
    return torch.zeros(batch, 8), x / float(batch), max(batch, 3) + x, torch.zeros(min(batch, 4)), len(x) + c


@idiom("numbers")
def rows_of_an_element(s, x, c, i):
    rows = x[torch.argsort(i, stable=True)]
    first = (i == 0).sum().item()
    torch._check(first >= 0)
    torch._check(first <= rows.shape[0])
    return rows[:first], rows[first:]


@idiom("numbers")
def batch_from_data(s, x, c, i):
    batch = int(torch.cat([c[:, 0], c.new_zeros(1)]).max()) + 1
    shape = (torch.cat([c[:, 1:], c.new_zeros(1, 3)]).max(0).values + 96).tolist()
    sites, *kernel_map = torch.ops.sparse_ops.strided_map(c, [3] * 3, [2] * 3, [1] * 3, shape=shape)
    pooled = torch.ops.sparse_ops.pool(x, *kernel_map, sites, "max")
    return sites, pooled, torch.ops.sparse_ops.to_dense(x, c, batch, [SIDE] * 3)


# --- layers ----------------------------------------------------------------------------------------------------------------


@idiom("layers")
def norms(s, x, c, i):
    normalized = F.normalize(x, dim=1)
    return s.batch_norm(x), s.layer_norm(x), s.group_norm(x), normalized, s.linear(x), F.layer_norm(x, (8,)), F.gelu(x)


@idiom("layers")
def attention(s, x, c, i):
    q = x.reshape(1, -1, 2, 4).transpose(1, 2)
    return (F.scaled_dot_product_attention(q, q, q),)


@idiom("layers")
def products(s, x, c, i):
    return torch.einsum("nc,nc->n", x, x), x @ x.T, torch.bmm(x[:, None], x[:, :, None])


@idiom("layers")
def bird_s_eye(s, x, c, i):
    b, k, y, _ = c.long().unbind(1)
    flat = torch.zeros(2, SIDE, SIDE, 8).index_put((b, k, y), x, accumulate=True).permute(0, 3, 1, 2)
    nearest, bilinear = F.interpolate(flat, scale_factor=2), F.interpolate(flat, size=(20, 17), mode="bilinear")
    corners = F.interpolate(flat, size=(20, 17), mode="bilinear", align_corners=True)
    return (
        s.conv(flat),
        s.up(flat),
        s.norm2d(flat),
        nearest,
        bilinear,
        corners,
        F.pad(flat, (1, 0, 2, 1)),
        F.max_pool2d(flat, 2),
    )


@idiom("layers")
def grid_samples(s, x, c, i):
    image = torch.arange(2 * 8 * 6 * 5.0).reshape(2, 8, 6, 5).sin()
    grid = torch.tanh(x[:, :6].reshape(1, -1, 3, 2)).expand(2, -1, -1, -1)
    border = F.grid_sample(image, grid * 1.4, padding_mode="border", align_corners=False)
    return F.grid_sample(image, grid, align_corners=False), F.grid_sample(image, grid, align_corners=True), border
