"""What a user gets: the wheel made from the sdist, installed alone, used from another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAPPED = ("losses", "eval", "data")  # the folders at the top that are packages of rerank


def run(*command: str | Path, cwd: Path) -> str:
    """The command's output, without this process's PYTHONPATH; its errors in full when it fails."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def test_the_package_list_equals_the_folders() -> None:
    found = set()
    for top in ("rerank", *MAPPED):
        for folder, _, files in os.walk(ROOT / top):  # does not follow the links
            if any(file.endswith(".py") for file in files):
                assert "__init__.py" in files, f"{folder} has modules but no __init__.py"
                name = ".".join(Path(folder).relative_to(ROOT).parts)
                found.add(name if top == "rerank" else f"rerank.{name}")
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == found
    assert sorted(listed) == listed


@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_folder_is_linked_and_has_one_name(name: str) -> None:
    assert (ROOT / "rerank" / name).readlink() == Path("..", name)
    guess = f"try:\n    import {name}\nexcept ImportError as error:\n    print(error)"
    assert run(sys.executable, "-c", guess, cwd=ROOT) == f"import this package as rerank.{name}"


HEAVY = {
    "torch",
    "transformers",
    "peft",
    "ranx",
    "numba",
    "pandas",
    "asyncio",
    "vllm",
    "sentence_transformers",
    "sklearn",
}


def test_import_is_light() -> None:
    script = (
        "import sys, time; start = time.perf_counter(); import rerank; print(time.perf_counter() - start);"
        f"print(*{HEAVY} & set(sys.modules))"
    )
    seconds, heavy = zip(
        *(run(sys.executable, "-c", script, cwd=ROOT).partition("\n")[::2] for _ in range(5)), strict=True
    )
    assert min(map(float, seconds)) < 0.3
    assert set(heavy) == {""}


def test_the_constraints_pin_every_direct_dependency_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {normal(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert all(re.fullmatch(r"[0-9.]+", version) for version in versions.values())  # nothing like 2.13.0+cpu
    project = PYPROJECT["project"]
    wanted = project["dependencies"] + [
        line for extra in ("llm", "dev") for line in project["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, wanted):
        if requirement.name == "pip":  # it is what installs the others
            continue
        assert versions[normal(requirement.name)] in requirement.specifier, requirement


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python -m build` makes the sdist, then the wheel out of it."""
    folder, tree = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("tree") / "rerank"
    # a copy: the build writes metadata into the tree, which other tests may be reading
    left = shutil.ignore_patterns(".*", "*.egg-info", "work", "runs", "build")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=left)
    run(sys.executable, "-m", "build", "--outdir", folder, tree, cwd=folder)
    assert len(list(folder.glob("*.tar.gz"))) == 1
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of a new environment with the wheel and its base dependencies, so without torch."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    options = ("--quiet", "--disable-pip-version-check", "--no-compile", "-c", ROOT / "constraints.txt")
    run(programs / "python", "-m", "pip", "install", *options, wheel, cwd=folder)
    yield programs
    shutil.rmtree(folder)  # 600 MB


def test_the_wheel_adds_one_name_and_carries_its_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"rerank_llm-{PYPROJECT['project']['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"rerank", info}
    assert not [name for name in names if "__pycache__" in name]
    expected = {"rerank/py.typed", "rerank/data/catalogue.yaml"}
    data = {name: name for name in ("rerank/prompts", "rerank/server/page")}
    data |= {name: f"rerank/{name}" for name in ("data/samples", "eval/report")}
    for source, target in data.items():
        expected |= {
            f"{target}/{path.relative_to(ROOT / source).as_posix()}"
            for path in (ROOT / source).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
    assert any(name.endswith(".yaml") for name in expected)
    assert any("/samples/scifact/" in name for name in expected)
    assert "rerank/server/page/page.js" in expected
    assert expected <= names
    licenses = {f"{info}/licenses/{name}" for name in PYPROJECT["project"]["license-files"]}
    assert licenses <= names


def test_the_readme_is_the_description(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"rerank_llm-{PYPROJECT['project']['version']}.dist-info/METADATA").decode()
    readme = (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert readme
    assert metadata.strip().endswith(readme)


def test_the_base_install_works_without_torch(clean: Path, tmp_path: Path) -> None:
    script = (
        "import importlib.util, rerank, rerank.eval, rerank.data, pathlib\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "assert importlib.util.find_spec('rerank.losses')\n"  # there, though it needs torch to be imported
        "assert rerank.data.load_dataset('sample:scifact')\n"
        "print(pathlib.Path(rerank.__file__).parent)"
    )
    where = run(clean / "python", "-c", script, cwd=tmp_path)
    assert Path(where).is_relative_to(clean.parent)


def test_the_command_works_without_torch(clean: Path, tmp_path: Path) -> None:
    listing = run(clean / "rerank", "ls", cwd=tmp_path)
    assert "pointwise" in listing
    assert "listwise" in listing
