"""`rerank compress`: a finished adapter at a lower rank."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from rerank.cli.options import screen, show_log
from rerank.errors import InputError


def compress(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A LoRA adapter: a directory or a name.")],
    rank: Annotated[int, typer.Option("--rank", "-r", metavar="N", min=1, help="The rank to bring it to.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write it.")],
) -> None:
    """Bring a LoRA adapter to a lower rank.

    By the truncated singular value decomposition of every layer's change, the best there is in least squares.
    """
    show_log()
    from rerank.backbones.adapters import folder_of
    from rerank.training.methods import compress as squeeze

    folder = folder_of(adapter)
    if output.exists():
        raise InputError(f"{output} exists; give another --output")
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("README.md"))
    try:
        kept = squeeze(output, rank)
    except BaseException:  # a copy that looks compressed and is not
        shutil.rmtree(output)
        raise
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    screen.print(f"{output}: rank {rank}, {kept:.1%} of the adapter's sum of squares, {size:.1f} MB")
