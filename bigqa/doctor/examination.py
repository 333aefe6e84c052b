"""All findings of a machine, in the order of the page. In: a folder. Out: findings; none of them ends the others."""

from collections.abc import Callable, Iterable
from pathlib import Path

from bigqa.doctor import around, cards, host, places, software
from bigqa.doctor.finding import Finding, bare
from bigqa.language import tr
from bigqa.machine.hardware import detect


def examine(folder: Path) -> list[Finding]:
    """Look at this machine, and at the folder that runs are to be kept in."""
    hardware = detect()
    parts: dict[str, Callable[[], Iterable[Finding]]] = {
        tr("software"): software.findings,
        tr("cards"): lambda: cards.findings(hardware),
        tr("host"): lambda: host.findings(hardware),
        tr("places"): lambda: places.findings(folder),
        tr("around"): around.findings,
    }
    return [finding for name, look in parts.items() for finding in _looked(name, look)]


def _looked(name: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(look())
    except Exception as error:  # a machine that is out of order may answer anything
        text = tr("could not be looked at: {kind}: {error}", kind=type(error).__name__, error=bare(error))
        found.append(Finding(name, text, tr("it is not known"), tr("report it, with `bigqa doctor --json`")))
    return found
