"""`rerank serve`: the service."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli import options as opt
from rerank.cli.cascade import Plan, load_all
from rerank.errors import InputError

if TYPE_CHECKING:
    from rerank.cli.serve_file import ServeFile
    from rerank.server.keys import Keys

_BESIDE_A_FILE = {"host", "port", "config", "without_keys"}  # the rest is in the file then


def serve(
    context: typer.Context,
    strategy: opt.CascadeText = "pointwise",
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 is any that is free.")] = 8080,
    served_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-name",
            metavar="NAME",
            help="What clients call the ranker; may be repeated. Default: its strategy.",
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", metavar="FILE", help="A YAML file, for several rankers.")
    ] = None,
    model: opt.Model = None,
    adapter: opt.Adapter = None,
    prompt: opt.PromptName = None,
    option: opt.StrategyOptions = None,
    backbone: opt.BackboneName = "transformers",
    backbone_option: opt.BackboneOptions = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    scores: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How scores come into 0..1: exp, sigmoid or min-max. Default: what fits."),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Who may ask: a name and the SHA-256 of a key in a line. Or RERANK_API_KEYS."
        ),
    ] = None,
    without_keys: Annotated[bool, typer.Option("--without-keys", help="Let other machines ask without a key.")] = False,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", "-L", metavar="NAME=VALUE", help="As documents=200; may be repeated.")
    ] = None,
    log_text: Annotated[bool, typer.Option("--log-text", help="Write queries and documents into the log.")] = False,
    no_page: Annotated[bool, typer.Option("--no-page", help="Without the page at /, for people.")] = False,
) -> None:
    """Serve rankers over HTTP, as Cohere's, Jina's and text-embeddings-inference's clients ask for them."""
    from rerank.server import Served, Service
    from rerank.server.logs import write_to_stderr
    from rerank.server.running import ServiceServer, bound

    if config is not None:
        told = _from_file(context, config)
    else:
        part = {"name": (served_name or [_plain(strategy)])[0], "aliases": (served_name or [])[1:], "scores": scores}
        told = _of_flags(
            rankers=[part | {"strategy": strategy, "prompt": prompt, "options": option or []}],
            **{"model": model, "adapter": adapter, "backbone": backbone, "backbone_options": backbone_option or []},
            **{"device": device, "dtype": dtype, "keys": keys, "log_text": log_text},
            page=not no_page,
            limits=_limits(limit),
        )
    known = _keys(told)
    _check_reach(host, bool(known), without_keys)
    plans = told.plans()
    _check_names(told)
    socket = bound(host, port)
    rankers = load_all(plans)
    served = [
        Served(part.name, ranker, planned.title, tuple(names), part.scores)
        for part, ranker, planned, names in zip(told.rankers, rankers, plans, aliases(told, plans), strict=True)
    ]
    service = Service(served, limits=told.limits, keys=known, log_text=told.log_text)
    address = socket.getsockname()
    where = f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}"
    names = ", ".join(f"{each.name} ({each.title})" for each in served)
    write_to_stderr()
    started = f"rerank serves {names} at {where}; Ctrl-C ends it"
    server = ServiceServer(service, lambda: typer.echo(started), page=told.page)
    try:
        server.run(sockets=[socket])
    finally:
        for ranker in rankers:
            ranker.close()


def _plain(strategy: str) -> str:
    """A name for what has no other: the strategy as it was written, without white space."""
    return "".join(strategy.split())


def _from_file(context: typer.Context, path: str) -> ServeFile:
    from rerank.cli.serve_file import read

    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in _BESIDE_A_FILE and source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')} is given beside --config; write it into {path}")
    return read(path)


def _of_flags(**values: object) -> ServeFile:
    from pydantic import ValidationError

    from rerank.cli.serve_file import ServeFile

    try:
        return ServeFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = {"name": "served-name", "aliases": "served-name"}.get(str(first["loc"][2]), str(first["loc"][2]))
        raise InputError(f"--{flag}: {first['msg']}; given was {first['input']!r}") from None


def _limits(given: list[str] | None) -> object:
    from rerank.cli.serve_file import limits_of

    return limits_of(opt.pairs(given))


def _keys(told: ServeFile) -> Keys:
    from rerank.server.keys import ENVIRONMENT, Keys, from_environment, from_file

    known = from_file(told.keys) if told.keys is not None else Keys()
    return known + from_environment(os.environ.get(ENVIRONMENT, ""))


def _check_reach(host: str, keyed: bool, without_keys: bool) -> None:
    from rerank.server.running import is_local

    if without_keys and keyed:
        raise InputError("--without-keys is given, and so are keys; leave out one of them")
    if not (is_local(host) or keyed or without_keys):
        raise InputError(
            f"other machines can reach {host!r}, and there are no keys; give --keys FILE or RERANK_API_KEYS, or say "
            "--without-keys"
        )


def aliases(told: ServeFile, plans: Sequence[Plan]) -> list[list[str]]:
    """With the adapter's name for a ranker that has one, alone of all, unless it is the name of another."""
    taken = {name for part in told.rankers for name in (part.name, *part.aliases)}
    adapters = [{engine.adapter for _, engine in planned.asking if engine.adapter} for planned in plans]
    everywhere = [adapter for found in adapters for adapter in found]
    return [
        [*part.aliases, *(name for name in found if everywhere.count(name) == 1 == len(found) and name not in taken)]
        for part, found in zip(told.rankers, adapters, strict=True)
    ]


def _check_names(told: ServeFile) -> None:
    """Before anything is loaded; `Catalogue` says the same."""
    names = [name for part in told.rankers for name in dict.fromkeys((part.name, *part.aliases))]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two rankers would be served as {twice!r}; give each names of its own")
