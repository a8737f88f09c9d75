"""`rerank mcp`: the ranker as a tool of a language model's host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli import options as opt
from rerank.cli.cascade import plan
from rerank.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from rerank.integrations.mcp import Limits


def mcp(
    strategy: opt.CascadeText = "pointwise",
    model: opt.Model = None,
    adapter: opt.Adapter = None,
    prompt: opt.PromptName = None,
    option: opt.StrategyOptions = None,
    backbone: opt.BackboneName = "transformers",
    backbone_option: opt.BackboneOptions = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    strict: opt.Strict = False,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", "-L", metavar="NAME=VALUE", help="As documents=50; may be repeated.")
    ] = None,
) -> None:
    """Serve a ranker as an MCP tool, over standard input and output; a language model's host starts it."""
    from rerank.integrations.mcp import serve_stdio

    limits = _limits(limit)
    engine = opt.Engine(model, adapter, backbone, backbone_option, device, dtype)
    planned = plan(strategy, engine, prompt, option)
    opt.say("speaks MCP over standard input and output, for the host that starts it; Ctrl-D ends it")
    serve_stdio(lambda: planned.load(strict=strict), limits)


def _limits(given: list[str] | None) -> Limits:
    from pydantic import ValidationError

    from rerank.integrations.mcp import Limits

    try:
        return Limits.model_validate(opt.pairs(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UnknownNameError("limit", name, Limits.model_fields) from None
        raise InputError(f"--limit {name}: {first['msg']}") from None
