"""One command for every start of a run: `--resume auto`. In: options. Out: whether it begins or goes on, and with what.

A machine that is lent for hours is given the same words each time. So those that cannot change on a resume may be
repeated as long as they say the same; what a word says is compared with what the run was begun with.
"""

from pathlib import Path
from typing import Any

from bigqa.errors import UsageError
from bigqa.files import read_json
from bigqa.language import tr
from bigqa.ranges import option_of
from bigqa.run.folder import CHANGEABLE, MOVABLE
from bigqa.settings import Settings, read_settings

AUTO = Path("auto")


def resolved(options: dict[str, Any], resume: Path | None) -> tuple[dict[str, Any], Path | None]:
    """Return the options and the folder to go on with, where `--resume auto` leaves that open. Raises: UsageError."""
    if resume != AUTO:
        return options, resume
    out = options.get("out")
    if out is None:
        raise UsageError(tr("--resume auto wants --out: the run folder to go on with, or to begin"))
    if not (out / "config.json").is_file():
        return options, None
    begun = read_settings(out / "config.json")
    changes = {name: value for name, value in options.items() if not _is_repeated(name, value, begun)}
    return changes, out


def over(settings: Settings) -> str | None:
    """Say that a run has nothing left to do; none where it has."""
    file = settings.out / "report.json"
    page = settings.out / "report.html"  # the last of what is written
    if not (file.is_file() and page.is_file() and (settings.out / "model" / "config.json").is_file()):
        return None
    report = read_json(file, "the run's report")
    of = report.get("settings", {}).get("dev_file")
    if settings.dev_file is not None and ("scores" not in report or of != str(settings.dev_file)):
        return None
    return f"{settings.out} is complete: {report['steps']} steps; the model is in {settings.out / 'model'}"


def _is_repeated(name: str, value: Any, begun: Settings) -> bool:
    """Whether an option says what the run was begun with. Raises: UsageError where it cannot say otherwise."""
    was = begun.task_options.get(name, getattr(begun, name, None))
    if name == "out" or str(value) == str(was):
        return True
    if name in CHANGEABLE | MOVABLE:
        return False
    raise UsageError(
        tr(
            "{option} {value}: {out} was begun with {was}; leave it so, or begin another --out",
            option=option_of(name),
            value=value,
            out=begun.out,
            was=was,
        )
    )
