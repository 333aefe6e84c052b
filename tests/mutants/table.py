"""The table of a run. In: what was tried, the reasons that are written down. Out: README.md's table, a status."""

from collections import defaultdict
from pathlib import Path

import toml
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import WorkItem

MOST = 0.10
"""Of the mutants that a test could notice, the part that may survive."""
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def write_table(database: WorkDB, wanted: dict[str, WorkItem], folder: Path) -> int:
    """Put the table into README.md, print what survives without a reason, and return 1 where that is too much."""
    results = dict(database.results)
    reasons = {one["id"]: one for one in toml.load(folder / "survivors.toml").get("survivor", [])}
    rows: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("mutants", "killed", "survived", "listed"), 0))
    for job, item in wanted.items():
        if job not in results:
            continue
        row = rows[str(item.mutations[0].module_path)]
        row["mutants"] += 1
        kind = "killed" if results[job].is_killed else "listed" if job in reasons else "survived"
        row[kind] += 1
        if kind == "survived":
            print(f"\n{job} survived ({results[job].output.partition(chr(10))[0]})\n{results[job].diff}")
    total = {name: sum(row[name] for row in rows.values()) for name in ("mutants", "killed", "survived", "listed")}
    text = _text(rows, total)
    readme = folder / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    if len(results.keys() & wanted.keys()) == len(wanted) and rest:
        readme.write_text(f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
    tried = total["mutants"] - total["listed"]
    print(
        f"\n{total['mutants']} mutants: {total['killed']} killed, {total['listed']} listed, {total['survived']} survive"
    )
    return int(tried > 0 and total["survived"] / tried > MOST)


def _text(rows: dict[str, dict[str, int]], total: dict[str, int]) -> str:
    heads = ("module", "mutants", "killed", "survived", "equivalent")
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|"]
    for module, row in [*sorted(rows.items()), ("**all**", total)]:
        lines.append(f"| {module} | {row['mutants']} | {row['killed']} | {row['survived']} | {row['listed']} |")
    return "\n".join(lines) + "\n"
