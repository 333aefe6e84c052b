"""What each strategy changes: loss curves and scores beside plain fp32's. Run: `python -m benchmarks.strategies`.

In: the embedded sample. Out: one JSON per case in `runs/strategies/`, and a table in README.md. A curve is 30 steps
without dropout; its figure is the largest relative difference of a step's loss from plain fp32 AdamW of the same seed.
Scores are those of held-out questions after the sample's recipe, for the strategies that are not exact.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import SEEDS, parser_of, read_report, write_report
from benchmarks.strategy_jobs import (
    ADAPTERS,
    EXACT,
    NVME,
    OPTIONS,
    REFERENCE,
    RELEASED,
    ROUNDED,
    ZERO,
    difference,
    job,
    losses,
    run_jobs,
    why_no_nvme,
)
from benchmarks.tables import put_between
from bigqa.files import read_json
from bigqa.sample import FOLDER
from bigqa.strategy import STRATEGIES

NAME = "strategies"
STEPS = 30
IN_ONE = [REFERENCE, *EXACT, *ROUNDED, *RELEASED, *ADAPTERS]
PARTS = {"one": (IN_ONE, 1), "two": (ZERO, 2), "disk": ([NVME], 2)}
"""Strategies that are run one after the other in the same processes, and how many processes."""
SCORED = ["plain", *ROUNDED, *RELEASED, *ADAPTERS]
RECIPE = {
    "model": "tiny", "train_file": str(FOLDER / "train.json"), "dev_file": str(FOLDER / "dev.json"), "device": "cpu",
    "check": False, "save_every": 10000,
}  # fmt: skip
MICRO_BATCH = 8
"""Of the runs that are scored, except where one window at a time is the strategy's point."""


def curves(seed: int, names: list[str], num_processes: int) -> dict[str, Any]:
    """Train each strategy in fp32 and as it is named. Returns: the losses of each run."""
    options = OPTIONS | {"seed": seed, "max_steps": STEPS, "save_every": 1000}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        jobs = [job(folder / name, name, options) for name in names]
        jobs += [job(folder / f"{name}-fp32", name, options, precision="fp32") for name in names if _has_fp32(name)]
        run_jobs(folder, jobs, num_processes, timeout_s=3600)
        return {"losses": {Path(one["out"]).name: losses(Path(one["out"])) for one in jobs}}


def _has_fp32(name: str) -> bool:
    """Tell whether a strategy can be had in fp32: plain is the reference then, stochastic rounding is of bf16 alone."""
    return name != "plain" and STRATEGIES[name].precision == "bf16"


def score(seed: int, name: str, epochs: float) -> dict[str, Any]:
    """Train the sample's recipe under a strategy. Returns: EM and F1 of the held-out questions."""
    micro_batch = STRATEGIES[name].micro_batch or MICRO_BATCH
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        options = RECIPE | {"seed": seed, "epochs": epochs}
        run_jobs(folder, [job(folder / name, name, options, micro_batch)], timeout_s=7200)
        report = read_json(folder / name / "report.json", "the run's report")
    return {key: report["scores"][key] for key in ("exact_match", "f1", "total")} | {"seconds": report["seconds"]}


def differences(folder: Path, name: str) -> list[float]:
    """Return a run's largest difference from plain fp32, for each seed that is there."""
    found = []
    for seed in SEEDS:
        reports = [read_report(folder / f"curves-{seed}-{part}.json") for part in PARTS]
        if reports[0] is not None:
            curves = [report["losses"][name] for report in reports if report is not None and name in report["losses"]]
            found += [difference(curve, reports[0]["losses"][REFERENCE]) for curve in curves]
    return found


def _scores(folder: Path, name: str) -> dict[int, dict[str, Any]]:
    reports = {seed: read_report(folder / f"score-{seed}-{name}.json") for seed in SEEDS}
    return {seed: report for seed, report in reports.items() if report is not None}


def table(folder: Path) -> str:
    """Return the Markdown table of all reports."""
    head = "| strategy | tier | loss, all in fp32 | loss, as named | EM | F1 | EM, F1 beside plain (seeds) |"
    lines = [head, "|---|---:|---:|---:|---:|---:|---:|"]
    plain = _scores(folder, "plain")
    for name in [*EXACT, *ZERO, NVME, *ROUNDED, *RELEASED, *ADAPTERS]:
        curve = [_largest(differences(folder, one)) for one in (f"{name}-fp32", name)]
        curve = ["reference", *curve[1:]] if name == "plain" else curve
        cells = [name, str(STRATEGIES[name].tier), *curve, *_score_cells(_scores(folder, name), plain)]
        if set(cells[2:]) != {"-"}:
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _largest(values: list[float]) -> str:
    return f"{max(values):.1e}" if values else "-"


def _score_cells(found: dict[int, dict[str, Any]], plain: dict[int, dict[str, Any]]) -> list[str]:
    if not found:
        return ["-"] * 3
    means = [statistics.mean(one[kind] for one in found.values()) for kind in ("exact_match", "f1")]
    seeds = [seed for seed in found if seed in plain]
    gaps = [statistics.mean(found[s][kind] - plain[s][kind] for s in seeds) for kind in ("exact_match", "f1")]
    return [f"{means[0]:.1f}", f"{means[1]:.1f}", f"{gaps[0]:+.1f}, {gaps[1]:+.1f} ({len(seeds)})"]


def main() -> None:
    """Run what is missing, or write the table."""
    parser = parser_of("Loss curves and scores of every strategy that a CPU can run.", NAME, ("curves", "scores"))
    parser.add_argument("--part", choices=list(PARTS), help="of the curves")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--epochs", type=float, default=8.0, help="of the runs that are scored")
    options = parser.parse_args()
    if options.table:
        put_between(NAME, table(options.out))
        return
    parts = {part: what for part, what in PARTS.items() if part != "disk" or why_no_nvme() is None}
    for seed in options.seeds if options.only != "scores" else []:
        for part, (names, num_processes) in parts.items():
            file = options.out / f"curves-{seed}-{part}.json"
            if options.part in (None, part) and not file.is_file():
                case = {"seed": seed, "steps": STEPS, "num_processes": num_processes}
                write_report(file, case, curves(seed, names, num_processes))
    for seed in options.seeds if options.only != "curves" else []:
        for name in SCORED:
            file = options.out / f"score-{seed}-{name}.json"
            if not file.is_file():
                case = {"seed": seed, "strategy": name, "epochs": options.epochs}
                write_report(file, case, score(seed, name, options.epochs))
                print(file.stem, read_report(file), flush=True)
    print(table(options.out))


if __name__ == "__main__":
    main()
