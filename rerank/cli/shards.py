"""`rerank data shards`: candidates in a folder of files, for `rerank run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rerank.cli import options as opt
from rerank.cli.one import counted
from rerank.cli.run import requests_of
from rerank.data.shards import PER_SHARD, write_shards, writer_of


def shards(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")],
    dataset: Annotated[
        str | None,
        typer.Argument(metavar="DATASET", help="See 'rerank ls datasets'; or a folder of shards, to cut it anew."),
    ] = None,
    first_stage: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="FILE", help="A TREC run with the candidates; default: the dataset's, else BM25."
        ),
    ] = None,
    queries: Annotated[
        str | None, typer.Option(metavar="FILE", help="Queries from a file or '-', as 'rerank run' takes them.")
    ] = None,
    depth: Annotated[int, typer.Option("--depth", "-k", metavar="N", min=1, help="Candidates for each query.")] = 100,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N queries.")] = None,
    per_shard: Annotated[int, typer.Option(metavar="N", min=1, help="Queries of a shard.")] = PER_SHARD,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="jsonl, jsonl.gz or parquet.")] = "jsonl",
) -> None:
    """Cut candidates into shards, for many workers.

    'rerank run FOLDER' ranks them, with '--engine ray' by many workers.
    """
    opt.show_log()
    writer_of(form)
    _, requests = requests_of(dataset, first_stage, queries, depth, limit)
    files, asked, passages = write_shards(requests, Path(output), per_shard=per_shard, form=form)
    opt.notes.print(
        f"{output}: {counted(files, 'shard', 'shards')}, {counted(asked, 'query', 'queries')}, "
        f"{counted(passages, 'passage', 'passages')}"
    )
