"""The pairs of a kernel map in the making, see `layout.PairsByBlock`: cursors that advance on hits, and vectors of hits."""

from dataclasses import dataclass

import tvm
from tvm.script import tirx as T

from ..buffers import match_buffer, named
from ..script import inline
from .isa import Isa


@dataclass(frozen=True, eq=False)
class Pairs:
    """The buffers of a map, as `layout.PairsByBlock` says; `columns` is the second dimension of `segment`."""

    pair_in: object
    pair_out: object
    segment: object
    columns: object

    @property
    def blocks(self):
        return self.pair_in.shape[0]

    @property
    def block_rows(self):
        """Output rows of a block."""
        return self.pair_in.shape[1] // (self.columns - 1)

    @inline
    def start(self, block, tap, cursor):
        """The pairs of a tap start at cursor[0]; those of the tap after the last end there."""
        self.segment[block, tap] = T.Cast("int32", cursor[0])

    @inline
    def add(self, block, cursor, row, i):
        """Note that output row `i` of a block meets input row `row`, if that is not negative."""
        # write always, advance on a hit: no branch to mispredict
        self.pair_in[block, cursor[0]] = row
        self.pair_out[block, cursor[0]] = T.Cast("int32", i)
        cursor[0] += T.Cast("int64", row >= 0)


def match_pairs(pair_in, pair_out, segment, columns, prefix: str = "") -> Pairs:
    """The `Pairs` in three of a kernel's parameters, for `T.meta_var`; `prefix`: of their names."""
    blocks, size = tvm.tirx.Var(f"{prefix}blocks", "int64"), tvm.tirx.Var(f"{prefix}size", "int64")
    return Pairs(
        named(f"{prefix}pair_in", match_buffer(pair_in, (blocks, size), "int32")),
        named(f"{prefix}pair_out", match_buffer(pair_out, (blocks, size), "int32")),
        named(f"{prefix}segment", match_buffer(segment, (blocks, columns), "int32")),
        columns,
    )


# The vectors of `Packer`: keep what is not negative, side by side. LLVM has the instruction of AVX-512 behind a name for all
# targets; for AVX2 it makes a permutation by a table of such a build-up lane by lane. Both are right on any target.
COMPRESS_16 = """
declare <16 x i32> @llvm.experimental.vector.compress.v16i32(<16 x i32>, <16 x i1>, <16 x i32>) #0
define <16 x i32> @keep_lanes_16(<16 x i32> %x, <16 x i1> %hit) #1 {
  %r = call <16 x i32> @llvm.experimental.vector.compress.v16i32(<16 x i32> %x, <16 x i1> %hit, <16 x i32> poison)
  ret <16 x i32> %r
}
"""
PACK = """
declare i{lanes} @llvm.ctpop.i{lanes}(i{lanes}) #0
define i32 @pack_pairs_{lanes}_{step}(ptr %near, i32 %rows, ptr %pair_in, ptr %pair_out) #1 {{
entry:
  %ends1 = insertelement <{lanes} x i32> poison, i32 %rows, i64 0
  %ends = shufflevector <{lanes} x i32> %ends1, <{lanes} x i32> poison, <{lanes} x i32> zeroinitializer
  %any = icmp sgt i32 %rows, 0
  br i1 %any, label %chunk, label %exit
chunk:
  %first = phi i32 [ 0, %entry ], [ %next, %chunk ]
  %cursor = phi i32 [ 0, %entry ], [ %after, %chunk ]
  %lane = phi <{lanes} x i32> [ <{iota}>, %entry ], [ %lanes_after, %chunk ]
  %entries = mul nuw i32 %first, {step}
  %place = zext i32 %entries to i64
  %from = getelementptr i32, ptr %near, i64 %place
  %all = load <{wide} x i32>, ptr %from, align 4
  %in = shufflevector <{wide} x i32> %all, <{wide} x i32> poison, <{lanes} x i32> <{steps}>
  %inside = icmp slt <{lanes} x i32> %lane, %ends
  %there = icmp sgt <{lanes} x i32> %in, splat (i32 -1)
  %hit = and <{lanes} x i1> %inside, %there
  %kept_in = call <{lanes} x i32> @keep_lanes_{lanes}(<{lanes} x i32> %in, <{lanes} x i1> %hit)
  %kept_out = call <{lanes} x i32> @keep_lanes_{lanes}(<{lanes} x i32> %lane, <{lanes} x i1> %hit)
  %to = zext i32 %cursor to i64
  %to_in = getelementptr i32, ptr %pair_in, i64 %to
  %to_out = getelementptr i32, ptr %pair_out, i64 %to
  store <{lanes} x i32> %kept_in, ptr %to_in, align 4
  store <{lanes} x i32> %kept_out, ptr %to_out, align 4
  %bits = bitcast <{lanes} x i1> %hit to i{lanes}
  %hits = call i{lanes} @llvm.ctpop.i{lanes}(i{lanes} %bits)
  %count = zext i{lanes} %hits to i32
  %after = add i32 %cursor, %count
  %next = add nuw i32 %first, {lanes}
  %lanes_after = add <{lanes} x i32> %lane, splat (i32 {lanes})
  %more = icmp slt i32 %next, %rows
  br i1 %more, label %chunk, label %exit
exit:
  %r = phi i32 [ 0, %entry ], [ %after, %chunk ]
  ret i32 %r
}}
attributes #0 = {{ nounwind willreturn memory(none) }}
attributes #1 = {{ alwaysinline nounwind willreturn }}
"""


def compress_8() -> str:
    """`keep_lanes_8`: the lanes that a mask of 8 bits keeps, from a table."""
    table = [[lane for lane in range(8) if mask >> lane & 1] for mask in range(256)]
    rows = ", ".join(f"<8 x i8> <{', '.join(f'i8 {lane}' for lane in (kept + [0] * 8)[:8])}>" for kept in table)
    text = f"""
@kept_lanes_8 = linkonce_odr hidden constant [256 x <8 x i8>] [{rows}], align 8
define <8 x i32> @keep_lanes_8(<8 x i32> %x, <8 x i1> %hit) #1 {{
  %bits = bitcast <8 x i1> %hit to i8
  %place = zext i8 %bits to i64
  %row = getelementptr <8 x i8>, ptr @kept_lanes_8, i64 %place
  %narrow = load <8 x i8>, ptr %row, align 8
  %from = zext <8 x i8> %narrow to <8 x i32>
"""
    before = "poison"
    for lane in range(8):
        text += f"""  %i{lane} = extractelement <8 x i32> %from, i64 {lane}
  %e{lane} = extractelement <8 x i32> %x, i32 %i{lane}
  %r{lane} = insertelement <8 x i32> {before}, i32 %e{lane}, i64 {lane}
"""
        before = f"%r{lane}"
    return text + f"  ret <8 x i32> {before}\n}}\n"


@inline
def _pack_one_by_one(pairs, block, cursor, near, place, count, step):
    for i in range(count):
        row: T.let = near[step * i + place]
        pairs.add(block, cursor, row, i)


@inline
def _pack_vectors(pairs, block, cursor, near, place, count, step, lanes):
    cursor[0] += T.Cast(
        "int64",
        T.call_extern(
            "int32",
            f"pack_pairs_{lanes}_{step}",
            T.address_of(near[place]),
            T.Cast("int32", count),
            T.address_of(pairs.pair_in[block, cursor[0]]),
            T.address_of(pairs.pair_out[block, cursor[0]]),
        ),
    )


@dataclass(frozen=True, eq=False)
class Packer:
    """Packs the rows that output rows met at one tap: from scratch of `step` entries an output row, of which one is that tap's.

    With vectors of 8 or 16 lanes it compresses as many rows at a time; a block has room for that, see `PairsByBlock`.
    """

    lanes: int
    step: int

    @classmethod
    def of(cls, isa: Isa, step: int) -> "Packer":
        return cls(isa.lanes if isa.lanes in (8, 16) else 1, step)

    @property
    def llvm_ir(self) -> str | None:
        lanes, step = self.lanes, self.step
        if lanes == 1:
            return None
        return (COMPRESS_16 if lanes == 16 else compress_8()) + PACK.format(
            lanes=lanes,
            step=step,
            wide=lanes * step,
            steps=", ".join(f"i32 {step * lane}" for lane in range(lanes)),
            iota=", ".join(f"i32 {lane}" for lane in range(lanes)),
        )

    def room(self, block_rows):
        """Entries of the scratch: whole vectors may be read, from any of the taps on."""
        return (block_rows + 16) * self.step

    def pack(self, pairs, block, cursor, near, place, count):
        """Emit: the pairs of one tap, whose entries are near[step * i + place] of output row i, for `count` rows."""
        if self.lanes == 1:
            _pack_one_by_one(pairs, block, cursor, near, place, count, self.step)
        else:
            _pack_vectors(pairs, block, cursor, near, place, count, self.step, self.lanes)
