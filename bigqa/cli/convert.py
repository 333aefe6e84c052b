"""`bigqa convert`: turns released checkpoints into Hugging Face folders."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bigqa.console import say
from bigqa.language import tr

app = typer.Typer(no_args_is_help=True, help="Turn released checkpoints into Hugging Face folders.")


@app.callback()
def _several() -> None:
    """Keep the kind of checkpoint a command of its own, though there is one."""


@app.command()
def enliple(
    src: Annotated[Path, typer.Argument(help="A released folder: config, .bin and vocab.txt.")],
    out: Annotated[Path, typer.Argument(help="The Hugging Face folder, made new.")],
    activation: Annotated[Literal["auto", "gelu", "gelu_new"], typer.Option(help="auto: as released.")] = "auto",
    qa_head: Annotated[Path | None, typer.Option(help="A QA head kept in a file of its own.")] = None,
) -> None:
    """Turn a released Enliple checkpoint into a Hugging Face folder."""
    from bigqa.models.enliple import convert as convert_enliple

    convert_enliple(src, out, activation=activation, qa_head=qa_head)
    say(tr("written: {path}", path=out))
