"""What `assembly` reads out of small pieces of text."""

import pytest

from tests.tir_kernels.assembly import X86, AArch64, Instruction, loops


def function(body: str, name: str = "f", mark: str = "@") -> str:
    return f"\t.type\t{name},{mark}function\n{name}:\n{body}\n\t.size\t{name}, .-{name}\n"


def only(text: str, machine=X86):
    (loop,) = loops(text, machine)
    return loop


def stores(body: str, machine=X86) -> list[str]:
    return [str(store) for store in only(function(body), machine).fixed_stores()]


def test_operands():
    assert Instruction.parse("\tvfmadd231ps\t-128(%r15,%rax,4), %zmm24, %zmm0 {%k1} {z}".replace("\t", " ")).operands == (
        "-128(%r15,%rax,4)",
        "%zmm24",
        "%zmm0 {%k1} {z}",
    )
    assert Instruction.parse("st1 { v0.4s, v1.4s }, [x8], #16").operands == ("{ v0.4s, v1.4s }", "[x8]", "#16")


ACCUMULATOR = """
.L1:
	vbroadcastss	(%r14,%rbx), %zmm24   # a comment
	vfmadd231ps	-128(%r15), %zmm24, %zmm0
	vmovups	%zmm0, 64(%rcx){step}
	vmovups	%zmm0, (%r15)
	addq	$4, %rbx
	addq	$256, %r15
	cmpq	$512, %rbx
	jne	.L1
	vmovups	%zmm1, (%rcx)
"""


def test_an_accumulator_in_memory():
    """The store beside it, to an address that moves, and the one after the loop are none."""
    assert stores(ACCUMULATOR.format(step="")) == ["vmovups %zmm0, 64(%rcx)"]
    assert stores(ACCUMULATOR.format(step="\n\tleaq\t64(%rcx,%rdx), %rcx")) == []
    assert only(function(ACCUMULATOR.format(step=""))).multiply_adds == 1


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("\tmovq\t40(%rsp), %rax\n\tvmovaps\t%ymm0, (%rax)", 1),  # a pointer that was spilled
        ("\tmovq\t40(%rsp), %rax\n\tvmovaps\t%ymm0, (%rax)\n\taddq\t$32, %rax\n\tmovq\t%rax, 40(%rsp)", 0),  # which moves
        ("\tmovq\t40(%rsp), %rax\n\taddq\t$32, %rax\n\tvmovaps\t%ymm0, (%rax)", 1),  # what is added is lost again
        ("\tleaq\t(%rdx,%rbx), %rax\n\tvmovaps\t%ymm0, (%rax)", 0),
        ("\tleaq\t(%rdx,%rcx,8), %rax\n\tvmovaps\t%ymm0, (%rax)", 1),
        ("\tmovslq\t(%rdx,%rbx,4), %rax\n\tvmovaps\t%ymm0, (%rdi,%rax)", 0),  # through an index
        ("\tvmovd\t%xmm1, %eax\n\tvmovaps\t%ymm0, (%rdi,%rax)", 0),
        ("\tvmovaps\t%ymm0, 32(%rsp)", 1),  # a spill
        ("\tvmovups\t%zmm0, 32(%rsp) {%k1}", 1),
        ("\tvextractf128\t$1, %ymm0, (%rdi)", 1),
        ("\tmovups\t%xmm0, (%rdi)", 1),
        ("\tvmovups\t(%rdi), %ymm0", 0),  # a load
        ("\tvaddps\t(%rdi), %ymm1, %ymm0", 0),
        ("\tmovq\t%rax, (%rdi)", 0),  # no vector
        ("\tvscatterdps\t%zmm0, (%rdi,%zmm1,4) {%k1}", 0),
        ("\tcmpq\t%rdi, %rsi\n\tvmovaps\t%ymm0, (%rsi)", 1),  # a comparison writes nothing
        ("\tcmovlq\t%rcx, %rsi\n\tvmovaps\t%ymm0, (%rsi)", 0),
        ("\tcallq\tf\n\tvmovaps\t%ymm0, (%rax)", 0),
    ],
)
def test_addresses_of_x86(body, count):
    assert len(stores(f".L1:\n{body}\n\tincq\t%rbx\n\tjne\t.L1")) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("\tstr\tq0, [sp, #16]", 1),
        ("\tstp\tq0, q1, [x9, #32]", 1),
        ("\tstr\tq0, [x9], #16", 0),  # the address moves on
        ("\tstr\tq0, [x9, #16]!", 0),
        ("\tstr\tq0, [x9, x8, lsl #4]", 0),
        ("\tst1\t{ v0.4s, v1.4s }, [x9]", 1),
        ("\tldr\tq0, [x9]", 0),
        ("\tstr\tx1, [x9]", 0),
        ("\tldr\tx1, [sp, #8]\n\tstr\tq0, [x1]", 1),
        ("\tldp\tx1, x2, [x8]\n\tstr\tq0, [x2]", 0),
        ("\tadd\tx1, x2, w3, sxtw\n\tstr\tq0, [x1]", 1),
        ("\tadd\tx1, x2, w8, sxtw\n\tstr\tq0, [x1]", 0),
        ("\tfmov\tw1, s0\n\tstr\tq0, [x9, x1]", 0),
        ("\tcmp\tx9, #3\n\tstr\tq0, [x9]", 1),
        ("\tcsel\tx9, x1, x2, ne\n\tstr\tq0, [x9]", 0),
    ],
)
def test_addresses_of_aarch64(body, count):
    text = f".L1:\n{body}\n\tfmla\tv0.4s, v1.4s, v2.s[0]\n\tadd\tx8, x8, #1\n\tcbnz\tx8, .L1"
    assert len(stores(text, AArch64)) == count
    assert only(function(text, mark="%"), AArch64).multiply_adds == 1


NESTED = """
	testq	%rdi, %rdi
	je	.L9
.L1:
	vmovaps	%ymm0, (%rsi)
.L2:
	vfmadd231ps	%ymm0, %ymm1, %ymm2
	testq	%rdx, %rdx
	js	.L8
.L3:
	incq	%rax
	jne	.L2
	incq	%rbx
	jne	.L1
.L9:
	retq
.L8:
	vdpbf16ps	%zmm0, %zmm1, %zmm2
	callq	g@PLT
	jmp	.L3
"""


def test_innermost_loop_with_a_part_elsewhere():
    """Only the inner of two loops counts, with the block that stands after the end of the function's main path."""
    loop = only(function(NESTED))
    assert (loop.label, loop.multiply_adds, len(loop.calls), loop.fixed_stores()) == (".L2", 2, 1, [])


def test_loops_of_several_functions():
    """Each belongs to the global function that leads to it; scalar products are none."""
    body = ".L{0}:\n\tvfmadd231{1}\t%ymm0, %ymm1, %ymm2\n\tdecq\t%rax\n\tjne\t.L{0}\n\tret"
    text = function("\tleaq\t.Llambda(%rip), %rsi\n" + body.format(1, "ps"), "kernel") + function(
        body.format(2, "ss"), ".Llambda"
    )
    assert [(loop.function, loop.multiply_adds) for loop in loops(text, X86)] == [("kernel", 1), ("kernel", 0)]
