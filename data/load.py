"""One name for each dataset, as the command line takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from rerank.data.beir import is_beir, read_beir, require_split
from rerank.data.dataset import Dataset
from rerank.data.files import filled_lines, json_object, located, read_lines, require_file
from rerank.data.irds import read_irds, require_irds
from rerank.data.jsonl import read_lists
from rerank.data.rank_llm import read_rank_llm
from rerank.errors import InputError, UnknownNameError
from rerank.types import Candidates

_SAMPLES = Path(__file__).with_name("samples")
_FORMS = (
    "(a dataset is 'sample:NAME', 'irds:ID', a BEIR folder 'PATH' or 'PATH:SPLIT', "
    "rank_llm's requests '….json', or lists '….jsonl')"
)


def list_samples() -> list[str]:
    """The samples that come with the package."""
    return sorted(folder.name for folder in _SAMPLES.iterdir() if is_beir(folder))


def load_dataset(spec: str) -> Dataset:
    """`sample:scifact`, `irds:beir/scifact/test`, `path/to/beir[:split]`, `requests.json[l]`, `lists.jsonl`.

    The split of a BEIR folder is test unless it is named, as `path:split` or `path/split`.
    """
    return _reader(spec)()


def check_dataset(spec: str) -> None:
    """Raises what `load_dataset` would for a name, a path or a split that is not there. Nothing is read."""
    _reader(spec)


def _reader(spec: str) -> Callable[[], Dataset]:
    if spec.startswith("sample:"):
        name = spec.removeprefix("sample:")
        if name not in list_samples():
            raise UnknownNameError("sample", name, list_samples())
        return partial(read_beir, _SAMPLES / name, name=spec)
    if spec.startswith("irds:"):
        require_irds(spec.removeprefix("irds:"))
        return partial(read_irds, spec.removeprefix("irds:"))
    path = Path(spec)
    if {".json", ".jsonl"} & set(path.suffixes) and not path.is_dir():
        require_file("dataset", path)
        return partial(_read_lists, path, spec)
    if is_beir(path):
        require_split(path, "test")
        return partial(read_beir, path, name=spec)
    for separator in (":", "/"):
        folder, found, split = spec.rstrip("/").rpartition(separator)
        if found and is_beir(Path(folder)):
            require_split(Path(folder), split)
            return partial(read_beir, folder, split, name=spec)
    if path.is_dir():
        raise InputError(f"the folder {spec!r} has no corpus.jsonl {_FORMS}")
    raise UnknownNameError("dataset", spec, [f"sample:{name}" for name in list_samples()], _FORMS)


def _read_lists(path: Path, name: str) -> Dataset:
    """rank_llm's requests, or lists with labels; in `.jsonl` the first line tells them apart."""
    qrels: dict[str, dict[str, int]] = {}
    lists: dict[str, Candidates] = {}
    for candidates, labels in read_candidates(path):
        query_id = candidates.query.query_id
        if query_id in lists:
            raise InputError(f"{path}: query {query_id!r} is there twice; ids must be distinct")
        lists[query_id] = candidates
        if labels:
            qrels[query_id] = labels
    if not lists:
        raise InputError(f"{path}: no query with candidates")
    queries = {query_id: candidates.query for query_id, candidates in lists.items()}
    return Dataset(name, queries, qrels=qrels or None, lists=lists)


def read_candidates(path: Path) -> Iterator[tuple[Candidates, dict[str, int]]]:
    """Lists, or requests of rank_llm, as they are drawn, with the labels that they have."""
    if ".jsonl" in path.suffixes:
        for where, line in islice(filled_lines(read_lines(path), str(path)), 1):
            with located(where):
                labelled = "docs" in json_object(line, "a list with 'docs', or a request of rank_llm")
            if labelled:
                return read_lists(read_lines(path), str(path))
    return ((candidates, {}) for candidates in read_rank_llm(path))
