"""Checkpoints as a table. In: what was found. Out: a rich table, or plain values."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from bigqa.checkpoints.finding import Found
from bigqa.language import tr
from bigqa.units import format_bytes


def checkpoints_table(found: Sequence[Found]) -> Table:
    """Show one checkpoint a row."""
    table = Table(tr("step"), tr("saved"), tr("size"), tr("trained as"), tr("folder"), title=tr("checkpoints"))
    for one in found:
        step = f"{one.step}" + tr(" (best)") * one.is_best
        table.add_row(
            step, f"{one.saved:%Y-%m-%d %H:%M:%S}", format_bytes(one.size_bytes), _strategy(one), str(one.path)
        )
    return table


def as_record(one: Found) -> dict[str, Any]:
    """Return a checkpoint as plain values; sizes in bytes."""
    return {
        "step": one.step,
        "saved": one.saved.isoformat(),
        "size_bytes": one.size_bytes,
        "best": one.is_best,
        "path": str(one.path),
        "plan": one.sealed.get("plan"),
        "versions": one.sealed.get("versions"),
    }


def _strategy(one: Found) -> str:
    plan = one.sealed.get("plan")
    axes = plan.get("strategy") if isinstance(plan, dict) else None
    if not isinstance(axes, dict):
        return "-"
    named = ("device", "precision", "optimizer", "adapters", "recompute")
    return " ".join(str(axes[name]) for name in named if axes.get(name) not in (None, "none", "adamw"))
