"""The entry point: runs a command and turns what goes wrong into one line and an exit status."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Sequence
from typing import cast

from intxtrace.errors import IntxtraceError

FAILED, INTERRUPTED, PIPE_CLOSED = 1, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run intxtrace and return its exit status.

    1: an error, told in one line on standard error; 130: interrupted; 141: whoever read our output went away; any
    other status: the command's own.
    """
    _write_plainly()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # so that a full disk shows here, not when Python exits
    except IntxtraceError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        from intxtrace.files import sentence

        status = _fail(sentence(error))
        if sys.stdout is not None and not sys.stdout.closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status
    except MemoryError:
        return _fail("out of memory; choose less with --from and --to, or run on a bigger machine")


_PLAIN = {"µ": "u", "–": "-", "→": "->", "·": "|", "…": "...", "≥": ">=", "“": '"', "”": '"', "█": "#"}


def _write_plainly() -> None:
    """Let a terminal that is not UTF-8 have other characters instead of a traceback."""
    codecs.register_error("intxtrace", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="intxtrace")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = (_PLAIN.get(char, char.encode("unicode_escape").decode()) for char in error.object[error.start : error.end])
    return "".join(shown), error.end


def _run(arguments: Sequence[str] | None) -> int:
    import typer

    from intxtrace.cli import app, completion

    if completion.ASKED in os.environ:
        completion.answer(app)
        return 0
    # typer names the parent of its usage errors differently from version to version.
    usage_error = cast(type[typer.BadParameter], typer.BadParameter.mro()[2])
    try:
        status = app(args=arguments, prog_name="intxtrace", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except SystemExit as leave:
        if isinstance(leave.__context__, BrokenPipeError):  # typer makes this a status of 1
            raise BrokenPipeError from None
        raise
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return FAILED
        command = error.ctx.command_path if error.ctx else "intxtrace"
        return _fail(f"{error.format_message().rstrip('.')}; see {command} --help")
    return status if isinstance(status, int) else 0


def _fail(sentence: str) -> int:
    from intxtrace.units import printable

    print(f"intxtrace: {printable(sentence, 4000)}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
