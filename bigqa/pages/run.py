"""What a run's folder tells, whole or not. In: a folder. Out: a `Run`. Nothing of it has to be there but its config."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.files import read_json, read_records
from bigqa.language import tr

Record = dict[str, Any]

NEEDED = {
    "metrics": {"step", "seconds", "peak_memory_bytes"},
    "evaluations": {"step"},
    "switches": {"time", "to", "where", "reason"},
    "examples": {"kind", "text", "marks", "certainty", "figure", "value"},
}
"""What a page shows of the records of a file."""


@dataclass(frozen=True)
class Run:
    """One run, by the files in its folder."""

    folder: Path
    config: Record
    plan: Record
    versions: Record
    report: Record | None
    steps: list[Record]
    evaluations: list[Record] = field(default_factory=list)
    switches: list[Record] = field(default_factory=list)
    examples: list[Record] = field(default_factory=list)

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the whole run, where that is known."""
        return self.plan.get("steps") or (self.report or {}).get("steps")

    @property
    def done(self) -> int:
        """Optimizer steps so far."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def is_over(self) -> bool:
        """Whether it has handed its model over."""
        return self.report is not None

    @property
    def on_gpu(self) -> bool:
        """Whether it trains on a GPU."""
        return bool(self.plan.get("device", "cpu") != "cpu")

    @property
    def predicted_bytes(self) -> int | None:
        """What was predicted of the memory that is measured: torch's on a GPU, on a CPU what is resident."""
        return self.plan.get("predicted", {}).get("allocated_bytes" if self.on_gpu else "host_bytes")

    @property
    def predicted_tokens_per_s(self) -> float | None:
        """What the plan foresaw, of full windows and all processes."""
        speed = self.config.get("predicted_samples_per_s")
        return speed * self.config["seq_len"] if speed else None


def read_run(folder: Path) -> Run:
    """Read a run's folder. Raises: BigqaError where it is none, or a file of it is spoiled."""
    if not (folder / "config.json").is_file():
        raise BigqaError(tr("{folder} is not a bigqa run folder: it has no config.json", folder=folder))
    config = read_json(folder / "config.json", tr("the run's config"))
    if not isinstance(config, dict) or "model" not in config:
        raise BigqaError(tr("{folder} is not a bigqa run's config", folder=folder / "config.json"))
    return Run(
        folder=folder,
        config=config,
        plan=_object(folder / "plan.json"),
        versions=_object(folder / "versions.json"),
        report=_object(folder / "report.json") or None,
        steps=_records(folder / "metrics.jsonl"),
        evaluations=_records(folder / "evaluations.jsonl"),
        switches=_records(folder / "switches.jsonl"),
        examples=_records(folder / "examples.jsonl"),
    )


def _object(file: Path) -> Record:
    if not file.is_file():
        return {}
    found = read_json(file, tr("a run's file"))
    return found if isinstance(found, dict) else {}


def _records(file: Path) -> list[Record]:
    """Return the records of a file that have what a page shows; a run that goes on may be in the middle of one."""
    return [one for one in read_records(file) if NEEDED[file.stem] <= one.keys()]
