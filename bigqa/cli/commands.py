"""All commands, put together. In: nothing. Out: the Typer application."""

from collections.abc import Callable
from typing import Annotated, Literal

import typer

from bigqa import __version__, interrupts
from bigqa.cli import checkpoint, convert, data
from bigqa.cli.bench import bench
from bigqa.cli.bundle import bundle
from bigqa.cli.demo import demo
from bigqa.cli.doctor import doctor
from bigqa.cli.evaluate import evaluate
from bigqa.cli.examples import add_examples
from bigqa.cli.generate import generate
from bigqa.cli.launch_files import launch_files
from bigqa.cli.page import page
from bigqa.cli.predict import predict
from bigqa.cli.probe import probe
from bigqa.cli.rehearse import rehearse
from bigqa.cli.seeds import seeds
from bigqa.cli.sweep import sweep
from bigqa.cli.table import table
from bigqa.cli.train import train
from bigqa.console import say
from bigqa.language import tr

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
COMMANDS: dict[str, Callable[..., None]] = {
    "probe": probe, "rehearse": rehearse, "train": train, "seeds": seeds, "sweep": sweep, "page": page,
    "predict": predict, "evaluate": evaluate, "generate": generate, "bench": bench, "table": table, "demo": demo,
    "doctor": doctor, "bundle": bundle, "launch-files": launch_files,
}  # fmt: skip
for name, function in COMMANDS.items():
    app.command(name)(function)
app.add_typer(data.app, name="data")
app.add_typer(convert.app, name="convert")
app.add_typer(checkpoint.app, name="checkpoint")
add_examples(app)


def _version(asked: bool) -> None:
    if asked:
        say(f"bigqa {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    lang: Annotated[
        Literal["ko", "en"] | None,
        typer.Option(help="Language of what is shown, after any command too.  [default: BIGQA_LANG, else LANG]"),
    ] = None,
) -> None:
    """Train large models in the memory you have."""
    interrupts.say_when_left(tr("interrupted"))
