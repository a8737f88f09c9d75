"""The command `rerank`."""

from __future__ import annotations

import os
import sys

from rerank.errors import RerankError


def main() -> None:
    """Runs the command line. An error of the user's is one line on stderr and exit status 2."""
    from rerank.cli.app import app

    try:
        app()
    except RerankError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
