"""The command `rerank`."""

from __future__ import annotations

import os
import sys

from rerank.errors import RerankError

USER_ERROR, INTERRUPTED, READER_GONE = 2, 130, 141


def main() -> None:
    """Runs the command line. An error of the user's is one line on stderr and exit status 2."""
    status = _run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _reader_gone()
    sys.exit(status)


def _run() -> int:
    import typer

    from rerank.cli.app import app

    # Typer has its own copy of click or not, depending on its version; both have BadParameter at the same place.
    usage_error: type[typer.BadParameter] = typer.BadParameter.__mro__[2]
    try:
        status = app(standalone_mode=False)
    except RerankError as error:
        return _fail(str(error))
    except usage_error as error:
        return _fail(error.format_message())
    except OSError as error:  # a full disk, a folder that may not be written
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except SystemExit as ended:  # Typer's own way with a pipe whose reader has gone, as `| head` does
        if isinstance(ended.__context__, BrokenPipeError):
            return _reader_gone()
        raise
    if status == INTERRUPTED:
        sys.stderr.write("interrupted\n")
    return status if isinstance(status, int) else 0


def _fail(text: str) -> int:
    sys.stderr.write(f"error: {' '.join(text.split())}\n")
    return USER_ERROR


def _reader_gone() -> int:
    # the interpreter flushes once more when it ends, and must find something to write to
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return READER_GONE
