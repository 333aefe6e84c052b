"""The grade as text. In: grades. Out: Markdown tables and plain values: figures and bars, caps, and every choice."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from bigqa.language import Text, put, shown, tr
from bigqa.table.grade import Cap, Figure, Grade
from bigqa.table.regret import Choice, speed_of
from bigqa.table.rows import Row
from bigqa.table.text import markdown_table, speed
from bigqa.units import format_bytes

PASS, FAIL = tr("pass"), tr("FAIL")
FIGURE_COLUMNS = (tr("figure"), tr("value"), tr("at most"), tr("of"), tr("mark"))
CAP_COLUMNS = (
    tr("cap"), tr("workloads"), tr("plans"), tr("nothing fits"), tr("plan missed"), tr("false fits"),
    tr("worst regret"), tr("mark"),
)  # fmt: skip
CHOICE_COLUMNS = (
    tr("model"), tr("seq"), tr("at caps of"), tr("plan"), tr("samples/s"), tr("fastest that fits"), tr("its samples/s"),
    tr("regret"), tr("note"),
)  # fmt: skip
TEXTS = {tr("figure"), tr("mark"), tr("model"), tr("plan"), tr("fastest that fits"), tr("at caps of"), tr("note")}
NOTES = {
    "plan": "",
    "false fit": tr("the plan does not fit"),
    "false no": tr("something fits"),
    "nothing fits": tr("nothing fits"),
}


def grade_markdown(grades: Sequence[Grade]) -> str:
    """Return a device's figures, its caps, and what was chosen at each."""
    parts = []
    for grade in grades:
        parts.append(shown(put("### {device}: {mark}", device=grade.processor, mark=mark(grade.passes))))
        parts.append(markdown_table(FIGURE_COLUMNS, [figure_cells(figure) for figure in grade.figures], TEXTS))
        if grade.caps:
            parts.append(markdown_table(CAP_COLUMNS, [cap_cells(cap) for cap in grade.caps], TEXTS))
            parts.append(markdown_table(CHOICE_COLUMNS, [choice_cells(alike) for alike in choices_of(grade)], TEXTS))
    return "\n\n".join(parts)


def figure_cells(figure: Figure) -> tuple[str, ...]:
    """Return a figure's texts, one for each of FIGURE_COLUMNS."""
    bar = "-" if figure.bar is None else f"{figure.bar:.1%}"
    judged = figure.bar is not None and figure.value is not None
    return figure.name, share(figure.value), bar, str(figure.count), mark(figure.passes) if judged else ""


def cap_cells(cap: Cap) -> tuple[str, ...]:
    """Return a cap's texts, one for each of CAP_COLUMNS."""
    kinds = [str(cap.count(kind)) for kind in ("nothing fits", "false no", "false fit")]
    plans = str(cap.count("plan") + cap.count("false fit"))
    regret = cap.regret
    judged = mark(regret.passes) if regret.value is not None else ""
    return format_bytes(cap.size_bytes), str(len(cap.choices)), plans, *kinds, share(regret.value), judged


def choices_of(grade: Grade) -> list[list[Choice]]:
    """Return the choices by workload, the largest cap first; neighbouring caps with one outcome together."""
    choices = [choice for cap in grade.caps for choice in cap.choices]
    choices.sort(key=lambda choice: (choice.workload.model, choice.workload.seq_len, choice.workload.global_batch))
    return [list(alike) for _, alike in groupby(choices, _outcome)]


def choice_cells(alike: Sequence[Choice]) -> tuple[str, ...]:
    """Return the texts of choices with one outcome, one for each of CHOICE_COLUMNS."""
    first, last = alike[0], alike[-1]
    caps = format_bytes(first.cap_bytes)
    if last is not first:
        caps = tr("{most} to {least}", most=caps, least=format_bytes(last.cap_bytes))
    plans = *_plan(first.chosen), *_plan(first.best)
    workload = first.workload
    return workload.model, str(workload.seq_len), caps, *plans, share(first.regret), NOTES[first.kind]


def grade_record(grade: Grade) -> dict[str, Any]:
    """Return a grade as plain values."""
    figures = {
        f.name: {"value": f.value, "at_most": f.bar, "count": f.count, "passes": f.passes} for f in grade.figures
    }
    choices = [_choice_record(choice) for cap in grade.caps for choice in cap.choices]
    return {
        "device": grade.processor,
        "kind": grade.kind,
        "runs": grade.num_runs,
        "passes": grade.passes,
        "figures": figures,
        "choices": choices,
    }


def mark(passes: bool) -> Text:
    """Return the word for it."""
    return PASS if passes else FAIL


def share(value: float | None) -> str:
    """Return a share in percent."""
    return "-" if value is None else f"{value:.1%}"


def _outcome(choice: Choice) -> tuple[object, ...]:
    return choice.workload, choice.kind, id(choice.chosen), id(choice.best)


def _plan(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    case = row.report.case
    return f"{case.strategy}, {case.micro_batch} x {case.seq_len}", speed(speed_of(row)) if row.measured.ok else "-"


def _choice_record(choice: Choice) -> dict[str, Any]:
    def name(row: Row | None) -> str | None:
        return row.report.case.name if row else None

    workload = choice.workload
    return {
        "cap_bytes": choice.cap_bytes,
        "model": workload.model,
        "seq_len": workload.seq_len,
        "global_batch": workload.global_batch,
        "kind": choice.kind,
        "chosen": name(choice.chosen),
        "best": name(choice.best),
        "regret": choice.regret,
    }
