"""`rerank data clicks | features | score`: simulated click logs, feature vectors, and rankings by a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rerank.cli import options as opt
from rerank.cli.one import counted
from rerank.clicks import Shown, simulate, write_log
from rerank.data import load_dataset, read_features, read_run, write_features, write_run
from rerank.errors import InputError
from rerank.training.click_parts import Simulate

Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to write.")]
FirstStage = Annotated[
    str | None,
    typer.Option("--run", metavar="FILE", help="A TREC run with the ranking; default: the dataset's, else BM25."),
]


def clicks(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="With judgments; for BEIR 'FOLDER:SPLIT'; or feature vectors, '….svm'."),
    ],
    output: Output,
    sessions: Annotated[int, typer.Option("--sessions", "-n", metavar="N", min=1, help="How many.")] = 10_000,
    first_stage: FirstStage = None,
    size: Annotated[int, typer.Option("--size", "-k", metavar="N", min=1, help="Documents shown.")] = 10,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-O",
            metavar="NAME=VALUE",
            help="Of the users, as model=cascade, eta=2, noise=0.05, trust=0.3, drift=2; may be repeated.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the users.")] = 0,
) -> None:
    """Simulate users who click on rankings, as a click log.

    Each session is of a query drawn evenly; what is judged relevant is wanted. Queries without anything relevant
    among what is shown have users too: they click by mistake.
    """
    opt.show_log()
    users = _users(option)
    target = new_file(output, ".jsonl", "click logs")
    shown = _shown(dataset, first_stage, size)
    longest = max(len(each.labels) for each in shown)
    model = users.users()
    model.curve(longest)  # says so where there are too few positions
    highest = max(label for each in shown for label in each.labels)
    if not highest > 0:
        raise InputError(f"{dataset}: nothing that is shown is relevant; take another run or a greater --size")
    drawn = simulate(shown, model, sessions=sessions, noise=users.noise, highest=highest, seed=seed)
    clicked = write_log(target, drawn)
    opt.notes.print(
        f"{output}: {counted(sessions, 'session', 'sessions')} of {counted(len(shown), 'query', 'queries')}, "
        f"{counted(clicked, 'click', 'clicks')}"
    )


def features(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="With judgments; for BEIR 'FOLDER:SPLIT'.")],
    output: Output,
    first_stage: FirstStage = None,
    depth: Annotated[int, typer.Option("--depth", "-k", metavar="N", min=1, help="Candidates of each query.")] = 100,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N queries.")] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings/--no-embeddings", help="With the cosine of the embedded bi-encoder.")
    ] = True,
    device: opt.Device = None,
) -> None:
    """Write feature vectors of a dataset's candidates, as SVMLight text.

    The features are in docs/clicks.md: BM25, query likelihood, overlaps and lengths, of title, text and both.
    """
    from rerank.training.vectors import NAMES, vectors

    opt.show_log()
    target = new_file(output, ".svm", "feature vectors")
    opt.say(f"reading {dataset}")
    loaded = load_dataset(dataset)
    if loaded.qrels is None:
        raise InputError(f"{dataset} has no judgments for labels")
    judged = loaded.qrels
    stage = None if first_stage is None else read_run(first_stage)
    candidates = [each for each in loaded.candidates(depth, run=stage) if each.query.query_id in judged][:limit]
    if not candidates:
        raise InputError(f"no query of {dataset} has both judgments and candidates")
    made = vectors(candidates, loaded, embeddings=embeddings, device=device)
    write_features(target, made)
    queries, documents = len(made.query_ids), len(made.labels)
    opt.notes.print(
        f"{output}: {counted(queries, 'query', 'queries')}, {counted(documents, 'document', 'documents')}; features: "
        + ", ".join(NAMES[: made.values.shape[1]])
    )


def score(
    network: Annotated[Path, typer.Argument(metavar="FOLDER", help="What training left in network/.")],
    vectors: Annotated[Path, typer.Argument(metavar="FILE", help="Feature vectors, SVMLight text.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The TREC run; '-' is standard output.")
    ] = "-",
) -> None:
    """Rank feature vectors with a trained network.

    What is written is a TREC run.
    """
    from rerank.training.network import Network, rankings

    opt.show_log()
    loaded = Network.load(network)
    read = read_features(vectors, loaded.features)
    found = rankings(read, loaded.scores(loaded.normalised(read)))
    if output == "-":
        import sys

        write_run(sys.stdout, found, "rerank-features")
    else:
        write_run(output, found, "rerank-features")


def _users(option: list[str] | None) -> Simulate:
    from pydantic import ValidationError

    from rerank.training.recipe import told

    values: dict[str, object] = {}
    for name, value in opt.pairs(option).items():
        several = isinstance(value, str) and "," in value
        values[name] = str(value).split(",") if several else value
    for name in ("examination", "persistence"):
        if name in values and not isinstance(values[name], list):
            values[name] = [values[name]]
    try:
        return Simulate.model_validate(values)
    except ValidationError as error:
        raise InputError(f"--option: {told(error, Simulate)}") from None


def _shown(dataset: str, first_stage: str | None, size: int) -> list[Shown]:
    run = None if first_stage is None else read_run(first_stage)
    if ".svm" in Path(dataset).suffixes:
        return _of_features(dataset, run, size)
    opt.say(f"reading {dataset}")
    loaded = load_dataset(dataset)
    if loaded.qrels is None:
        raise InputError(f"{dataset} has no judgments, which say what users want")
    shown = []
    for each in loaded.candidates(size, run=run):
        judged = loaded.qrels.get(each.query.query_id)
        if judged:
            ids = tuple(passage.doc_id for passage in each.passages)
            labels = tuple(float(max(0, judged.get(doc_id, 0))) for doc_id in ids)
            shown.append(Shown(each.query.query_id, ids, labels))
    if not shown:
        raise InputError(f"no query of {dataset} has both judgments and candidates")
    return shown


def _of_features(dataset: str, run: dict[str, dict[str, float]] | None, size: int) -> list[Shown]:
    read = read_features(dataset)
    shown = []
    for number, query_id in enumerate(read.query_ids):
        span = read.rows(number)
        rows = list(range(span.start, span.stop))
        if run is not None:
            scores = run.get(query_id, {})
            rows = sorted((r for r in rows if read.doc_ids[r] in scores), key=lambda row: -scores[read.doc_ids[row]])
        if rows:
            labels = tuple(max(0.0, float(read.labels[row])) for row in rows[:size])
            shown.append(Shown(query_id, tuple(read.doc_ids[row] for row in rows[:size]), labels))
    if not shown:
        raise InputError(f"the run and {dataset} share no document")
    return shown


def new_file(output: str, ending: str, what: str) -> Path:
    """The path of a file that is not there yet, in a folder that is; `what` it holds, for the error."""
    path = Path(output)
    if ending not in path.suffixes:
        raise InputError(f"--output {output}: {what} end in {ending} (or {ending}.gz)")
    if path.exists():
        raise InputError(f"{output} exists; delete it or give another output")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no such folder to write in")
    return path
