"""`rerank data queries`: queries for a collection that has none, written by a language model."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rerank.cli import options as opt
from rerank.cli.one import counted, summary
from rerank.cli.progress import Bar
from rerank.data.dense import embed_rows
from rerank.errors import InputError
from rerank.prompts import load_prompt
from rerank.reranker import Ranker
from rerank.runs import Totals, only_process
from rerank.training.clusters import TEMPERATURE, Clusters, cluster, tfidf
from rerank.training.sources import excluded_words
from rerank.training.synthetic import (
    Notebook,
    Rules,
    Writer,
    choose,
    read_documents,
    request,
    told,
    worth,
    write_folder,
)
from rerank.types import Passage


class Embed(StrEnum):
    BI_ENCODER = "bi-encoder"
    TFIDF = "tfidf"


def queries(
    corpus: Annotated[
        Path, typer.Argument(metavar="CORPUS", help="A BEIR folder, a corpus.jsonl, or lists '….jsonl'.", exists=True)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="The BEIR folder to make; one begun goes on.")
    ],
    documents: Annotated[
        int, typer.Option("--documents", "-n", metavar="N", min=1, help="How many to ask about.")
    ] = 1000,
    clusters: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, help="Draw them from K clusters of the corpus, each by its size (DUQGen)."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T", help="Of the draw within a cluster: the lower, the nearer to its centre. Default: 1."
        ),
    ] = None,
    embed: Annotated[
        Embed | None,
        typer.Option(help="What clusters are made of: the embedded bi-encoder (the default), or words alone."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the draw.")] = 0,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="NAME",
            help="query-generation, query-generation-claim or a file; may be repeated.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET", help="Whose queries may not come out; may be repeated. See 'rerank ls datasets'."
        ),
    ] = None,
    min_words: Annotated[int, typer.Option(metavar="N", min=1, help="The fewest words of a query.")] = 3,
    max_words: Annotated[int, typer.Option(metavar="N", min=1, help="The most words of a query.")] = 20,
    max_copied: Annotated[
        int, typer.Option(metavar="N", min=1, help="The most words of one that stand in its document as they are.")
    ] = 10,
    round_trip: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, help="Keep a query only if BM25 finds its document among the first K."),
    ] = None,
    passage_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="What is shown of a document.")] = 120,
    model: opt.Model = None,
    adapter: opt.Adapter = None,
    backbone: opt.BackboneName = "transformers",
    backbone_option: opt.BackboneOptions = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    block: Annotated[int, typer.Option(metavar="N", min=1, help="Documents asked about, and noted, together.")] = 64,
) -> None:
    """Write queries for documents of a corpus, as a BEIR folder to train on.

    A language model writes what each document answers. FOLDER:train is then a dataset: the corpus, the queries that
    pass the filters, and each query's document with label 1.
    """
    opt.show_log()
    if clusters is None and (temperature is not None or embed is not None):
        raise InputError(f"--{'embed' if temperature is None else 'temperature'} is for --clusters K; give that too")
    heat = TEMPERATURE if temperature is None else temperature
    writer = Writer(tuple(load_prompt(name) for name in prompt or ["query-generation"]), passage_tokens)
    excluded = frozenset(words for name in exclude or [] for words in excluded_words(name, Path()))
    rules = Rules(writer.prompts, min_words, max_words, max_copied, excluded)
    engine = opt.Engine(model, adapter, backbone, backbone_option, device, dtype)
    settings = {
        "corpus": str(corpus),
        "documents": documents,
        "clusters": clusters,
        "seed": seed,
        "prompts": [one.identity for one in writer.prompts],
        "passage_tokens": passage_tokens,
        **engine.settings,
    }
    if clusters is not None:
        settings |= {
            "temperature": TEMPERATURE if temperature is None else temperature,
            "embed": embed or Embed.BI_ENCODER,
        }
    if (out / "qrels" / "train.tsv").exists() and not (out / "queries.journal").exists():
        raise InputError(f"{out} holds a train split that was not made here; give another --out")
    known = read_documents(corpus)
    out.mkdir(parents=True, exist_ok=True)
    with only_process(out / "queries.jsonl"):
        notebook = Notebook(out / "queries.journal", settings)
        found = None if clusters is None else _clusters(worth(known), clusters, seed, embed, device)
        chosen = choose(known, documents, seed, found, heat)
        todo = [document for document in chosen if document.doc_id not in notebook.texts]
        if len(todo) < len(chosen):
            opt.notes.print(f"{out}: documents done: {len(chosen) - len(todo)}; going on from there")
        if todo:
            bar = Bar("queries", len(chosen), writer.calls, done=len(chosen) - len(todo))
            ranker = engine.load(writer, on_progress=bar.show)
            with bar:
                totals = _write(ranker, bar, todo, notebook, block)
            opt.notes.print(
                f"{counted(totals.queries, 'document', 'documents')}, {summary(totals.usage, totals.outcomes)}"
            )
        passed, refused = write_folder(
            out, known, ((d, notebook.texts.get(d.doc_id, [])) for d in chosen), rules, round_trip
        )
    opt.notes.print(f"{out}:train has {counted(passed, 'query', 'queries')}; refused: {told(refused)}")


def _write(ranker: Ranker, bar: Bar, todo: Sequence[Passage], notebook: Notebook, block: int) -> Totals:
    totals = Totals()
    for at in range(0, len(todo), block):
        part = todo[at : at + block]
        written = {}
        for ranking in ranker.rank_many(bar.watch(map(request, part)), on_error="keep"):
            totals = totals.plus(ranking)
            written[ranking.query.query_id] = ranking.reasoning  # none where it could not be asked
        notebook.add(written)
    for error in totals.errors[:10]:
        opt.notes.print(f"not asked: {error}")
    return totals


def _clusters(known: Sequence[Passage], clusters: int, seed: int, embed: Embed | None, device: str | None) -> Clusters:
    """Of the documents that may be asked about."""
    opt.say("embedding the corpus")
    if embed is Embed.TFIDF:
        return cluster(tfidf([document.full_text for document in known], seed), clusters, seed)
    from rerank.backbones.bi_encoder import BiEncoderBackbone

    encoder = BiEncoderBackbone.load(device=device, cache_mb=0)
    rows = embed_rows(encoder, "document", [document.full_text for document in known])
    return cluster(rows, clusters, seed)
