"""`bigqa.probe(MODEL, ...)`: what fits, how fast, what it gives up. In: its options. Out: a table, a plan."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bigqa.language import shown
from bigqa.notebook.shown import lines, page_frame
from bigqa.plan import probe as plan_probe
from bigqa.plan.files import write_plan
from bigqa.plan.probe import Probe
from bigqa.plan.question import Question
from bigqa.show.page import probe_page
from bigqa.show.probe import plan_text

PAGE_PX = 640


@dataclass(frozen=True, repr=False)
class ShownProbe(Probe):
    """What was found, as `bigqa probe` shows it."""

    def __repr__(self) -> str:
        return shown(plan_text(self, Path("plan.json")))

    def _repr_html_(self) -> str:
        return lines(repr(self)) + page_frame(probe_page(self), PAGE_PX)

    def write(self, path: str | Path) -> list[Path]:
        """Write the plan, and what launches it; return the files. For `bigqa.train(plan=...)`."""
        return write_plan(self, Path(path))


def probe(question: Question | str, **options: Any) -> ShownProbe:
    """Judge every strategy for a model, on this machine or on the one that the options name.

    `question`: the model, with options as `bigqa probe` has them (gpu="T4", seq_len=384, ...), or a `Question`.
    Raises: BigqaError, UsageError.
    """
    if isinstance(question, str):
        if isinstance(options.get("train_file"), str):
            options["train_file"] = Path(options["train_file"])
        question = Question(model=question, **options)
    found = plan_probe.probe(question)
    return ShownProbe(**{field.name: getattr(found, field.name) for field in fields(Probe)})
