"""The command line: `sam3d-tvm generate`, `batch`, `depth`, `compile`, `calibrate`, `view`, `validate`, `bench`, `info` and
`demo`; a file a command.

Only what every command needs is imported here; TVM is imported by the commands, after `--threads` has been looked at.
"""

import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.cli import batch, bench, calibrate, compile, depth, generate, info, validate, view
from sam3d_tvm.cli.options import BAD_OPTIONS, EXAMPLES, FAILED, STOPPED

LABELS = re.compile(r"all|#?[0-9a-fA-F]+(,#?[0-9a-fA-F]+)*")
USAGE_ERROR = typer.BadParameter.__base__  # click's, of which newer versions of typer bring a copy of their own

app = typer.Typer(
    help="SAM-3D-Objects in Apache TVM.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = {
    "generate": generate.generate,
    "batch": batch.batch,
    "depth": depth.depth,
    "demo": generate.demo,
    "compile": compile.compile_,
    "calibrate": calibrate.calibrate,
    "view": view.view,
    "validate": validate.validate,
    "bench": bench.bench,
    "info": info.info,
}
for name, command in COMMANDS.items():
    app.command(name, epilog=EXAMPLES.get(name))(command)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """SAM-3D-Objects in Apache TVM."""
    if version:
        from sam3d_tvm import __version__

        typer.echo(f"sam3d-tvm {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0, or 2 for options that make no sense, 1 for what went wrong later."""
    with shown.steady_streams():
        try:
            code = app(
                args=_with_all_masks(_with_all_labels(sys.argv[1:] if argv is None else argv)),
                prog_name="sam3d-tvm",
                standalone_mode=False,
            )
        except USAGE_ERROR as error:
            return _fail(error.format_message(), BAD_OPTIONS)
        except ValueError as error:
            from sam3d_tvm.checks import Failure

            return _fail(str(error), FAILED if isinstance(error, Failure) else BAD_OPTIONS)
        except (BrokenPipeError, SystemExit):  # nobody reads the help: rich says so by the latter
            return 0
        except OSError as error:
            return _fail(str(error), FAILED)
        except (KeyboardInterrupt, typer.Abort):
            code = STOPPED
        if code == STOPPED:
            return _fail("stopped", STOPPED)
        return code if isinstance(code, int) else 0


def _with_all_labels(argv: Sequence[str]) -> list[str]:
    """Arguments in which `--labels` without labels behind it stands for all: what follows may be a file."""
    found = list(argv)
    for index, argument in enumerate(found):
        if argument == "--labels" and not LABELS.fullmatch(found[index + 1] if index + 1 < len(found) else ""):
            found[index] = f"--labels={generate.ALL_LABELS}"
    return found


def _with_all_masks(argv: Sequence[str]) -> list[str]:
    """Arguments in which `--masks` stands before each of the files behind it, up to the next option: it takes all of them.
    ValueError where another option takes their place."""
    found, taking = [], False
    for index, argument in enumerate(argv):
        if argument == "--":
            return [*found, *argv[index:]]
        if argument == "--masks" and index + 1 < len(argv):
            if _is_option(argv[index + 1]):  # which would be taken for a file, and its value for a photo
                raise ValueError(f"masks: expected a file behind --masks for each photo, given {argv[index + 1]}")
            taking = True
            continue
        taking = taking and not _is_option(argument)
        found.append(f"--masks={argument}" if taking else argument)
    return found


def _is_option(argument: str) -> bool:
    return argument.startswith("-") and argument != "-"


def _fail(message: str, code: int) -> int:
    shown.say_error(message)
    return code
