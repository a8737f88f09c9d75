"""`rerank data`: make what is trained on."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from rerank.cli import options as opt
from rerank.cli.clicks import clicks, features, new_file, score
from rerank.cli.one import counted
from rerank.cli.progress import Bar
from rerank.cli.queries import queries
from rerank.cli.run import report, requests_of
from rerank.cli.shards import shards
from rerank.data import load_dataset, read_run
from rerank.errors import InputError
from rerank.runs import Journal, is_complete, journal_path, only_process, resumable_run
from rerank.strategies import options_of
from rerank.strategies.listwise import Listwise
from rerank.training.labelling import MultiPass
from rerank.training.mining import Miner, write_lists

app = typer.Typer()

Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to write.")]
Depth = Annotated[int, typer.Option("--depth", "-k", metavar="N", min=1, help="Candidates for each query.")]
FirstStage = Annotated[
    str | None,
    typer.Option("--run", metavar="FILE", help="A TREC run with the candidates; default: the dataset's, else BM25."),
]
Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N queries.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """Make training data, and shards of candidates."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command()(queries)
app.command()(clicks)
app.command()(features)
app.command()(score)
app.command()(shards)


@app.command()
def mine(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="With judgments; for BEIR 'FOLDER:SPLIT'."),
    ],
    output: Output,
    first_stage: FirstStage = None,
    depth: Depth = 100,
    limit: Limit = None,
    negatives: Annotated[int, typer.Option(metavar="N", min=1, help="Hard negatives of each query.")] = 20,
    positives: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Positives of each query, best judged first; default: all.")
    ] = None,
    relevant: Annotated[int, typer.Option(metavar="N", min=1, help="The least label of a positive.")] = 1,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A reranker's TREC run; the negatives that it ranks highest are taken."),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(metavar="X", help="Leave out what the teacher scores above X times the positives' mean, as 0.95."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(metavar="X", help="Leave out what the teacher scores above the positives' mean less X."),
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="The least hard of the candidates in place of the hardest (DUQGen).")
    ] = False,
) -> None:
    """Mine hard negatives for queries with positives.

    What is written are lists to train on, as JSON lines.
    """
    opt.show_log()
    target = new_file(output, ".jsonl", "lists")
    scores = None if teacher is None else read_run(teacher)
    miner = Miner(negatives, positives, relevant, scores, share, margin, last)
    opt.say(f"reading {dataset}")
    loaded = load_dataset(dataset)
    stage = None if first_stage is None else read_run(first_stage)
    candidates = islice(loaded.candidates(depth, run=stage), limit)
    counts = write_lists(target, miner.mine(loaded, candidates))
    if not counts["queries"]:
        target.unlink()
        raise InputError(f"no query of {dataset} has both a positive and a negative; nothing is written")
    opt.notes.print(
        f"{output}: {counted(counts['queries'], 'query', 'queries')}, "
        f"{counted(counts['positives'], 'positive', 'positives')}, "
        f"{counted(counts['negatives'], 'negative', 'negatives')}"
    )


@app.command()
def label(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="See 'rerank ls datasets'.")],
    output: Output,
    strategy: Annotated[
        str, typer.Option("--strategy", "-s", metavar="NAME", help="A strategy of windows: listwise or first.")
    ] = "listwise",
    first_stage: FirstStage = None,
    depth: Depth = 100,
    limit: Limit = None,
    model: opt.Model = None,
    adapter: opt.Adapter = None,
    prompt: opt.PromptName = None,
    option: opt.StrategyOptions = None,
    backbone: opt.BackboneName = "transformers",
    backbone_option: opt.BackboneOptions = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    block: Annotated[int, typer.Option(metavar="N", min=1, help="Queries ranked, and made durable, together.")] = 32,
) -> None:
    """Order whole lists with a teacher of windows.

    What is written is a TREC run to train on. Windows slid once give the best few only; here they are slid again
    over all that is not fixed yet, 9 times for 100 passages. A teacher without windows needs no more than
    'rerank run'. A run that died resumes.
    """
    opt.show_log()
    engine = opt.Engine(model, adapter, backbone, backbone_option, device, dtype)
    inner, engine = engine.described(strategy, prompt, option)
    if not isinstance(inner, Listwise):
        raise InputError(f"{strategy} has no windows to slide; use 'rerank run', whose run is a teacher as it is")
    made = MultiPass(inner)
    settings = {
        "dataset": dataset,
        "run": first_stage,
        "depth": depth,
        "limit": limit,
        "strategy": strategy,
        "multi_pass": True,
        "options": {name: getattr(inner, name) for name in options_of(type(inner))},
        "prompt": made.prompt.identity,
        **engine.settings,
        "block": block,
    }
    target = Path(output)
    if output == "-":
        raise InputError("--output is a file here, so that a run that died can resume")
    with only_process(target):
        if is_complete(target, settings):
            opt.notes.print(f"{output} is already there, made with these settings")
            return
        journal = Journal(journal_path(target), settings)
        known, requests = requests_of(dataset, first_stage, None, depth, limit)
        bar = Bar(f"{strategy}, multi-pass", known, made.calls, done=journal.totals.queries)
        ranker = engine.load(made, on_progress=bar.show)
        with bar:
            totals = resumable_run(
                ranker, bar.watch(requests), target, tag=f"rerank-{strategy}-multi-pass", block=block, journal=journal
            )
    report(totals)
