"""`bigqa data`: gets data, and looks at it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bigqa.console import say, show, tell
from bigqa.run.options import MODEL_HELP, ranged

app = typer.Typer(no_args_is_help=True, help="Get data, and look at it.")


@app.command("inspect")
def inspect_data(
    file: Annotated[Path, typer.Argument(help="Questions with answers.")],
    model: Annotated[str, typer.Argument(help=MODEL_HELP + " Only its vocabulary is used.")],
    tokenizer: Annotated[str | None, typer.Option(help="A vocab.txt, folder or hub id.")] = None,
    seq_len: Annotated[int, ranged("seq_len", "Longest window, in tokens.")] = 512,
    doc_stride: Annotated[int, ranged("doc_stride", "Tokens that each next one advances.")] = 128,
    max_query_length: Annotated[int, ranged("max_query_length", "Longest question.")] = 64,
    max_answer_length: Annotated[int, ranged("max_answer_length", "Longest answer.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count windows and padding, and give the best score that the vocabulary allows."""
    from bigqa.models.sources import load_tokenizer, resolve
    from bigqa.show.scores import inspection_table
    from bigqa.tasks.coverage import check_text
    from bigqa.tasks.inspection import inspect_file
    from bigqa.tasks.windows import Lengths

    lengths = Lengths(
        seq_len=seq_len,
        doc_stride=doc_stride,
        max_query_length=max_query_length,
        max_answer_length=max_answer_length,
    )
    made = load_tokenizer(resolve(model, tokenizer=tokenizer))
    if (unknown := check_text(file, made, refuse=False)) is not None:
        tell(unknown)
    found = inspect_file(file, made, lengths)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show(inspection_table(found))


def _download(name: str, out: Path) -> None:
    from bigqa.tasks.download import download

    for line in download(name, out):
        say(line)


@app.command()
def korquad1(out: Annotated[Path, typer.Option(help="Where the files go.")]) -> None:
    """Download KorQuAD 1.0 from its authors."""
    _download("korquad1", out)


@app.command()
def korquad2(out: Annotated[Path, typer.Option(help="Where the files go.")]) -> None:
    """Download KorQuAD 2.1 from its authors."""
    _download("korquad2", out)
