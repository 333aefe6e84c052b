"""The benchmark's table as text. In: rows. Out: Markdown, CSV, JSON; one place for how figures look.

Markdown is padded, so that it reads as well on a terminal as on a page, and is in the language of this process. CSV and
JSON are English, and keep plain numbers, with the unit in the name.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from rich.cells import cell_len

from bigqa.bench.report import Measured
from bigqa.language import put, shown, tr
from bigqa.table.rows import Row
from bigqa.units import format_bytes

COLUMNS = (
    tr("model"), tr("device"), tr("strategy"), tr("precision"), tr("tier"), tr("seq"), tr("batch"),
    tr("predicted peak"), tr("peak"), tr("error"), tr("predicted samples/s"), tr("samples/s (least-most)"), tr("error"),
    tr("of rate"), tr("outcome"),
)  # fmt: skip
OUTCOMES = (tr("ok"), tr("out of memory"), tr("time limit"), tr("failed"))
"""As reports name them."""
TEXTS = {"model", "device", "strategy", "precision", "outcome"}
"""Columns of words; the others are set to the right."""
LONGEST_REASON = 60


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's texts, one for each of COLUMNS."""
    case, measured = row.report.case, row.measured
    least, most = measured.spread
    return (
        row.model,
        row.report.device_name,
        tr("{strategy}, kept", strategy=case.strategy) if case.heap == "kept" else case.strategy,
        case.axes.precision,
        str(row.tier),
        str(case.seq_len),
        f"{case.micro_batch} x {case.grad_accum}",
        format_bytes(row.predicted_bytes),
        format_bytes(row.measured_bytes) if row.measured_bytes else "-",
        signed(row.memory_error if row.shows_need else None),
        speed(row.predicted.samples_per_s),
        f"{speed(measured.samples_per_s)} ({speed(least)}-{speed(most)})" if row.is_timed else "-",
        signed(row.speed_error),
        "-" if row.rate_share is None else f"{row.rate_share:.0%}",
        _outcome(measured),
    )


def _outcome(measured: Measured) -> str:
    outcome = put(measured.outcome)
    reason = shortened(measured.reason)
    return put("{outcome}: {reason}", outcome=outcome, reason=reason) if reason else outcome


def keys(row: Row) -> tuple[float | str, ...]:
    """Return what a row is sorted by, one for each of COLUMNS; what is missing comes last."""
    case, last = row.report.case, float("inf")
    numbers = (row.tier, case.seq_len, case.micro_batch, row.predicted_bytes, row.measured_bytes, row.memory_error)
    speeds = (row.predicted.samples_per_s, row.measured.samples_per_s or None, row.speed_error, row.rate_share)
    known = [last if number is None else number for number in (*numbers, *speeds)]
    return row.model, row.report.device_name, case.strategy, case.axes.precision, *known, row.measured.outcome


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Sort rows as they are shown: by model and device, then as the planner would: tier, and the fastest first."""
    return sorted(
        rows,
        key=lambda row: (
            row.model,
            row.report.device_name,
            row.tier,
            -row.measured.samples_per_s,
            row.report.case.name,
        ),
    )


def markdown(rows: Iterable[Row]) -> str:
    """Return the tables, one for each model and device."""
    parts = []
    for model, of_model in groupby(in_order(rows), lambda row: row.model):
        parts.append(f"### {model}")
        for device, members in groupby(of_model, lambda row: row.report.device_name):
            parts += [
                shown(tr("On {device}:", device=device)),
                markdown_table(COLUMNS[2:], [cells(row)[2:] for row in members]),
            ]
    return "\n\n".join(parts)


def markdown_table(columns: Sequence[str], lines: Iterable[Sequence[str]], texts: Iterable[str] = TEXTS) -> str:
    """Return a padded table; every column that is not one of `texts` is set to the right."""
    heads, body = list(map(shown, columns)), [[shown(cell).replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(cell_len(line[i]) for line in (heads, *body))) for i in range(len(heads))]
    is_text = [name in set(texts) for name in columns]

    def padded(line: Sequence[str]) -> str:
        spare = [(cell, " " * (width - cell_len(cell))) for cell, width in zip(line, widths, strict=True)]
        both = zip(spare, is_text, strict=True)
        return "| " + " | ".join(cell + room if text else room + cell for (cell, room), text in both) + " |"

    rule = ["-" * width if text else "-" * (width - 1) + ":" for width, text in zip(widths, is_text, strict=True)]
    return "\n".join(padded(line) for line in (heads, rule, *body))


def csv_text(rows: Iterable[Row]) -> str:
    """Return one line for each row, and one of names."""
    records = [record(row) for row in in_order(rows)]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().rstrip("\n")


def record(row: Row) -> dict[str, Any]:
    """Return a row as plain values; what was predicted by this code, and what was when it ran."""
    case, measured, report = row.report.case, row.measured, row.report
    least, most = measured.spread
    return {
        "model": row.model,
        "device": report.device_name,
        "cap_bytes": case.cap_bytes,
        "strategy": case.strategy,
        "precision": case.axes.precision,
        "tier": row.tier,
        "seq_len": case.seq_len,
        "micro_batch": case.micro_batch,
        "grad_accum": case.grad_accum,
        "global_batch": case.global_batch,
        "heap": case.heap,
        "predicted_peak_bytes": row.predicted_bytes,
        "predicted_then_peak_bytes": report.predicted_peak_bytes,
        "peak_bytes": row.measured_bytes,
        "memory_error": row.memory_error,
        "predicted_samples_per_s": row.predicted.samples_per_s,
        "predicted_then_samples_per_s": report.predicted.samples_per_s,
        "samples_per_s": measured.samples_per_s if measured.ok else None,
        "least_samples_per_s": least if measured.ok else None,
        "most_samples_per_s": most if measured.ok else None,
        "speed_error": row.speed_error,
        "rate_share": row.rate_share,
        "outcome": measured.outcome,
        "reason": measured.reason,
    }


def signed(error: float | None) -> str:
    """Return an error with its sign."""
    return "-" if error is None else f"{error:+.1%}"


def speed(samples_per_s: float) -> str:
    """Return three figures."""
    return f"{samples_per_s:,.0f}" if samples_per_s >= 100 else f"{samples_per_s:.3g}"


def shortened(reason: str) -> str:
    """Return a reason that fits a table."""
    return reason if len(reason) <= LONGEST_REASON else reason[: LONGEST_REASON - 3].rstrip() + "..."
