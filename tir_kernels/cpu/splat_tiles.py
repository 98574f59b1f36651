"""Pictures of Gaussian splats (Zwicker et al., EWA Splatting, 2002), and what points see in such pictures.

    project    Gaussians -> their ellipses in a picture, and the tiles that these touch
    count      how many ellipses touch each tile
    deal       the ellipses that touch each tile, nearest first
    composite  ellipses of every tile, nearest first -> colour, what is seen of the background, depth; a tile is one thread's
    look_up    pictures -> weighted sums of colours at points, which are compared with the depth that a picture has there

A picture is a few planes of float32, [CHANNELS, side, side] with a side that is a multiple of `TILE`.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from ..vector_math import exp
from .isa import host_target

TILE = 16  # pixels along each side, and lanes of a row
BLOCK = 32  # ellipses between two looks at whether anything can still be seen through a tile
CHUNK = 1024  # Gaussians or points of a task
RED, GREEN, BLUE, SEEN, DEPTH, CHANNELS = range(6)
# Columns of an ellipse: centre; the matrix of its exponent; peak; the exponent's end, doubled; colour; depth; rows of pixels.
X, Y, XX, XY, YY, PEAK, REACH, COLOR, FAR, FIRST, END, COLUMNS = 0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 16
# Columns of a camera: rotation by rows (right, down, forward), position, focal length in pixels, side in pixels.
ROTATION, POSITION, FOCAL, SIDE, CAMERA = 0, 9, 12, 13, 14


@cache
def project(near: float, low_pass: float, largest_reach: float, least_alpha: float, beyond: float) -> tvm.tirx.PrimFunc:
    """PrimFunc (xyz [N, 3], axes [N, 9], opacity [N], color [N, 3], camera [CAMERA], ellipses [N, COLUMNS], tiles [N, 4]).

    axes: the columns of a matrix whose product with its transpose is the covariance, stored by rows. tiles: int32 (first, end)
    of columns and of rows of tiles, which are equal where nothing is to be drawn. All others are float32.
    """

    @script.prim_func(s_tir=True)
    def kernel(
        xyz_: T.handle,
        axes_: T.handle,
        opacity_: T.handle,
        color_: T.handle,
        camera_: T.handle,
        ellipses_: T.handle,
        tiles_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "project"})
        n = T.int64()
        xyz = match_buffer(xyz_, (n, 3), "float32")
        axes = match_buffer(axes_, (n, 9), "float32")
        opacity = match_buffer(opacity_, (n,), "float32")
        color = match_buffer(color_, (n, 3), "float32")
        camera = match_buffer(camera_, (CAMERA,), "float32")
        ellipses = match_buffer(ellipses_, (n, COLUMNS), "float32")
        tiles = match_buffer(tiles_, (n, 4), "int32")
        for chunk in T.parallel((n + CHUNK - 1) // CHUNK):
            seen = T.alloc_buffer((3,), "float32")
            spread = T.alloc_buffer((6,), "float32")
            slope = T.alloc_buffer((2,), "float32")
            for i in range(T.min(T.int64(CHUNK), n - chunk * CHUNK)):
                row: T.let = chunk * CHUNK + i
                for k in T.unroll(3):
                    seen[k] = (
                        camera[3 * k] * (xyz[row, 0] - camera[POSITION])
                        + camera[3 * k + 1] * (xyz[row, 1] - camera[POSITION + 1])
                        + camera[3 * k + 2] * (xyz[row, 2] - camera[POSITION + 2])
                    )
                depth: T.let = T.max(seen[2], T.float32(near))
                scale: T.let = camera[FOCAL] / depth
                limit: T.let = T.float32(beyond * 0.5) * camera[SIDE] / camera[FOCAL]
                for k in T.unroll(2):
                    slope[k] = T.max(-limit, T.min(limit, seen[k] / depth))
                    for axis in T.unroll(3):
                        spread[3 * k + axis] = scale * (
                            (camera[3 * k] - slope[k] * camera[6]) * axes[row, axis]
                            + (camera[3 * k + 1] - slope[k] * camera[7]) * axes[row, 3 + axis]
                            + (camera[3 * k + 2] - slope[k] * camera[8]) * axes[row, 6 + axis]
                        )
                own_xx: T.let = spread[0] * spread[0] + spread[1] * spread[1] + spread[2] * spread[2]
                own_yy: T.let = spread[3] * spread[3] + spread[4] * spread[4] + spread[5] * spread[5]
                xy: T.let = spread[0] * spread[3] + spread[1] * spread[4] + spread[2] * spread[5]
                # As the square of a cross product: the difference of two products would cancel for thin ellipses.
                cross_x: T.let = spread[1] * spread[5] - spread[2] * spread[4]
                cross_y: T.let = spread[2] * spread[3] - spread[0] * spread[5]
                cross_z: T.let = spread[0] * spread[4] - spread[1] * spread[3]
                area: T.let = cross_x * cross_x + cross_y * cross_y + cross_z * cross_z
                xx: T.let = own_xx + T.float32(low_pass)
                yy: T.let = own_yy + T.float32(low_pass)
                whole: T.let = area + T.float32(low_pass) * (own_xx + own_yy) + T.float32(low_pass * low_pass)
                peak: T.let = opacity[row] * T.sqrt(area / whole)
                reach: T.let = T.min(
                    T.float32(2) * T.log(T.max(peak, T.float32(1e-30)) * T.float32(1 / least_alpha)), T.float32(largest_reach)
                )
                center_x: T.let = T.float32(0.5) * camera[SIDE] + camera[FOCAL] * seen[0] / depth
                center_y: T.let = T.float32(0.5) * camera[SIDE] + camera[FOCAL] * seen[1] / depth
                ellipses[row, X] = center_x
                ellipses[row, Y] = center_y
                ellipses[row, XX] = yy / whole
                ellipses[row, XY] = -xy / whole
                ellipses[row, YY] = xx / whole
                ellipses[row, PEAK] = peak
                ellipses[row, REACH] = reach
                for k in T.unroll(3):
                    ellipses[row, COLOR + k] = color[row, k]
                ellipses[row, FAR] = seen[2]
                positive: T.let = T.max(reach, T.float32(0))
                wide: T.let = T.sqrt(positive * xx)
                high: T.let = T.sqrt(positive * yy)
                left: T.let = T.ceil(T.max(T.float32(0), T.min(camera[SIDE], center_x - wide - T.float32(0.5))))
                right: T.let = T.floor(T.max(T.float32(0), T.min(camera[SIDE], center_x + wide + T.float32(0.5))))
                top: T.let = T.ceil(T.max(T.float32(0), T.min(camera[SIDE], center_y - high - T.float32(0.5))))
                bottom: T.let = T.floor(T.max(T.float32(0), T.min(camera[SIDE], center_y + high + T.float32(0.5))))
                ellipses[row, FIRST] = top
                ellipses[row, END] = bottom
                drawn: T.let = T.And(T.And(seen[2] >= T.float32(near), reach > T.float32(0)), T.And(right > left, bottom > top))
                tiles[row, 0] = T.if_then_else(drawn, T.Cast("int32", left) // TILE, 0)
                tiles[row, 1] = T.if_then_else(drawn, (T.Cast("int32", right) + (TILE - 1)) // TILE, 0)
                tiles[row, 2] = T.if_then_else(drawn, T.Cast("int32", top) // TILE, 0)
                tiles[row, 3] = T.if_then_else(drawn, (T.Cast("int32", bottom) + (TILE - 1)) // TILE, 0)

    return kernel


@cache
def count() -> tvm.tirx.PrimFunc:
    """PrimFunc (tiles int32 [N, 4], across int32 [1], counts int32 [tiles]), with as many tiles in a row as `across` says."""

    @script.prim_func(s_tir=True)
    def kernel(tiles_: T.handle, across_: T.handle, counts_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "count"})
        n, all_ = T.int64(), T.int64()
        tiles = match_buffer(tiles_, (n, 4), "int32")
        across = match_buffer(across_, (1,), "int32")
        counts = match_buffer(counts_, (all_,), "int32")
        for tile in range(all_):
            counts[tile] = T.int32(0)
        for row in range(n):
            for y in range(tiles[row, 3] - tiles[row, 2]):
                for x in range(tiles[row, 1] - tiles[row, 0]):
                    counts[(tiles[row, 2] + y) * across[0] + tiles[row, 0] + x] += 1

    return kernel


@cache
def deal() -> tvm.tirx.PrimFunc:
    """PrimFunc (order int32 [M], tiles int32 [N, 4], across int32 [1], next int32 [tiles], members int32 [P]).

    next: where the members of each tile begin; afterwards where they end.
    """

    @script.prim_func(s_tir=True)
    def kernel(order_: T.handle, tiles_: T.handle, across_: T.handle, next_: T.handle, members_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "deal"})
        m, n, all_, pairs = T.int64(), T.int64(), T.int64(), T.int64()
        order = match_buffer(order_, (m,), "int32")
        tiles = match_buffer(tiles_, (n, 4), "int32")
        across = match_buffer(across_, (1,), "int32")
        place = match_buffer(next_, (all_,), "int32")
        members = match_buffer(members_, (pairs,), "int32")
        for i in range(m):
            row: T.let = T.Cast("int64", order[i])
            for y in range(tiles[row, 3] - tiles[row, 2]):
                for x in range(tiles[row, 1] - tiles[row, 0]):
                    tile: T.let = (tiles[row, 2] + y) * across[0] + tiles[row, 0] + x
                    members[place[tile]] = order[i]
                    place[tile] += 1

    return kernel


@cache
def composite(largest_alpha: float, opaque: float) -> tvm.tirx.PrimFunc:
    """PrimFunc (ellipses [N, COLUMNS], members int32 [P], starts int32 [tiles + 1], picture [CHANNELS, side, side]).

    members[starts[t] : starts[t + 1]]: the ellipses of tile t, by rows of tiles, nearest first. Colours are sums over what is
    seen of each Gaussian, not divided by it. The depth is that of the one behind which less than half is seen of what is
    further back, a median, which does not mind what shines through; 0 where there is none.
    """

    @inline
    def clear(sums):
        for channel in range(CHANNELS):
            for y in range(TILE):
                for lane in T.vectorized(TILE):
                    sums[channel, y, lane] = T.Select(channel == SEEN, T.float32(1), T.float32(0))

    @inline
    def draw(ellipses, sums, item, top, left):
        first: T.let = T.max(T.Cast("int64", ellipses[item, FIRST]) - top, T.int64(0))
        end: T.let = T.min(T.Cast("int64", ellipses[item, END]) - top, T.int64(TILE))
        for step in range(T.max(end - first, T.int64(0))):
            y: T.let = first + step
            down: T.let = T.Cast("float32", top + y) + T.float32(0.5) - ellipses[item, Y]
            for lane in T.vectorized(TILE):
                right = T.bind(T.Cast("float32", left + lane) + T.float32(0.5) - ellipses[item, X])
                square = T.bind(
                    ellipses[item, XX] * right * right
                    + T.float32(2) * ellipses[item, XY] * right * down
                    + ellipses[item, YY] * down * down
                )
                full = T.bind(T.min(ellipses[item, PEAK] * exp(T.float32(-0.5) * square), T.float32(largest_alpha)))
                alpha = T.bind(T.Select(square <= ellipses[item, REACH], full, T.float32(0)))
                before = T.bind(sums[SEEN, y, lane])
                weight = T.bind(alpha * before)
                for channel in T.unroll(3):
                    sums[channel, y, lane] = sums[channel, y, lane] + weight * ellipses[item, COLOR + channel]
                after = T.bind(before - weight)
                depth = T.bind(sums[DEPTH, y, lane])
                passed = T.bind(T.Select(after < T.float32(0.5), ellipses[item, FAR], depth))
                sums[DEPTH, y, lane] = T.Select(before >= T.float32(0.5), passed, depth)
                sums[SEEN, y, lane] = after

    @script.prim_func(s_tir=True)
    def kernel(ellipses_: T.handle, members_: T.handle, starts_: T.handle, picture_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "composite"})
        n, pairs, ends, side = T.int64(), T.int64(), T.int64(), T.int64()
        ellipses = match_buffer(ellipses_, (n, COLUMNS), "float32")
        members = match_buffer(members_, (pairs,), "int32")
        starts = match_buffer(starts_, (ends,), "int32")
        picture = match_buffer(picture_, (CHANNELS, side, side), "float32")
        across: T.let = side // TILE
        for tile in T.parallel(ends - 1):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # tiles in the middle have more to do
            top: T.let = tile // across * TILE
            left: T.let = tile % across * TILE
            sums = T.alloc_buffer((CHANNELS, TILE, TILE), "float32")  # rows of a picture may share the sets of a cache
            most = T.alloc_buffer((1,), "float32")
            clear(sums)
            most[0] = T.float32(1)
            begin: T.let = T.Cast("int64", starts[tile])
            count: T.let = T.Cast("int64", starts[tile + 1]) - begin
            for block in range((count + BLOCK - 1) // BLOCK):
                if most[0] > T.float32(opaque):
                    for i in range(T.min(T.int64(BLOCK), count - block * BLOCK)):
                        draw(ellipses, sums, T.Cast("int64", members[begin + block * BLOCK + i]), top, left)
                    most[0] = T.float32(0)
                    for y in range(TILE):
                        for lane in range(TILE):
                            most[0] = T.max(most[0], sums[SEEN, y, lane])
            for channel in range(CHANNELS):
                for y in range(TILE):
                    for lane in T.vectorized(TILE):
                        picture[channel, top + y, left + lane] = sums[channel, y, lane]

    return kernel


@cache
def look_up(least_cosine: float) -> tvm.tirx.PrimFunc:
    """PrimFunc (points [M, 3], normals [M, 3], camera [CAMERA], picture [CHANNELS, side, side], slack [1], sums [M, 4]).

    Adds to sums the colour that a picture has where a point is seen, and a weight: bilinear, over those of four pixels that
    have a depth, within `slack` of the point's, times the square of the cosine between its normal and the ray, which is at
    least `least_cosine`.
    """

    @inline
    def add_pixel(picture, sums, row, x, y, weight, depth, slack, side):
        if T.And(T.And(x >= 0, x < side), T.And(y >= 0, y < side)):
            if picture[DEPTH, y, x] > T.float32(0):
                if T.abs(picture[DEPTH, y, x] - depth) < slack:
                    cover: T.let = T.float32(1) - picture[SEEN, y, x]
                    sums[row, 0] = sums[row, 0] + weight * picture[RED, y, x] / cover
                    sums[row, 1] = sums[row, 1] + weight * picture[GREEN, y, x] / cover
                    sums[row, 2] = sums[row, 2] + weight * picture[BLUE, y, x] / cover
                    sums[row, 3] = sums[row, 3] + weight

    @script.prim_func(s_tir=True)
    def kernel(points_: T.handle, normals_: T.handle, camera_: T.handle, picture_: T.handle, slack_: T.handle, sums_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "look_up"})
        m, side = T.int64(), T.int64()
        points = match_buffer(points_, (m, 3), "float32")
        normals = match_buffer(normals_, (m, 3), "float32")
        camera = match_buffer(camera_, (CAMERA,), "float32")
        picture = match_buffer(picture_, (CHANNELS, side, side), "float32")
        slack = match_buffer(slack_, (1,), "float32")
        sums = match_buffer(sums_, (m, 4), "float32")
        for chunk in T.parallel((m + CHUNK - 1) // CHUNK):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)
            offset = T.alloc_buffer((3,), "float32")
            seen = T.alloc_buffer((3,), "float32")
            for i in range(T.min(T.int64(CHUNK), m - chunk * CHUNK)):
                row: T.let = chunk * CHUNK + i
                for k in T.unroll(3):
                    offset[k] = points[row, k] - camera[POSITION + k]
                facing: T.let = -(offset[0] * normals[row, 0] + offset[1] * normals[row, 1] + offset[2] * normals[row, 2])
                distance: T.let = T.sqrt(offset[0] * offset[0] + offset[1] * offset[1] + offset[2] * offset[2])
                if facing > T.float32(least_cosine) * distance:
                    for k in T.unroll(3):
                        seen[k] = camera[3 * k] * offset[0] + camera[3 * k + 1] * offset[1] + camera[3 * k + 2] * offset[2]
                    if seen[2] > T.float32(0):
                        cosine: T.let = facing / distance
                        strength: T.let = cosine * cosine
                        across: T.let = T.float32(0.5) * camera[SIDE] + camera[FOCAL] * seen[0] / seen[2] - T.float32(0.5)
                        down: T.let = T.float32(0.5) * camera[SIDE] + camera[FOCAL] * seen[1] / seen[2] - T.float32(0.5)
                        if T.And(T.abs(across) < T.float32(1e6), T.abs(down) < T.float32(1e6)):
                            x: T.let = T.Cast("int64", T.floor(across))
                            y: T.let = T.Cast("int64", T.floor(down))
                            right: T.let = across - T.floor(across)
                            below: T.let = down - T.floor(down)
                            up: T.let = strength * (T.float32(1) - below)
                            low: T.let = strength * below
                            add_pixel(picture, sums, row, x, y, up * (T.float32(1) - right), seen[2], slack[0], side)
                            add_pixel(picture, sums, row, x + 1, y, up * right, seen[2], slack[0], side)
                            add_pixel(picture, sums, row, x, y + 1, low * (T.float32(1) - right), seen[2], slack[0], side)
                            add_pixel(picture, sums, row, x + 1, y + 1, low * right, seen[2], slack[0], side)

    return kernel


@cache
def compiled(kernel: tvm.tirx.PrimFunc, target: tvm.target.Target | None = None) -> tvm.runtime.Module:
    """A kernel of this file for `target`, by default the CPU that this process runs on."""
    return tvm.compile(tvm.IRModule({"main": kernel}), target=target or host_target())["main"]
