"""`rerank retrieve`: what a first stage finds, as a file that the other commands read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Protocol, cast

import typer

from rerank.backbones import load_backbone
from rerank.backbones.bi_encoder import BiEncoderBackbone
from rerank.backbones.embedded import cache_folder
from rerank.calls import Kind
from rerank.cli import options as opt
from rerank.cli.one import counted
from rerank.cli.progress import Counted
from rerank.data import BM25, Corpus, Dataset, Dense, Lucene, Run, load_dataset, read_run, write_rank_llm, write_run
from rerank.data.files import appearing_whole
from rerank.data.trec import best_docs
from rerank.errors import InputError, UnknownNameError
from rerank.fusion import Norm, OfRanks, OfScores, fuse_runs
from rerank.runs import Totals, is_complete, only_process, write_card
from rerank.types import Hit, Passage, Query, Ranking

BLOCK = 64  # queries searched together
_STAGES = ("bm25", "dense", "lucene")


class Stage(Protocol):
    def search(self, queries: Iterable[Query], k: int = ...) -> Run: ...


def retrieve(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="See 'rerank ls datasets'.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A TREC run; '.json' and '.jsonl' are rank_llm's requests, with texts. '-' is standard output.",
        ),
    ] = "-",
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="NAME",
            help="bm25 (the default), dense, lucene, lucene:INDEX (a folder, or a prebuilt one's name), or a TREC run; "
            "several are fused.",
        ),
    ] = None,
    depth: Annotated[int, typer.Option("--depth", "-k", metavar="N", min=1, help="Candidates for each query.")] = 100,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N queries.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME", help="Of dense: a bi-encoder; default: the embedded one."),
    ] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    index: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where dense and lucene keep what they made; default: the user's cache."),
    ] = None,
    fuse: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="rrf (the default), isr, bordafuse, sum, wsum, mnz, max, min or med, as ranx has them.",
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="For a fusion of scores: min-max (the default), sum, rank or none."),
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(metavar="X", help="Of wsum: once for each --by, in their order.")
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="WORD", help="The run's tag; default: rerank-NAME.")] = None,
) -> None:
    """Find candidates for every query and write them to a file.

    'rerank run' takes it as --run (a TREC run), or as its dataset (rank_llm's requests).
    """
    opt.show_log()
    names = by or ["bm25"]
    given = {"--model": model, "--device": device, "--dtype": dtype}
    _check(names, given, index, {"--fuse": fuse, "--norm": norm, "--weight": weight})
    method = cast("OfRanks | OfScores", fuse or "rrf")
    fused = partial(fuse_runs, method=method, norm=cast("Norm | None", norm), weights=weight)
    if len(names) > 1:
        fused(*({} for _ in names))  # what it refuses is refused before anything is embedded
    tag = tag or "-".join(["rerank", *(name.partition(":")[0] if _is_stage(name) else "run" for name in names)])
    settings = {
        "dataset": dataset,
        "by": names,
        "depth": depth,
        "limit": limit,
        "model": model,
        "device": device,
        "dtype": dtype,
        "fuse": method if len(names) > 1 else None,
        "norm": norm,
        "weights": weight,
        "tag": tag,
    }

    def found() -> Iterator[tuple[Query, Mapping[str, float]]]:
        queries = list(islice(loaded.queries.values(), limit))
        stages = [_stage(name, loaded, model, device, dtype, index) for name in names]
        with Counted("searching", "queries") as bar:
            bar.show(0, len(queries))
            for at in range(0, len(queries), BLOCK):
                asked = queries[at : at + BLOCK]
                runs = [stage.search(asked, depth) for stage in stages]
                run = fused(*runs) if len(runs) > 1 else runs[0]
                yield from ((query, run.get(query.query_id, {})) for query in asked)
                bar.show(at + len(asked), len(queries))

    if output == "-":
        loaded = _load(dataset)
        write_run(sys.stdout, _hits(found(), depth), tag)
        return
    target = Path(output)
    with only_process(target):
        if is_complete(target, settings):
            opt.notes.print(f"{output} is already there, made with these settings")
            return
        loaded = _load(dataset)
        with appearing_whole(target) as written:
            totals = _write(written, loaded, found(), depth, tag)
            write_card(target, written, settings, tag, totals, {"command": opt.command_line()})
    opt.notes.print(f"{output}: {counted(totals.queries, 'query', 'queries')}")


def _check(
    names: Sequence[str], of_dense: Mapping[str, object], index: Path | None, of_fusion: Mapping[str, object]
) -> None:
    """An option that the stages have no use for is refused."""
    for name in names:
        if not _is_stage(name) and not Path(name).is_file():
            raise UnknownNameError("first stage", name, _STAGES, "(or the file of a TREC run, or lucene:INDEX)")
    if len(set(names)) < len(names):
        raise InputError(f"--by names a stage twice: {', '.join(names)}")
    for option, value in of_dense.items():
        if value is not None and "dense" not in names:
            raise InputError(f"{option} is for --by dense; leave it out, or give that")
    if index is not None and not {"dense", "lucene"} & set(names):
        raise InputError("--index is for --by dense and --by lucene, which keep what they made; leave it out")
    for option, given in of_fusion.items():
        if given and len(names) == 1:
            raise InputError(
                f"{option} is for several --by, and there is one: {names[0]}; leave it out, or give another"
            )


def _is_stage(name: str) -> bool:
    return name in _STAGES or name.startswith("lucene:")


def _load(dataset: str) -> Dataset:
    opt.say(f"reading {dataset}")
    return load_dataset(dataset)


def _stage(
    name: str, dataset: Dataset, model: str | None, device: str | None, dtype: str | None, index: Path | None
) -> Stage:
    if name.startswith("lucene:"):
        return Lucene(name.removeprefix("lucene:"))
    if name not in _STAGES:
        return _Stored(name, dataset)
    if dataset.corpus is None:
        raise InputError(f"{dataset.name} has no corpus to search; give a dataset with one, or --by the file of a run")
    if name == "dense":
        return _dense(dataset.corpus, model, device, dtype, index or cache_folder("embeddings"))
    if name == "lucene":
        with Counted("indexing", "documents") as bar:
            return Lucene.of(dataset.corpus, index or cache_folder("lucene"), on_progress=bar.show)
    opt.say(f"indexing {len(dataset.corpus):,} documents")
    return BM25(dataset.corpus)


def _dense(corpus: Corpus, model: str | None, device: str | None, dtype: str | None, folder: Path) -> Dense:
    opt.say(f"dense: loading {model or 'the embedded bi-encoder'}; embeddings are kept in {folder}")
    encoder = load_backbone(
        "bi-encoder", needs=Kind.SCORE, model=model, device=device, dtype=dtype, options={"cache_mb": 0}
    )
    with Counted("embedding", "documents") as bar:
        return Dense(corpus, cast(BiEncoderBackbone, encoder), folder=folder, on_progress=bar.show)


class _Stored:
    """A run that is there already, as a stage."""

    def __init__(self, path: str, dataset: Dataset) -> None:
        self._run = read_run(path)
        if self._run.keys().isdisjoint(dataset.queries):
            there, here = next(iter(self._run), "none"), next(iter(dataset.queries), "none")
            raise InputError(f"{path} and {dataset.name} share no query id: for example {there!r} there, {here!r} here")

    def search(self, queries: Iterable[Query], k: int = 100) -> Run:
        return {q.query_id: best_docs(q.query_id, self._run.get(q.query_id, {}), k) for q in queries}


def _write(
    target: Path, dataset: Dataset, found: Iterator[tuple[Query, Mapping[str, float]]], depth: int, tag: str
) -> Totals:
    """In the form that the ending of the name says."""
    totals = Totals()

    def tallied(rankings: Iterable[Ranking]) -> Iterator[Ranking]:
        nonlocal totals
        for ranking in rankings:
            totals = totals.plus(ranking)
            yield ranking

    if {".json", ".jsonl"} & set(target.suffixes):
        with_texts = dataset.filled(found, depth)
        write_rank_llm(
            target,
            tallied(Ranking.of(each, range(len(each)), (p.score or 0.0 for p in each.passages)) for each in with_texts),
        )
    else:
        write_run(target, tallied(_hits(found, depth)), tag)
    if not totals.queries:
        raise InputError(f"nothing is found for any query of {dataset.name}; nothing is written")
    return totals


def _hits(found: Iterable[tuple[Query, Mapping[str, float]]], depth: int) -> Iterator[Ranking]:
    """Without texts, which a run does not hold, so that a corpus need not be there for it. A query for which nothing is
    found is not in a run."""
    lacking = total = 0
    for query, docs in found:
        total += 1
        lacking += not docs
        best = best_docs(query.query_id, docs, depth).items()
        if best:
            yield Ranking(query, tuple(Hit(i, s, Passage("", d)) for i, (d, s) in enumerate(best, start=1)))
    if lacking:
        opt.notes.print(f"queries for which nothing is found: {lacking} of {total}")
