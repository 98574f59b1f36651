"""`inline`: TVMScript macros whose expansion does not slow down with the depth of the Python stack.

`T.inline` finds its parser by `inspect.getouterframes`, which reads the source lines of every frame and, for each, walks all
imported modules: with torch loaded and a test runner on the stack that is a tenth of a second for every expansion, and a
kernel has hundreds. Walking the frames themselves finds the same parser in microseconds.
"""

import sys
from collections.abc import Callable

import tvm
from tvm.script.parser._core import scan_macro, utils
from tvm.script.parser.core.parser import ScriptMacro
from tvm.tirx.script.parser.entry import TIRInline


class _Inline(TIRInline):
    _definition = None

    def get_macro_def(self):
        if self._definition is None:  # the text of a macro is parsed once, not for every expansion
            self._definition = super().get_macro_def()
        return self._definition

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
    source, closure_vars = scan_macro(func, utils.inspect_function_capture(func))
    macro = _Inline(source, closure_vars, func)

    def call(*args, **kwargs):
        return macro(*args, **kwargs)

    return call


def drop_parameters(kernel: tvm.tirx.PrimFunc, *names: str) -> tvm.tirx.PrimFunc:
    """`kernel` without the parameters of these names, which its body must not use: TVMScript has no optional ones."""
    params = [param for param in kernel.params if param.name not in names]
    return tvm.tirx.PrimFunc(params, kernel.body, kernel.ret_type, kernel.attrs)
