"""What pages have from the code. In: a page's text with `<!-- made: NAME -->` in it. Out: the text with NAME's table.

MkDocs calls `on_page_markdown` for each page of a build, so that a reference cannot be older than the code. Nothing
here needs MkDocs: the tests make every table without it.
"""

import ast
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

from pydantic import BaseModel

MARK = re.compile(r"<!-- made: ([a-z-]+) -->")
TIERS = ("nothing", "rounding only", "what is learned")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page's text with what is made in the place of each mark."""
    return MARK.sub(lambda found: MADE[found[1]](), markdown)


def commands() -> str:
    """Return a section for each command: usage, what it does, options, example; as its own `--help` has them."""
    return "\n\n".join(_section(name, command) for name, command in leaves(parser()))


def strategies() -> str:
    """Return every named strategy, what it changes, and where it stands on the axes."""
    from bigqa.strategy import STRATEGIES, Strategy

    plain = Strategy(precision="bf16")
    rows = []
    for name, one in STRATEGIES.items():
        axes = [(axis, value) for axis, value in one.model_dump().items() if value != getattr(plain, axis)]
        told = ", ".join(axis if value is True else f"{axis} {value}" for axis, value in axes)
        rows.append((f"`{name}`", f"{one.tier}: {TIERS[one.tier]}", told or "nothing set"))
    return table(("strategy", "tier: what it changes", "axes, beside plain training in bf16"), rows)


def axes() -> str:
    """Return the axes of a strategy."""
    from bigqa.strategy import Strategy

    return fields(Strategy)


def settings() -> str:
    """Return the fields of a run's config.json."""
    from bigqa.settings import Settings

    return fields(Settings)


def candidate() -> str:
    """Return the fields of `predicted` in a plan."""
    from bigqa.plan.candidates import Candidate

    return fields(Candidate)


def rung() -> str:
    """Return the fields of one entry of a plan's ladder."""
    from bigqa.settings import Rung

    return fields(Rung)


def metrics() -> str:
    """Return the measures of answers that `bigqa evaluate` has."""
    from bigqa.tasks.scoring import METRICS

    rows = [
        (f"`{name}`", f"exact match, {one.overlap}", "yes" if one.scores_impossible else "no")
        for name, one in METRICS.items()
    ]
    return table(("metric", "scores", "questions without an answer"), rows)


def best_scores() -> str:
    """Return for each task the score that tells the best model, and the others that `--metric` takes."""
    from bigqa.tasks.registry import kind_of, names

    rows = []
    for kind in map(kind_of, names()):
        others = ", ".join(f"`{name}`" for name in sorted(kind.score_names - {kind.watched}))
        rows.append((f"`{kind.name}`", f"`{kind.watched}`", others))
    return table(("task", "score by default", "others"), rows)


def cards() -> str:
    """Return the cards that a plan can be made for without having them."""
    from bigqa.machine.gpus import GPUS

    rows = [
        (f"`{card.name}`", f"{card.memory_mib:,} MiB", "bf16" if card.has_bf16 else "fp16", card.source)
        for card in GPUS
    ]
    return table(("`--gpu`", "memory", "low precision", "source of its figures"), rows)


def presets() -> str:
    """Return the models that have a name of their own, and the published recipe of each."""
    from bigqa.models.presets import PRESETS

    rows = []
    for name, one in PRESETS.items():
        shape, recipe = one.config, one.recipe
        size = f"{shape['num_hidden_layers']} layers of {shape['hidden_size']}"
        told = (
            f"windows of {recipe.seq_len}, {recipe.global_batch} in a step, lr {recipe.lr:g}, {recipe.epochs:g} epochs"
        )
        rows.append((f"`{name}`", size, told))
    return table(("model", "size", "published recipe"), rows)


def ranges() -> str:
    """Return which numbers each setting takes."""
    from bigqa.ranges import RANGES

    return table(("setting", "takes"), [(f"`{name}`", str(one)) for name, one in RANGES.items()])


def python() -> str:
    """Return what mkdocstrings makes the public names' documentation of, each from where it lives."""
    import bigqa

    parts = [
        f"::: {place}.{name}\n    options:\n      heading: bigqa.{name}\n      toc_label: bigqa.{name}"
        for name, place in (bigqa.PUBLIC | bigqa.CALLED).items()
    ]
    return "\n\n".join(["### bigqa.\\_\\_version\\_\\_\n\nThe version, as text: `bigqa.__version__`.", *parts])


def rooms() -> str:
    """Return the packages of bigqa, each with the first line of what it says of itself."""
    from pathlib import Path

    import bigqa

    found = sorted(Path(bigqa.__file__).parent.glob("*/__init__.py"))
    told = ((file.parent.name, ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))) for file in found)
    return table(("room", "what it knows"), [(f"`bigqa/{name}/`", text.splitlines()[0]) for name, text in told if text])


MADE: dict[str, Callable[[], str]] = {
    "commands": commands, "strategies": strategies, "axes": axes, "settings": settings, "candidate": candidate,
    "rung": rung, "metrics": metrics, "best-scores": best_scores, "cards": cards, "presets": presets,
    "ranges": ranges, "rooms": rooms, "python": python,
}  # fmt: skip
"""Name in a mark -> what makes its text."""


def parser() -> Any:
    """Return the parser of bigqa's command line, whose help is in English."""
    from bigqa.arguments import parser_of
    from bigqa.cli import app
    from bigqa.language import VARIABLE

    with patch.dict(os.environ, {VARIABLE: "en"}):  # whoever builds the pages
        return parser_of(app)


def leaves(command: Any, before: str = "bigqa") -> Iterator[tuple[str, Any]]:
    """Yield the commands that do something, each with its whole name."""
    below = getattr(command, "commands", {})
    for name, one in below.items():
        yield from leaves(one, f"{before} {name}")
    if not below:
        yield before, command


def _section(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    records = [(one.param_type_name, one.get_help_record(context)) for one in command.params]
    parts = [f"## {name}", textwrap.dedent(command.help or ""), f"```text\n{usage}\n```"]
    for kind, head in (("argument", "argument"), ("option", "option")):
        rows = [(f"`{record[0]}`", record[1]) for one, record in records if one == kind and record is not None]
        parts += [table((head, "what it is"), rows)] if rows else []
    if command.epilog:
        lines = [line for line in command.epilog.replace("\b", "").strip("\n").splitlines() if line.strip()]
        parts.append(f"{lines[0]}\n\n```bash\n{textwrap.dedent(chr(10).join(lines[1:]))}\n```")
    return "\n\n".join(parts)


def fields(record: type[BaseModel]) -> str:
    """Return a record's fields: what each holds, what it is where nothing is said, and what it means."""
    docs = dict(_said_of(record))
    rows = []
    for name, field in record.model_fields.items():
        default = "needed" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
        rows.append((f"`{name}`", f"`{_kind(field.annotation)}`", default, docs.get(name, "")))
    return table(("field", "holds", "default", "what it means"), rows)


def _kind(annotation: Any) -> str:
    if inspect.isclass(annotation) and not hasattr(annotation, "__args__"):
        return annotation.__name__
    return re.sub(r"\b(typing|pathlib|bigqa[a-z_.]*)\.", "", str(annotation))


def _said_of(record: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield the fields of a class that a text below tells about."""
    [body] = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        match (field, text):
            case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said)))):
                yield name, " ".join(said.split())


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown has it."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
