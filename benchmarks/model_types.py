"""Every type of model with a question-answering head: what bigqa does with it. Run: `python -m benchmarks.model_types`.

In: small configurations of all types (`small_types`). Out: a report for each in `runs/types`, and the table in
MODEL_TYPES.md. Each type is tried in a fork of its own: windows of random tokens, trained by the trainer's own step on
the CPU; what has a report is not tried again. Measured is how far resident memory rises over a step of full windows,
and predicted what torch's tensors take at the peak.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import REPORTS, machine, read_report
from bigqa.console import quiet_libraries
from bigqa.errors import BigqaError, in_a_line
from bigqa.files import write_json
from bigqa.machine.heap import hold_tight
from bigqa.show import markers

NAME = "types"
FOLDER, PAGE = REPORTS / NAME, Path(__file__).parent / "MODEL_TYPES.md"
WINDOWS, TOKENS = 32, 128
"""Of the step that is measured."""
FEW, SHORT, STEPS, RATE = 4, 64, 8, 2e-3
"""Windows, tokens and steps that are learned by heart, and the learning rate."""
ROWS = {
    "plain": {},
    "recomputed": {"recompute": "full"},
    "adapted": {"adapters": "lora"},
}
"""What is trained: axes of a strategy on the CPU, in fp32."""
PLANNED = ("plain", "selective", "recompute", "8bit", "release-recompute", "lora", "qlora-recompute", "zero3")
"""Rows that are planned for a GPU."""
LIMIT_S = 3600.0


def main() -> None:
    """Try what has no report yet; write the table."""
    parser = argparse.ArgumentParser(description="Every type of model with a question-answering head.")
    parser.add_argument("--only", nargs="*", metavar="TYPE", help="try these, again if need be")
    parser.add_argument("--table", action="store_true", help="try nothing; write MODEL_TYPES.md from the reports")
    options = parser.parse_args()
    if not options.table:
        hold_tight()
        quiet_libraries()
        from benchmarks.small_types import kinds

        for kind in options.only or kinds():
            file = FOLDER / f"{kind}.json"
            if options.only or read_report(file) is None:
                found = in_a_fork(kind)
                write_json(file, found | machine())
                print(cells(kind, found), flush=True)
    markers.put_between(PAGE, NAME, table(FOLDER))


def in_a_fork(kind: str) -> dict[str, Any]:
    """Try a type where nothing is left of it afterwards. Returns: its report; of a crash, that it was one."""
    import benchmarks.types_worker  # noqa: F401 - once, before there are forks

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=lambda: there.send(tried(kind)))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv() if here.poll(LIMIT_S) else {"refused": "it does not come to an end"}
    except EOFError:
        found = {"refused": "its process ended"}
    process.kill()
    process.join()
    return found


def tried(kind: str) -> dict[str, Any]:
    """Return what became of a type."""
    from benchmarks.types_worker import learned, measured, planned

    found: dict[str, Any] = {}
    try:
        found |= planned(kind, PLANNED)
        found["learned"] = {row: _or_why(lambda axes=axes: learned(kind, axes)) for row, axes in ROWS.items()}
        found |= measured(kind)
    except BigqaError as error:
        found["refused"] = in_a_line(error)
    return found


def _or_why(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BigqaError as error:
        return in_a_line(error)


def table(folder: Path) -> str:
    """Return the Markdown table of the reports, and below it why what is not done is not."""
    from benchmarks.small_types import kinds

    reports = {file.stem: read_report(file) or {} for file in sorted(folder.glob("*.json"))}
    trained = [kind for kind, found in reports.items() if "refused" not in found]
    errors = [abs(error_of(reports[kind])) for kind in trained]
    waiting = [kind for kind in kinds() if kind not in reports]
    within, median = max(errors), sorted(errors)[len(errors) // 2]
    slowest = max(trained, key=lambda kind: reports[kind]["planned_s"])
    lines = [
        f"{len(reports)} types: {len(trained)} are trained, {len(reports) - len(trained)} refused. "
        f"Predicted within {within:.1%} of what was measured, in the median within {median:.1%}. "
        f"The rows that take longest to plan, {slowest}'s, take {reports[slowest]['planned_s']:.0f} s of a processor.",
        "",
        "| type | windows | loss, first and last | recomputed | adapted | MiB measured | predicted | error | rows |",
        "|---|---|---:|---|---|---:|---:|---:|---:|",
        *(f"| {' | '.join(cells(kind, found))} |" for kind, found in reports.items()),
        "",
        *notes(reports),
        *([f"- not tried yet, by want of time: {', '.join(waiting)}"] if waiting else []),
    ]
    return "\n".join(lines)


def cells(kind: str, found: dict[str, Any]) -> list[str]:
    """Return a type's row."""
    if "refused" in found:
        return [kind, "refused", *["-"] * 7]
    losses, rise, taken = found["learned"]["plain"], found["rise_bytes"], found["predicted_bytes"]
    did = ["yes" if isinstance(found["learned"][row], list) else "no" for row in ("recomputed", "adapted")]
    possible = sum(reason is None for reason in found["planned"].values())
    return [
        kind,
        "packed" if found["packs"] else "padded",
        f"{losses[0]:.2f}, {losses[1]:.2f}",
        *did,
        f"{rise / 2**20:.0f}",
        f"{taken / 2**20:.0f}",
        f"{error_of(found):+.1%}",
        f"{possible} of {len(found['planned'])}",
    ]


def error_of(found: dict[str, Any]) -> float:
    """Return a prediction's error, as a share of what was measured."""
    return float(found["predicted_bytes"] / found["rise_bytes"] - 1)


def notes(reports: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield why what is not done is not: each reason once, with its types."""
    reasons: dict[str, list[str]] = {}
    for kind, found in reports.items():
        said = [found["refused"]] if "refused" in found else []
        said += [text for text in found.get("learned", {}).values() if isinstance(text, str)]
        said += [text for text in found.get("planned", {}).values() if text]
        for text in dict.fromkeys(said):
            general = text.partition("; ")[0]
            reasons.setdefault(general, []).append(kind)
    for text, names in sorted(reasons.items(), key=lambda item: item[1]):
        yield f"- {', '.join(names)}: {text}"


if __name__ == "__main__":
    main()
