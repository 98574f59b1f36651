"""`inline` and `prim_func`: TVMScript that is read no slower from deep inside a Python program.

`T.inline` finds its parser by `inspect.getouterframes`, which reads the source lines of every frame and, for each, walks all
imported modules: with torch loaded and a test runner on the stack that is a tenth of a second for every expansion, and a
kernel has hundreds. Walking the frames themselves finds the same parser in microseconds. `T.prim_func` does the same, twice for
every kernel, for classes around it, which ours have not.
"""

import os
import sys
import threading
from collections.abc import Callable
from types import CodeType

import tvm
from tvm.script.parser._core import parse, utils
from tvm.script.parser.core import doc
from tvm.script.parser.core.diagnostics import Source
from tvm.script.parser.core.parser import ScriptMacro
from tvm.tirx.script.parser.entry import TIRInline

_parsing = threading.RLock()  # the parser marks the syntax tree of a macro while it reads it, and all kernels share it
_texts: dict[CodeType, tuple[Source, doc.FunctionDef]] = {}  # kernels define the same macros again for every shape


def _forget_lock() -> None:
    """In the child of a fork: who held the lock is not there to give it back."""
    global _parsing
    _parsing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


class _Inline(TIRInline):
    def get_macro_def(self):
        return _texts[self.func.__code__][1]

    def _find_parser_def(self):
        frame = sys._getframe(1)
        while frame is not None:
            parser = frame.f_globals.get(ScriptMacro.parser_object_name)
            if parser is not None:
                return parser
            frame = frame.f_back
        raise RuntimeError("a macro was called outside of a kernel's script")


def inline(func: Callable) -> Callable:
    """Decorator: `func` is TVMScript, expanded wherever a kernel calls it. Names come from where it is defined."""
    if func.__code__ not in _texts:
        source = Source(func)
        _texts[func.__code__] = source, source.as_ast().body[0]
    macro = _Inline(_texts[func.__code__][0], utils.inspect_function_capture(func), func)

    def call(*args, **kwargs):
        return macro(*args, **kwargs)

    return call


def prim_func(s_tir: bool) -> Callable[[Callable], tvm.tirx.PrimFunc]:
    """Decorator: `T.prim_func`, which looks at the whole Python stack as well, twice for each kernel."""

    def parse_kernel(func: Callable) -> tvm.tirx.PrimFunc:
        with _parsing:
            return parse(func, utils.inspect_function_capture(func))

    parse_kernel.dispatch_token = "tirx"  # by which the parser knows a kernel; it reads `s_tir` from the source
    return parse_kernel


def drop_parameters(kernel: tvm.tirx.PrimFunc, *names: str) -> tvm.tirx.PrimFunc:
    """`kernel` without the parameters of these names, which its body must not use: TVMScript has no optional ones.

    Raises ValueError for a name that no parameter has, and for one whose buffer the body uses.
    """
    given = [param.name for param in kernel.params]
    if unknown := [name for name in names if name not in given]:
        raise ValueError(f"names: expected parameters of the kernel ({', '.join(given)}), given {', '.join(unknown)}")
    params = [param for param in kernel.params if param.name not in names]
    undefined = {var.name for var in tvm.tirx.analysis.undefined_vars(kernel.body, params)}
    if used := [name for name in names if name in undefined]:
        raise ValueError(f"names: expected parameters that the body does not use, given {', '.join(used)}")
    return tvm.tirx.PrimFunc(params, kernel.body, kernel.ret_type, kernel.attrs)
