"""A service in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serving(*flags: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, where it listens, and its first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rerank", "serve", "--port", "0", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r" at (http://\S+);", line)
        assert found, (line, process.stderr.read() if process.stderr is not None else "")
        yield process, found[1], line
    finally:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, str, list[dict[str, object]]]:
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    # torch's own word where a sandbox hides the processor's details
    lines = [line for line in err.splitlines() if not line.startswith("Error in cpuinfo")]
    return process.returncode, out, [json.loads(line) for line in lines]
