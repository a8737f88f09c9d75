"""What the container and the unit start is started, as they say it, and asked, as they ask it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from serving import ended, serving

from rerank.server import Limits

DEPLOY = Path(__file__).parents[1] / "docs" / "deploy"
CONTAINER = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
UNIT = (DEPLOY / "rerank.service").read_text(encoding="utf-8")


def instruction(name: str) -> str:
    (found,) = re.findall(rf"^{name} (.*)$", CONTAINER, flags=re.MULTILINE)
    return str(found)


def test_the_container_copies_what_is_there_and_installs_what_the_package_offers() -> None:
    import tomllib

    top = DEPLOY.parents[1]
    for sources in re.findall(r"^COPY (.*) /src", CONTAINER, flags=re.MULTILINE):
        assert all((top / source).exists() for source in sources.split())
    (extras,) = re.findall(r"/src(\[.*?\])", CONTAINER)
    offered = tomllib.loads((top / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert Requirement(f"rerank-llm{extras}").extras <= offered.keys()


def test_both_are_given_the_time_to_answer_what_they_took() -> None:
    (container,) = re.findall(r"^# podman run .*--stop-timeout (\d+) ", CONTAINER, flags=re.MULTILINE)
    (unit,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, flags=re.MULTILINE)
    assert min(int(container), int(unit)) > Limits().shutdown_s


def test_the_container_is_built_in_the_format_that_has_health_checks() -> None:
    (build,) = re.findall(r"^# podman (build .*)$", CONTAINER, flags=re.MULTILINE)
    assert "HEALTHCHECK" in CONTAINER
    assert build.startswith("build --format docker ")  # OCI's has none


@pytest.mark.model
def test_the_container_s_command_serves_under_a_key_and_is_healthy() -> None:
    entry, command = json.loads(instruction("ENTRYPOINT")), json.loads(instruction("CMD"))
    assert entry == ["rerank", "serve"]
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", CONTAINER, flags=re.MULTILINE)
    with serving(*command, RERANK_API_KEYS="0123456789abcdef") as (process, url, _):
        port = url.rpartition(":")[2]
        asked = [sys.executable if part == "python" else part.replace("8080", port) for part in json.loads(check)]
        assert subprocess.run(asked, check=False).returncode == 0
        assert ended(process, getattr(signal, instruction("STOPSIGNAL")))[0] == 0
    assert subprocess.run(asked, check=False, capture_output=True).returncode != 0  # nobody listens any more


def test_the_unit_s_command_is_one(tmp_path: Path) -> None:
    (command,) = re.findall(r"^ExecStart=(.*)$", UNIT, flags=re.MULTILINE)
    program, *arguments = shlex.split(command)
    assert (Path(program).name, arguments[0]) == ("rerank", "serve")
    done = subprocess.run(
        [sys.executable, "-m", "rerank", *arguments, "--model", str(tmp_path / "none"), "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert "no such option" not in done.stderr.lower() and "none" in done.stderr  # all that is wrong is the model


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    file = tmp_path / "rerank.service"
    file.write_text(UNIT.replace("/opt/rerank/bin/rerank", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
