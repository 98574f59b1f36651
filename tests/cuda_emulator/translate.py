"""CUDA C++ as TVM generates it, rewritten for the host's compiler: one kernel a file.

What CUDA's headers have stands in runtime/device.h and its neighbours. Rewritten are declarations of shared memory, inline
assembly (instruction by instruction, `INSTRUCTIONS`), and the beginning of the kernel. Assembly that is not known becomes a
call that ends the launch by NotImplementedError, as a helper may stand in the source and never be called.
"""

import functools
import re

KERNEL = re.compile(
    r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(?:__cluster_dims__\([^)]*\) )?(\w+)\(([^)]*)\)'
)
SHARED = re.compile(
    r"(extern )?__shared__ (?:(?:alignas|__align__)\((\d+)\) )?((?:unsigned |signed )?[\w:]+(?: long)?) (\w+)((?:\[[^\]]*\])*);"
)
# The operands of an instruction of `mma` by its type: how many values of its k a register holds.
MMA_TYPES = {"f16": ("MMA_F16", 2), "bf16": ("MMA_BF16", 2), "tf32": ("MMA_TF32", 1), "s8": ("MMA_S8", 4)}


def kernel_names(source: str) -> list[str]:
    """The kernels that a source defines."""
    return list(dict.fromkeys(match[1] for match in KERNEL.finditer(source)))


def translate(source: str, kernel: str) -> str:
    """C++ of `kernel` alone, with all helpers of the source, and `emulator_entry(void** arguments)` that calls it."""
    if "nvcuda::wmma" in source:
        raise NotImplementedError(f"kernel {kernel}: the CUDA emulator does not know nvcuda::wmma, only mma.sync")
    helpers, definitions = _cut(source)
    if kernel not in definitions:
        raise ValueError(f"kernel {kernel}: not in the source, which has {kernel_names(source)}")
    definition, parameters = definitions[kernel]
    ids = iter(range(1 << 20))
    text = helpers + "\n" + _assembly(definition)
    text = text.replace("__restrict__ ", "").replace("tvm_builtin_cuda_cta_sync();", "__syncthreads();")
    text = SHARED.sub(lambda match: _shared(match, ids), text)
    values = ", ".join(f"*static_cast<{kind}*>(arguments[{i}])" for i, kind in enumerate(parameters))
    return f'#include "device.h"\n{text}\nextern "C" PLAIN void emulator_entry(void** arguments) {{ {kernel}({values}); }}\n'


@functools.lru_cache(maxsize=4)  # all kernels of a source ask for it
def _cut(source: str) -> tuple[str, dict[str, tuple[str, list[str]]]]:
    """What stands before and between kernels, translated, without TVM's own headers; by their names kernels and the types of
    their parameters."""
    headers = re.search(r"#define ushort unsigned short\n#endif\n", source)
    rest = source[headers.end() :] if headers else source
    helpers, definitions = [], {}
    while match := KERNEL.search(rest):
        helpers.append(rest[: match.start()])
        after = rest[match.end() :]
        if after.lstrip().startswith(";"):
            rest = after.lstrip()[1:]
            continue
        end = _closing(after, after.index("{")) + 1
        begin = after.index("{") + 1
        indices = "".join(
            f"const uint3 {name} = emulator_{call}();"
            for name, call in (
                ("threadIdx", "thread_index"),
                ("blockIdx", "block_index"),
                ("blockDim", "block_dim"),
                ("gridDim", "grid_dim"),
            )
        )
        definition = f"static __attribute__((noinline)) void {match[1]}({match[2]}) {{ {indices}{after[begin:end]}"
        kinds = [p.replace("__restrict__", "").strip() for p in match[2].split(",") if p.strip()]
        definitions[match[1]] = definition, [re.sub(r"\s*\w+$", "", kind) for kind in kinds]
        rest = after[end:]
    return _assembly("".join([*helpers, rest])), definitions


STRING = r'"(?:[^"\\]|\\.)*"'
BRACKETS = {"{": re.compile(STRING + r"|[{}]", re.DOTALL), "(": re.compile(STRING + r"|[()]", re.DOTALL)}


def _closing(text: str, opening: int) -> int:
    """The place of the bracket that closes the one at `opening`; strings are stepped over."""
    depth, open_ = 0, text[opening]
    for match in BRACKETS[open_].finditer(text, opening):
        if match[0] == open_:
            depth += 1
        elif not match[0].startswith('"'):
            depth -= 1
            if depth == 0:
                return match.start()
    raise ValueError(f"unbalanced {open_!r} in generated source: {text[opening : opening + 80]!r}")


def _shared(match: re.Match, ids) -> str:
    external, alignment, kind, name, dims = match.groups()
    if external:
        return f"{kind}* const {name} = static_cast<{kind}*>(emulator_shared_dynamic());"
    return (
        f"{kind} (&{name}){dims} = *static_cast<{kind} (*){dims}>"
        f"(emulator_shared_static({next(ids)}, sizeof({kind}{dims}), {alignment or f'alignof({kind})'}));"
    )


# ---- Inline assembly


def _assembly(text: str) -> str:
    """Every `asm volatile(...)` becomes C++."""
    out, place = [], 0
    for match in re.finditer(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(", text):
        if match.start() < place:
            continue
        opening = match.end() - 1
        closing = _closing(text, opening)
        out.append(text[place : match.start()])
        out.append(_statement(text[opening + 1 : closing]))
        place = closing + 1
        if text[place : place + 1] == ";":
            place += 1
    return "".join([*out, text[place:]])


def _split(text: str, separator: str) -> list[str]:
    """Split where the separator is in no bracket and no string."""
    parts, depth, last, i = [], 0, 0, 0
    while i < len(text):
        c = text[i]
        if c == '"':
            i += 1
            while text[i] != '"':
                i += 2 if text[i] == "\\" else 1
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(text[last:i])
            last = i + 1
        i += 1
    return [*parts, text[last:]]


def _statement(inside: str) -> str:
    """C++ of one asm statement: its template, outputs and inputs."""
    template, *lists = _split(inside.replace("::", ": :"), ":")
    code = "".join(part.encode().decode("unicode_escape") for part in re.findall(r'"((?:[^"\\]|\\.)*)"', template))
    operands = []
    for group in lists[:2]:
        for operand in _split(group, ","):
            if operand.strip():
                operands.append(re.match(r'\s*(?:\[\w+\]\s*)?"[^"]*"\s*\((.*)\)\s*$', operand, re.S)[1])

    def value(name: str) -> str:
        return re.sub(r"%(\d+)", lambda m: f"({operands[int(m[1])]})", name.strip())

    lines = []
    code = code.replace("%%", "%").strip()
    code = re.sub(r"//[^\n]*", "", code)
    # A scope for predicates: the braces around whole statements, not those around registers.
    if code.startswith("{") and code.endswith("}") and ";" in code:
        code = code[1:-1]
    for instruction in code.split(";"):
        instruction = " ".join(instruction.split())
        if not instruction:
            continue
        lines.append(_instruction(instruction, value))
    return "{ " + " ".join(lines) + " }"


def _instruction(text: str, value) -> str:
    if match := re.match(r"\.reg \.pred (.*)$", text):
        return "".join(f"bool {name.strip().lstrip('%')} = false;" for name in match[1].split(","))
    if match := re.match(r"@(!?)%?(\w+) (.*)$", text):
        return f"if ({match[1]}{match[2]}) {{ {_instruction(match[3], value)} }}"
    name, _, rest = text.partition(" ")
    arguments = [value(argument) for argument in _operands(rest)]
    for pattern, make in INSTRUCTIONS:
        if match := re.fullmatch(pattern, name):
            made = make(match, arguments)
            if made is not None:
                return made
    return f'emulator_not_implemented("{name}");'


def _operands(text: str) -> list[str]:
    """The operands of an instruction, registers in braces one by one."""
    return [
        part.strip()
        for part in text.replace("{", "").replace("}", "").replace("[", "").replace("]", "").split(",")
        if part.strip()
    ]


def _mma(match: re.Match, arguments: list[str]) -> str | None:
    k, result, a, b, _ = match.groups()
    if a != b or a not in MMA_TYPES or result != ("s32" if a == "s8" else "f32"):
        return None
    kind, pack = MMA_TYPES[a]
    count_a, count_b = int(k) // (2 * pack), int(k) // (4 * pack)
    if len(arguments) != 8 + count_a + count_b or count_a > 4:
        return None
    d, registers, c = arguments[:4], arguments[4:-4], arguments[-4:]
    registers = [f"emulated_register({value})" for value in registers]
    a, b = registers[:count_a] + ["0"] * (4 - count_a), registers[count_a:] + ["0"] * (2 - count_b)
    return f"ptx_mma<{kind}, {k}>({', '.join([*d, *a, *b, *c])});"


def _cp_async(match: re.Match, arguments: list[str]) -> str | None:
    destination, source, size, *rest = arguments
    return f"emulator_cp_async({destination}, {source}, {size}, int({rest[0] if rest else size}));"


def _call(template: str):
    """An instruction as a line of C++ with {0}, {1}, ... for its operands."""
    return lambda _, arguments: template.format(*arguments)


COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
ATOMICS = {"add": "atomicAdd", "min": "atomicMin", "max": "atomicMax", "and": "atomicAnd", "or": "atomicOr", "xor": "atomicXor"}
SCALARS = {
    "u32": "unsigned int",
    "b32": "unsigned int",
    "s32": "int",
    "u64": "unsigned long long",
    "b64": "unsigned long long",
    "s64": "long long",
    "f32": "float",
    "f64": "double",
}


def _set_predicate(match: re.Match, arguments: list[str]) -> str:
    return f"{arguments[0].lstrip('%')} = {arguments[1]} {COMPARISONS[match[1]]} {arguments[2]};"


def _atomic(match: re.Match, arguments: list[str]) -> str | None:
    operation, kind = match[1], SCALARS.get(match[2])
    if kind is None:
        return None
    if operation in ("cas", "exch"):
        name = {"cas": "atomicCAS", "exch": "atomicExch"}[operation]
    else:
        name = ATOMICS.get(operation)
    if name is None:
        return None
    to, address, *values = arguments
    return f"{to} = {name}(({kind}*)({address}), {', '.join(f'({kind})({v})' for v in values)});"


def _reduction(match: re.Match, arguments: list[str]) -> str | None:
    kind = SCALARS.get(match[2])
    if kind is None or match[1] not in ATOMICS:
        return None
    return f"{ATOMICS[match[1]]}(({kind}*)({arguments[0]}), ({kind})({arguments[1]}));"


# Pattern of a mnemonic -> function of its match and operands to C++, or to None where the variant is not known.
INSTRUCTIONS = [
    (r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col(?:\.satfinite)?\.(\w+)\.(\w+)\.(\w+)\.(\w+)", _mma),
    (
        r"ldmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared(?:::cta)?\.b16",
        lambda match, arguments: f"ptx_ldmatrix<{'true' if match[1] else 'false'}>({', '.join(arguments)});",
    ),
    (r"cp\.async\.c[ag]\.shared(?:::cta)?\.global(?:\.L2::\d+B)?", _cp_async),
    (r"cp\.async\.commit_group", _call("emulator_cp_async_commit();")),
    (r"cp\.async\.wait_group", _call("emulator_cp_async_wait({0});")),
    (r"cp\.async\.wait_all", _call("emulator_cp_async_commit(); emulator_cp_async_wait(0);")),
    (r"ex2\.approx(?:\.ftz)?\.f32", _call("{0} = exp2f({1});")),
    (r"lg2\.approx(?:\.ftz)?\.f32", _call("{0} = log2f({1});")),
    (r"rcp\.(?:approx|rn)(?:\.ftz)?\.f32", _call("{0} = 1.0f / {1};")),
    (r"rsqrt\.approx(?:\.ftz)?\.f32", _call("{0} = 1.0f / sqrtf({1});")),
    (r"sqrt\.(?:approx|rn)(?:\.ftz)?\.f32", _call("{0} = sqrtf({1});")),
    (r"tanh\.approx\.f32", _call("{0} = tanhf({1});")),
    (r"sin\.approx(?:\.ftz)?\.f32", _call("{0} = sinf({1});")),
    (r"cos\.approx(?:\.ftz)?\.f32", _call("{0} = cosf({1});")),
    (r"fma\.rn(?:\.ftz)?\.f32", _call("{0} = fmaf({1}, {2}, {3});")),
    (r"cvt\.rna\.tf32\.f32", _call("ptx_cvt_tf32({0}, {1});")),
    (r"setp\.(eq|ne|lt|le|gt|ge)\.\w+", _set_predicate),
    (r"mov\.(?:b|u|s|f)(?:32|64)", _call("{0} = {1};")),
    (r"bar\.sync|barrier\.sync(?:\.aligned)?", lambda _, a: "__syncthreads();" if a == ["0"] else None),
    (r"bar\.warp\.sync", _call("__syncwarp({0});")),
    (r"ld\.(?:relaxed|acquire|volatile)(?:\.\w+)?(?:\.global)?\.\w+", _call("ptx_atomic_load({0}, {1});")),
    (r"st\.(?:relaxed|release|volatile)(?:\.\w+)?(?:\.global)?\.\w+", _call("ptx_atomic_store({0}, {1});")),
    (r"ld\.global\.nc(?:\.L1::no_allocate)?\.([usfb]\d+)", lambda m, a: f"{a[0]} = *(const {SCALARS[m[1]]}*)({a[1]});"),
    (r"atom(?:\.relaxed|\.acquire|\.release|\.acq_rel)?(?:\.gpu|\.cta|\.sys)?(?:\.global)?\.(\w+)\.(\w+)", _atomic),
    (r"red(?:\.relaxed|\.release)?(?:\.gpu|\.cta|\.sys)?(?:\.global)?\.(\w+)\.(\w+)", _reduction),
    (r"membar\.\w+|fence\.(?:acq_rel|sc)\.\w+", _call("")),
    (r"prefetch\.global\.L[12]", _call("(void)({0});")),
    (r"nanosleep\.u32", _call("emulator_pause();")),
    (r"trap", _call('emulator_trap("trap");')),
]
