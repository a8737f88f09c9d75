"""A vLLM server of its own process group, that can be killed and started again at the same address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

READY_S = 400


class VLLMServer:
    """`more` are further arguments of `vllm serve`; `log` is where it writes."""

    def __init__(self, model: Path, log: Path, more: Sequence[str] = ()) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._log = log
        # the `vllm` command itself asks for a package of that name, and the CPU's build has another
        self._command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *("--served-model-name", "small", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--max-model-len", "2048", "--block-size", "32", "--dtype", "bfloat16", "--enforce-eager", *more),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.begin()
        self.wait()

    def begin(self) -> None:
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **os.environ}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )

    def wait(self) -> None:
        """Until it answers."""
        assert self._process is not None
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        tail = self._log.read_text(errors="replace")[-3000:]
        self.kill()
        raise RuntimeError(f"the vLLM server did not come up:\n{tail}")

    def kill(self) -> None:
        """At once, and its workers with it."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
