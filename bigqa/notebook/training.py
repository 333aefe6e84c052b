"""`bigqa.train(...)`: a run from a notebook. In: options of `bigqa train`. Out: its folder, as a table and charts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json, read_records
from bigqa.language import shown, tr
from bigqa.notebook.command import run
from bigqa.notebook.shown import curve, figures, lines
from bigqa.notebook.words import words_of
from bigqa.run.options import train_signature
from bigqa.units import format_bytes, format_seconds

STOPPED = (124, 129, 130, 143)
"""Exit codes of a run that has saved: its time was up, or it was asked to stop."""
CURVES = {"loss": tr("loss"), "lr": tr("learning rate"), "samples_per_s": tr("samples/s")}
SCORES = ("exact_match", "f1", "accuracy", "macro_f1", "pearson", "spearman", "loss", "perplexity")


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @property
    def report(self) -> dict[str, Any] | None:
        """What `report.json` says; none before the run is complete."""
        file = self.folder / "report.json"
        return dict(read_json(file, "the run's report")) if file.is_file() else None

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to train."""
        return self.report is not None

    @property
    def model(self) -> Path:
        """The trained model, in Hugging Face form."""
        return self.folder / "model"

    @property
    def scores(self) -> dict[str, Any]:
        """Scores on the dev file; nothing without one."""
        return dict((self.report or {}).get("scores", {}))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record per step."""
        return read_records(self.folder / "metrics.jsonl")

    def summary(self) -> dict[str, str]:
        """Return what matters in words, in the language of this process."""
        return {shown(name): shown(value) for name, value in self._summary().items()}

    def _summary(self) -> dict[str, str]:
        steps, report = self.metrics, self.report
        last = steps[-1] if steps else {}
        rows: dict[str, str] = {tr("folder"): str(self.folder), tr("steps"): str(last.get("step", 0))}
        if last:
            most = format_bytes(last["peak_memory_bytes"])
            rows |= {tr("loss"): f"{last['loss']:.4f}", tr("memory, the most"): most}
        if report is None:
            return rows | {tr("state"): tr("not complete: the same bigqa.train(...) with resume='auto' goes on")}
        rows |= {tr("time"): format_seconds(report["seconds"]), tr("samples/s"): f"{report['samples_per_s']:.2f}"}
        found = self.scores
        rows |= {name.replace("_", " "): f"{found[name]:.2f}" for name in SCORES if name in found}
        return rows | {tr("model"): str(self.model)}

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.summary().items())

    def _repr_html_(self) -> str:
        steps = self.metrics
        drawn = (curve(shown(title), [(one["step"], one[name]) for one in steps]) for name, title in CURVES.items())
        return figures(self.summary()) + "".join(drawn) if steps else lines(repr(self))


def train(**options: Any) -> Run:
    """Train, or go on (resume="auto"), in a process of its own; return the run, complete or stopped and saved.

    Options are those of `bigqa train`, such as model="tiny", train_file=..., out="runs/first", until="11h30m".
    Raises: BigqaError with the line that the command ended with; UsageError.
    """
    folder = options.get("out") or options.get("resume")
    if folder is None:
        raise UsageError(tr("name the run folder: out='runs/first'"))
    code, _, error = run(["train", *words_of(train_signature, options)])
    if code and code not in STOPPED:
        raise BigqaError(error)
    return Run(Path(folder))
