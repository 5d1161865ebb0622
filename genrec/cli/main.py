"""`genrec`: builds, checks, evaluates and serves bundles. This file alone decides how a command ends.

Exit status 0: done. 1: what the command met (files, data, servers) does not let it do its work. 2: usage, that is a
value of an option that is wrong whatever it meets. Both say so in a line `error: ...` on standard error. Any other
exception is a defect of these packages: it shows its traceback, and the exit status is 1.
"""

from __future__ import annotations

import dis
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from genrec.bundle import BundleError
from genrec.cli.commands import build_app
from genrec.serving.triton import TritonError

GROUP = "genrec.commands"
FAILED, USAGE = 1, 2
UsageError: Any = typer.BadParameter.__base__  # click's, of which typer has a copy of its own since 0.26
_RAISE = dis.opmap["RAISE_VARARGS"]

_commands = {entry.name: entry for entry in entry_points(group=GROUP)}
_PACKAGES = {"genrec", *(entry.value.partition(".")[0] for entry in _commands.values())}
# Modules of commands import nothing heavy (torch, pyarrow) until a command runs: serving goes without them.
app = build_app({name: entry.load for name, entry in _commands.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status.

    arguments: words behind `genrec`, by default those of this process. Raises what is a defect.
    """
    try:
        return app(arguments, prog_name="genrec", standalone_mode=False) or 0
    except UsageError as error:
        return _explain(error)
    except typer.Abort:
        return _complain("stopped", FAILED)
    except (BundleError, TritonError, ValueError, OSError, ImportError, MemoryError) as error:
        if not _is_expected(error):
            raise
        return _complain(_words(error), FAILED)


def _explain(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # it has printed the help, which is its message without rich
        typer.echo(error.format_message(), err=True, nl=False)
        return USAGE
    # A value's refusal is complete; what typer itself says of options without one has more in its formatted message.
    text = ((isinstance(error, typer.BadParameter) and error.message) or error.format_message()).rstrip(".")
    return _complain(f"{text}; see {error.ctx.command_path} --help" if error.ctx else text, USAGE)


def _is_expected(error: Exception) -> bool:
    """Whether the exception says what a user can mend, and is no defect.

    ValueError and ImportError are also what libraries raise when they are called wrongly: there only those count that
    a `raise` of our packages brought, kinds of ValueError about a file's content, and packages that are not installed.
    """
    if isinstance(error, ModuleNotFoundError):
        return error.name is not None and error.name.partition(".")[0] not in _PACKAGES
    if type(error) is not ValueError and not isinstance(error, ImportError):
        return True
    trace: Any = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, module = trace.tb_frame.f_code.co_code, trace.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _PACKAGES and code[trace.tb_lasti] == _RAISE


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory for this: {error or 'ask for less'}"
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed, and this command needs it: `pip install` it"
    return str(error)


def _complain(text: str, status: int) -> int:
    Console(stderr=True).print(f"[red]error:[/red] {escape(text)}", highlight=False, emoji=False, soft_wrap=True)
    return status
