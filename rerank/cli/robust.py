"""`rerank robust`: what is left of a ranker's order when queries, passages and lists are disturbed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli import options as opt
from rerank.cli.cascade import Plan, plan
from rerank.cli.compare_table import PRINT, Format
from rerank.cli.evaluate import QrelsFile
from rerank.cli.one import counted
from rerank.cli.progress import watching
from rerank.data.dense import embed_rows
from rerank.errors import CapabilityError, InputError
from rerank.prompts.answers import Binary, Graded, Likelihood
from rerank.strategies import Pointwise

if TYPE_CHECKING:
    from rerank.robustness import Synonyms
    from rerank.robustness.study import Certifying, Sample, Study


_DISPENSABLE = ("queries", "RBO", "95% interval", "tau", "p")  # where the terminal is narrow, the first ones first


def robust(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="With judgments; see 'rerank ls datasets'.")],
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            "-s",
            metavar="NAME",
            help="As for 'rerank run', cascades too; may be repeated. Default: pointwise.",
        ),
    ] = None,
    qrels: QrelsFile = None,
    first_stage: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="FILE", help="A TREC run with the candidates; default: the dataset's, else BM25."
        ),
    ] = None,
    perturb: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="See 'rerank ls perturbations'; a kind of them, or 'none'; may be repeated. Default: all.",
        ),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET",
            help="Another domain, with its own judgments, to compare the gain over the first stage; may be repeated.",
        ),
    ] = None,
    queries: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first N judged queries of each dataset.")
    ] = None,
    depth: Annotated[int, typer.Option("--depth", "-k", metavar="N", min=2, help="Candidates for each query.")] = 100,
    synonyms: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Lines 'word<TAB>synonym synonym'. Default: near words of the embedded bi-encoder."
        ),
    ] = None,
    certify: Annotated[
        list[int] | None,
        typer.Option(
            metavar="K", min=1, help="Certify the first K by randomised smoothing (pointwise only); may be repeated."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Texts drawn of a passage, to certify.")] = 1000,
    attacked: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Words of a passage that an attack may replace, to certify. Default: all."
        ),
    ] = None,
    score_range: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="The scores that become 0 and 1, to certify. Default: by the prompt."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of what is drawn.")] = 0,
    measure: Annotated[str, typer.Option(metavar="NAME", help="As RR@10.")] = "nDCG@10",
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Where the runs are kept; what is there is not run again."),
    ] = Path("runs/robust"),
    style: Annotated[Format, typer.Option("--format", "-f", help="How it is printed.")] = Format.TABLE,
    model: opt.Model = None,
    adapter: opt.Adapter = None,
    prompt: opt.PromptName = None,
    option: opt.StrategyOptions = None,
    backbone: opt.BackboneName = "transformers",
    backbone_option: opt.BackboneOptions = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    block: Annotated[int, typer.Option(metavar="N", min=1, help="Queries ranked, and made durable, together.")] = 16,
) -> None:
    """Measure rankers on queries and passages as given, and disturbed.

    Typing errors, synonyms, another order of the candidates, passages that order to be ranked first, distractors: the
    change of the measure with its interval and p (randomisation test, Holm), and how far the order stays the same
    (Kendall's tau, RBO). --certify tells for which queries no exchange of synonyms brings another passage among the
    first K (CertDR). docs/robustness.md defines all of it.
    """
    from rerank.measure import Measure
    from rerank.robustness import Setting, chosen
    from rerank.robustness.study import Sample, study

    opt.show_log()
    Measure.parse(measure)
    picked = chosen(perturb)
    plans = _plans(
        strategy or ["pointwise"], opt.Engine(model, adapter, backbone, backbone_option, device, dtype), prompt, option
    )
    bounded = _bounded(plans, score_range) if certify else {}
    _check_certifying(certify, depth, samples, attacked, score_range)
    opt.say(f"reading {dataset}")
    home = Sample.read(dataset, qrels=qrels, run=first_stage, queries=queries, depth=depth)
    away = [Sample.read(each, queries=queries, depth=depth) for each in domain or []]
    if twice := [each.name for each in away if each.name == home.name]:
        raise InputError(f"{twice[0]} is given as a domain and as the dataset; leave one out")
    out.mkdir(parents=True, exist_ok=True)
    needed = bool(certify) or any(each.needs_synonyms for each in picked)
    if synonyms is not None and not needed:
        raise InputError("--synonyms is given, and nothing that is asked for needs them; leave them out")
    known = _synonyms(home, synonyms, out, device) if needed else None
    passages = {p.doc_id: p for request in home.requests for p in request.passages}
    setting = Setting(seed, home.qrels, tuple(passages.values()), known)
    found = study(
        [home, *away],
        plans,
        picked,
        setting,
        out,
        watching=watching,
        certifying=_certifying(known, bounded, certify, samples, attacked, seed),
        measure=measure,
        block=block,
    )
    _print(found, style)
    if found.failed:
        for each in found.failed[:10]:
            opt.notes.print(f"not asked, given order kept: {each}")
        opt.notes.print(
            f"{counted(len(found.failed), 'query', 'queries')} could not be asked and kept their given order"
        )
        raise typer.Exit(1)


def _plans(texts: list[str], engine: opt.Engine, prompt: str | None, option: list[str] | None) -> dict[str, Plan]:
    """By what was written."""
    if len(texts) > 1 and (prompt is not None or option):
        raise InputError(
            f"--prompt and --option are for one ranker, and there are {len(texts)}; write them with theirs, "
            f"as in '{texts[0]}(NAME=VALUE)'"
        )
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise InputError(f"--strategy {twice[0]} is given twice; leave one out")
    return {text: plan(text, engine, prompt, option) for text in texts}


def _bounded(plans: dict[str, Plan], score_range: tuple[float, float] | None) -> dict[str, Callable[[float], float]]:
    """How each ranker's scores are brought to [0, 1]: by a fixed rising function, as the certificate asks."""
    found = {}
    for name, planned in plans.items():
        strategies = [each for each, _ in planned.asking]
        only = len(planned.stages) == 1 and len(planned.stages[0].terms) == 1
        if not only or not isinstance(strategies[0], Pointwise):
            raise CapabilityError(
                f"{name} cannot be certified: randomised smoothing needs a ranker that scores each passage alone; "
                "give pointwise strategies only, or leave out --certify"
            )
        found[name] = _to_unit(strategies[0], score_range)
    return found


def _to_unit(strategy: Pointwise, score_range: tuple[float, float] | None) -> Callable[[float], float]:
    if score_range is not None:
        low, high = score_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"--score-range is {low:g} {high:g}; give two numbers, the lower first")
        return lambda score: min(1.0, max(0.0, (score - low) / (high - low)))
    answer = strategy.prompt.answer
    if isinstance(answer, Graded):
        least, most = min(answer.grades.values()), max(answer.grades.values())
        return lambda score: min(1.0, max(0.0, (score - least) / (most - least)))
    if isinstance(answer, Likelihood):
        return lambda score: math.exp(min(0.0, score))
    if isinstance(answer, Binary):
        return lambda score: 1 / (1 + math.exp(-score)) if score > 0 else math.exp(score) / (1 + math.exp(score))
    raise InputError(
        f"the scores of prompt {strategy.prompt.name} have no bounds that are known; give them with --score-range, "
        "as in --score-range -1 1 for cosines"
    )


def _check_certifying(
    certify: list[int] | None,
    depth: int,
    samples: int,
    attacked: int | None,
    score_range: tuple[float, float] | None,
) -> None:
    if not certify:
        given = {
            "--samples": samples != 1000,
            "--attacked": attacked is not None,
            "--score-range": score_range is not None,
        }
        if unused := [name for name, there in given.items() if there]:
            raise InputError(f"{unused[0]} is for --certify K; give that too, or leave it out")
    elif max(certify) >= depth:
        raise InputError(f"--certify {max(certify)} of {depth} candidates leaves none to keep out; give a lower K")


def _certifying(
    known: Synonyms | None,
    bounded: dict[str, Callable[[float], float]],
    certify: list[int] | None,
    samples: int,
    attacked: int | None,
    seed: int,
) -> Certifying | None:
    from rerank.robustness.smoothing import Smoothing
    from rerank.robustness.study import Certifying

    if not certify or known is None:
        return None
    smoothing = Smoothing.of(known, samples=samples, words=attacked, seed=seed)
    return Certifying(smoothing, tuple(sorted(set(certify))), bounded)


def _synonyms(sample: Sample, file: Path | None, out: Path, device: str | None) -> Synonyms:
    """Of the file; else of the words of the sample, kept in the output folder."""
    from rerank.backbones.bi_encoder import BiEncoderBackbone
    from rerank.robustness.synonyms import Synonyms, vocabulary

    if file is not None:
        return Synonyms.read(file)
    words = vocabulary(sample.requests)
    kept = out / f"synonyms-{_digest(words)}.json"
    if kept.exists():
        return Synonyms.load(kept)
    opt.say(f"embedding {counted(len(words), 'word', 'words')} for their synonyms")
    encoder = BiEncoderBackbone.load(device=device, cache_mb=0)
    found = Synonyms.embedded(words, partial(embed_rows, encoder, "document"))
    found.save(kept)
    return found


def _digest(words: list[str]) -> str:
    import hashlib

    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def _print(found: Study, style: Format) -> None:
    from rerank.robustness import table

    if style is Format.JSON:
        typer.echo(json.dumps(table.record(found), allow_nan=False))
        return
    for i, part in enumerate(found.parts):
        if i:
            typer.echo()
        told = f"{part.dataset}: {counted(part.queries, 'query', 'queries')}, {part.depth} candidates"
        if style is Format.TABLE:
            opt.screen.print(told, soft_wrap=True)
        header, rows = table.header(found), [table.cells(row) for row in part.rows]
        if style is Format.TABLE:
            header, rows = _fitting(header, rows)
        PRINT[style](header, rows)
    opt.notes.print(table.explained(found), style="dim")
    for line in table.risen(found):
        opt.notes.print(line)
    for ranker, dataset, gain, difference in table.shifts(found):
        opt.notes.print(
            f"{ranker} on {dataset}: {gain:+.1%} over the first stage, {100 * difference:+.1f} points to at home"
        )


def _fitting(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the columns that a terminal has no room for; in a pipe or a file all of them."""
    if not opt.folds():
        return header, rows
    left_out = []
    for name in _DISPENSABLE:
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        if sum(widths) + 2 * (len(widths) - 1) <= opt.screen.width:
            break
        place = header.index(name)
        header, *rows = [[*row[:place], *row[place + 1 :]] for row in [header, *rows]]
        left_out.append(name)
    if left_out:
        opt.notes.print(f"no room for {', '.join(left_out)}; --format json has all", style="dim")
    return header, rows
