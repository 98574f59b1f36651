"""Reads assembly, of x86-64 (AT&T) and AArch64: its innermost loops, and what they store to an address that does not change.

An accumulator that LLVM left in memory shows as such a store: an innermost loop that adds products stores each time round what
should have stayed in a register. Spills show likewise. `loops` finds the natural loops of every function by dominators; what
an address is made of is followed through the loop in the order of the text, one step of abstract interpretation: a register
changes if it is written from anything that changes.
"""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Instruction:
    """`opcode` and its operands as they stand in the text, which split at the commas outside of all brackets."""

    opcode: str
    operands: tuple[str, ...]

    def __str__(self):
        return f"{self.opcode} {', '.join(self.operands)}"

    @classmethod
    def parse(cls, line: str) -> "Instruction":
        opcode, _, rest = re.sub(r"^\{e?vex\d?\}\s*", "", line.strip()).partition(" ")  # which encoding says nothing here
        return cls(opcode, tuple(part.strip() for part in re.split(r",(?![^\[({]*[\])}])", rest) if part.strip()))


# The names of parts of a general register of x86-64, to the whole, and what calls may change.
X86_NAMES = {f"r{i}{size}": f"r{i}" for i in range(8, 16) for size in ("", "d", "w", "b")}
X86_NAMES |= {
    f"{size}{name}": f"r{name}" for name in ["ax", "bx", "cx", "dx", "si", "di", "bp", "sp"] for size in ("r", "e", "")
}
X86_NAMES |= {"al": "rax", "bl": "rbx", "cl": "rcx", "dl": "rdx", "sil": "rsi", "dil": "rdi", "bpl": "rbp", "spl": "rsp"}
X86_CLOBBERED = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
ARM_CLOBBERED = tuple(f"x{i}" for i in range(19))


class X86:
    """AT&T syntax: sources first, the destination last."""

    comment = "#"
    vectors = re.compile(r"%([xyz]mm|k)\d")  # registers; nothing is followed through them
    fused = re.compile(r"vfn?m(add|sub)(132|213|231)ps|vdpbf16ps|vpdpbusd|vpmaddwd")  # vpmaddubsw goes with a vpmaddwd
    silent = re.compile(r"(v?u?comis|vtestp)[sd]|(cmp|test|bt)[bwlq]?|(vp|kor|k)test\w*|(prefetch|nop|push|j)\w*")
    flags = re.compile(r"cmov\w+|set\w+|adc\w?|sbb\w?")  # their results depend on flags

    @classmethod
    def registers(cls, operand: str) -> set[str]:
        """The general registers in an operand; a vector register in an address stands for itself, as it may change."""
        return {X86_NAMES.get(name, name) for name in re.findall(r"%(\w+)", operand)}

    @staticmethod
    def target(instruction: Instruction) -> str | None:
        """Where a jump goes to; "" for one to a computed address."""
        if not instruction.opcode.startswith("j"):
            return None
        return "" if instruction.operands[0].startswith("*") else instruction.operands[0]

    @staticmethod
    def falls_through(instruction: Instruction) -> bool:
        return instruction.opcode not in ("jmp", "ret", "retq", "ud2")

    @staticmethod
    def calls(instruction: Instruction) -> bool:
        return instruction.opcode.startswith("call")

    @classmethod
    def store(cls, instruction: Instruction) -> str | None:
        """The address that an instruction writes to."""
        operands = instruction.operands
        last = re.sub(r"\s*\{.*\}$", "", operands[-1]) if operands else ""
        if not re.fullmatch(r"[^%$(]*\([^)]*\)", last) or cls.silent.fullmatch(instruction.opcode):
            return None
        return None if cls.calls(instruction) or instruction.opcode.startswith(("lea", "mul", "div", "idiv")) else last

    @classmethod
    def is_vector(cls, instruction: Instruction) -> bool:
        """Whether a store is of a vector register."""
        return any(re.match(r"%[xyz]mm", operand) for operand in instruction.operands[:-1])

    @classmethod
    def written(cls, instruction: Instruction) -> set[str]:
        """The general registers that an instruction writes."""
        opcode, operands = instruction.opcode, instruction.operands
        if cls.calls(instruction):
            return set(X86_CLOBBERED)
        if re.fullmatch(r"(mul|div|idiv)[bwlq]?", opcode) or (opcode.startswith("imul") and len(operands) == 1):
            return {"rax", "rdx"}
        if opcode in ("cltq", "cwtl", "cqto", "cltd"):
            return {"rax"} if opcode in ("cltq", "cwtl") else {"rdx"}
        if cls.silent.fullmatch(opcode) or not operands:
            return set()
        writes = operands if opcode.startswith("xchg") else operands[-1:]
        return {X86_NAMES[name[1:]] for name in writes if name[1:] in X86_NAMES}

    @classmethod
    def sources(cls, instruction: Instruction) -> list[str] | None:
        """The operands that decide what is written; None: something else does as well."""
        opcode, operands = instruction.opcode, instruction.operands
        if cls.flags.fullmatch(opcode) or len(cls.written(instruction)) != 1 or not operands:
            return None
        if opcode.startswith("xor") and operands[0] == operands[-1]:
            return []
        fresh = opcode.startswith(("mov", "lea", "vmov", "vpextr", "kmov")) or len(operands) > 2
        return list(operands[:-1] if fresh else operands)

    @staticmethod
    def is_memory(operand: str) -> bool:
        return "(" in operand


class AArch64:
    """The destination first, the address of a store last."""

    comment = "//"
    vectors = re.compile(r"(?<![\w#])[qvdshb]\d")
    fused = re.compile(r"fml[as]|bf(dot|mmla)|[su]dot")
    silent = re.compile(r"f?cc?mpe?|cmn|ccmn|tst|prfu?m|nop|b(\.\w+)?|cbn?z|tbn?z|ret|br")
    flags = re.compile(r"cs\w+|cinc|cneg|cinv|adc|sbc")

    @classmethod
    def registers(cls, operand: str) -> set[str]:
        found = re.findall(r"(?<![\w#:.])(?:[xw](\d+)|(sp|wsp))\b", operand)
        return {"sp" if stack else f"x{number}" for number, stack in found}

    @staticmethod
    def target(instruction: Instruction) -> str | None:
        if instruction.opcode == "br":
            return ""
        jumps = re.fullmatch(r"b(\.\w+)?|cbn?z|tbn?z", instruction.opcode)
        return instruction.operands[-1] if jumps else None

    @staticmethod
    def falls_through(instruction: Instruction) -> bool:
        return instruction.opcode not in ("b", "br", "ret", "brk")

    @staticmethod
    def calls(instruction: Instruction) -> bool:
        return instruction.opcode in ("bl", "blr")

    @staticmethod
    def store(instruction: Instruction) -> str | None:
        if not re.fullmatch(r"st(r[bh]?|ur[bh]?|n?p|[1-4]\w*)(\.\w+)?", instruction.opcode):
            return None
        return next(operand for operand in instruction.operands if operand.startswith("["))

    @staticmethod
    def is_vector(instruction: Instruction) -> bool:
        return re.match(r"[qvdshb]\d|\{", instruction.operands[0]) is not None

    @classmethod
    def written(cls, instruction: Instruction) -> set[str]:
        opcode, operands = instruction.opcode, instruction.operands
        if cls.calls(instruction):
            return set(ARM_CLOBBERED)
        if cls.silent.fullmatch(opcode) or not operands:
            return set()
        place = next((i for i, operand in enumerate(operands) if operand.startswith("[")), None)
        updates = place is not None and (operands[place].endswith("!") or place + 1 < len(operands))
        base = cls.registers(operands[place].partition(",")[0]) if updates else set()
        if cls.store(instruction) is not None:
            return base
        results = operands[:2] if opcode in ("ldp", "ldpsw", "ldnp") else operands[:1]
        return base | {register for result in results for register in cls.registers(result)}

    @classmethod
    def sources(cls, instruction: Instruction) -> list[str] | None:
        opcode, operands = instruction.opcode, instruction.operands
        memory = [operand for operand in operands if cls.is_memory(operand)]
        updates = memory and (memory[0].endswith("!") or operands[-1] != memory[0])
        if cls.flags.fullmatch(opcode) or cls.calls(instruction) or updates:
            return None
        kept = opcode in ("movk", "bfi", "bfxil")  # they keep a part of what they write to
        return list(operands[0 if kept else 2 if opcode.startswith("ldp") else 1 :])

    @staticmethod
    def is_memory(operand: str) -> bool:
        return operand.startswith("[")


@dataclass(frozen=True)
class Loop:
    """An innermost loop of a function: its instructions in the order of the text.

    `function`: the global function that it belongs to, by name: of the body of a parallel loop, the one that refers to it.
    """

    function: str
    label: str
    instructions: list[Instruction]
    machine: type[X86] | type[AArch64]

    @property
    def multiply_adds(self) -> int:
        """Fused multiply-adds of vectors."""
        return sum(bool(self.machine.fused.fullmatch(i.opcode.partition(".")[0])) for i in self.instructions)

    @property
    def calls(self) -> list[Instruction]:
        return [i for i in self.instructions if self.machine.calls(i)]

    def fixed_stores(self) -> list[Instruction]:
        """The stores of vector registers whose address is the same each time round."""
        machine, found = self.machine, []
        changing = {register for i in self.instructions for register in machine.written(i)}
        stored = {machine.store(i) for i in self.instructions}

        def changes(operand):
            if machine.registers(operand) & changing or machine.vectors.search(operand):
                return True
            return machine.is_memory(operand) and operand in stored

        for i in self.instructions:
            address = machine.store(i)
            scatters = machine.vectors.search(address or "")
            if address and machine.is_vector(i) and not scatters and not machine.registers(address) & changing:
                found.append(i)
            sources = machine.sources(i)
            if sources is None or any(changes(operand) for operand in sources):
                changing |= machine.written(i)
            else:
                changing -= machine.written(i)
        return found


@dataclass
class _Block:
    labels: list[str]
    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


def loops(text: str, machine: type[X86] | type[AArch64]) -> list[Loop]:
    """The innermost loops of all functions in an assembly text."""
    functions = list(_functions(text, machine))
    local, owner = {name for name, _ in functions if name.startswith(".L")}, {}
    for function, lines in functions:
        for name in re.findall(r"\.L[\w.]+", "\n".join(lines)):
            if name in local and name != function:
                owner[name] = function

    def global_name(name):
        return global_name(owner[name]) if name in owner else name

    return [loop for name, lines in functions for loop in _innermost(global_name(name), _blocks(lines, machine), machine)]


def _functions(text: str, machine):
    """(name, lines without comments and directives) of each function."""
    names = set(re.findall(r"\.type\s+([^\s,]+),\s*[@%]function", text))
    name, lines = None, []
    for line in text.splitlines():
        line = line.partition(machine.comment)[0].replace("\t", " ").strip()
        label = line[:-1] if line.endswith(":") else None
        if label in names:
            if name:
                yield name, lines
            name, lines = label, []
        elif line.startswith(".size"):
            if name:
                yield name, lines
            name = None
        elif name and line and (label or not line.startswith(".")):
            lines.append(line)
    if name:
        yield name, lines


def _blocks(lines: list[str], machine) -> list[_Block]:
    """The basic blocks of a function and where each may go next."""
    blocks, open_ = [_Block([])], True
    for line in lines:
        if line.endswith(":"):
            if blocks[-1].instructions or not open_:
                blocks.append(_Block([]))
            blocks[-1].labels.append(line[:-1])
            open_ = True
            continue
        if not open_:
            blocks.append(_Block([]))
        instruction = Instruction.parse(line)
        blocks[-1].instructions.append(instruction)
        open_ = machine.target(instruction) is None and machine.falls_through(instruction)
    place = {label: i for i, block in enumerate(blocks) for label in block.labels}
    for i, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else None
        if (last is None or machine.falls_through(last)) and i + 1 < len(blocks):
            block.successors.append(i + 1)
        target = last and machine.target(last)
        if target in place:
            block.successors.append(place[target])
    return blocks


def _dominators(blocks: list[_Block]) -> tuple[list[int], list[list[int]]]:
    """The immediate dominator of each block (Cooper, Harvey and Kennedy), by a root before all that nothing leads to; and
    the predecessors. Blocks have numbers from 1 on, the root is 0."""
    successors = [[], *([s + 1 for s in block.successors] for block in blocks)]
    reached = {s for following in successors for s in following}
    successors[0] = [i for i in range(1, len(successors)) if i == 1 or i not in reached]
    order, seen, stack = [], {0}, [(0, iter(successors[0]))]
    while stack:
        node, rest = stack[-1]
        step = next((s for s in rest if s not in seen), None)
        if step is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(step)
            stack.append((step, iter(successors[step])))
    rank = {node: i for i, node in enumerate(order)}
    predecessors = [[] for _ in successors]
    for node in order:
        for s in successors[node]:
            predecessors[s].append(node)
    above = {0: 0}
    changed = True
    while changed:
        changed = False
        for node in reversed(order[:-1]):
            new = None
            for p in predecessors[node]:
                if p not in above:
                    continue
                a, b = p, p if new is None else new
                while a != b:
                    if rank[a] < rank[b]:
                        a = above[a]
                    else:
                        b = above[b]
                new = a
            if above.get(node) != new:
                above[node], changed = new, True
    return [above.get(i, 0) for i in range(len(successors))], predecessors


def _innermost(name: str, blocks: list[_Block], machine) -> list[Loop]:
    """The natural loops of a function in which no other one begins."""
    above, predecessors = _dominators(blocks)

    def dominates(a, b):
        while b not in (a, 0):
            b = above[b]
        return a == b

    bodies: dict[int, set[int]] = {}
    for head in range(1, len(above)):
        for tail in predecessors[head]:
            if dominates(head, tail):
                body, waiting = bodies.setdefault(head, {head}), [tail]
                while waiting:
                    node = waiting.pop()
                    if node not in body:
                        body.add(node)
                        waiting += predecessors[node]
    found = []
    for head, body in bodies.items():
        if body & bodies.keys() == {head}:
            instructions = [i for number in sorted(body) for i in blocks[number - 1].instructions]
            found.append(Loop(name, " ".join(blocks[head - 1].labels), instructions, machine))
    return found
