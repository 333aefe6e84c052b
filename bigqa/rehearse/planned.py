"""A plan of `bigqa probe`, to be rehearsed with our own trainer. In: plan.json, data. Out: the command, and its card.

The trainer gets a plan without a ladder: where memory runs out it ends there, and steps down to nothing that fits.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json, write_json
from bigqa.language import tr
from bigqa.units import format_bytes

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Planned:
    """What a plan asks for."""

    path: Path
    plan: dict[str, Any]

    @property
    def card(self) -> str:
        """The card that it was made for; empty where it names none."""
        return str((self.plan.get("gpu") or {}).get("name") or "")

    @property
    def memory_bytes(self) -> int | None:
        """What the plan may use of the card, where that is less than all of it."""
        gpu = self.plan.get("gpu") or {}
        whole = (gpu.get("model") or {}).get("memory_mib", 0) * 2**20
        size = gpu.get("total_bytes")
        return size if size is not None and size < whole else None

    @property
    def num_gpus(self) -> int:
        """Of a machine; each has a process."""
        return int(self.plan.get("num_gpus") or 1)

    @property
    def predicted(self) -> dict[str, int]:
        """What the plan says of its own need."""
        memory = (self.plan.get("predicted") or {}).get("memory") or {}
        names = ("allocated_bytes", "reserved_bytes", "device_bytes")
        return {name: memory[name] for name in names if memory.get(name) is not None}

    @property
    def next_rung(self) -> str | None:
        """What a run would step down to."""
        ladder = self.plan["settings"].get("ladder") or ()
        return f"{ladder[0]['name']}, micro-batches of {ladder[0]['micro_batch']}" if ladder else None


class _Part(BaseModel):
    """A part of a plan, as far as a rehearsal reads it; nothing is taken for something else."""

    model_config = ConfigDict(strict=True)


Size = Annotated[int, Field(ge=0, le=2**60)]


class _Memory(_Part):
    allocated_bytes: Size | None = None
    reserved_bytes: Size | None = None
    device_bytes: Size | None = None


class _Predicted(_Part):
    memory: _Memory | None = None


class _Model(_Part):
    memory_mib: Size = 0


class _Gpu(_Part):
    name: str | None = None
    total_bytes: Size | None = None
    model: _Model | None = None


class _Rung(_Part):
    name: str
    micro_batch: int = Field(ge=1, le=2**40)


class _Settings(_Part):
    ladder: list[_Rung] | None = None


class _Facts(_Part):
    settings: _Settings
    gpu: _Gpu | None = None
    num_gpus: int | None = Field(default=None, ge=0, le=1024)
    predicted: _Predicted | None = None


def read_planned(path: Path) -> Planned:
    """Read a plan. Raises: BigqaError where it is none, or none for a GPU."""
    plan = read_json(path, tr("the plan"))
    if not isinstance(plan, dict) or not isinstance(plan.get("settings"), dict):
        raise BigqaError(tr("{path} is not a plan of `bigqa probe --out`: it has no settings", path=path))
    try:
        _Facts.model_validate(plan)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise BigqaError(
            tr(
                "{path} is not as `bigqa probe --out` writes it: {place}: {problem}",
                path=path,
                place=place,
                problem=problem["msg"],
            )
        ) from None
    if plan["settings"].get("device") == "cpu":
        raise UsageError(
            tr("--plan {path}: a plan for the CPU; `bigqa probe --gpu T4 --out FILE` makes one for a GPU", path=path)
        )
    return Planned(path, plan)


def plan_lines(planned: Planned, *, fits: bool) -> list[str]:
    """Say what the plan itself says, beside what was found."""
    lines: list[str] = []
    if {"allocated_bytes", "device_bytes"} <= planned.predicted.keys():
        need, whole = (format_bytes(planned.predicted[name]) for name in ("allocated_bytes", "device_bytes"))
        lines.append(
            tr(
                "The plan's own figures, for windows that are all full: {need} allocated, {whole} of the card.",
                need=need,
                whole=whole,
            )
        )
    if not fits and planned.next_rung is not None:
        lines.append(tr("A run of this plan would step down to {next_rung}.", next_rung=planned.next_rung))
    return lines


@contextmanager
def training_command(planned: Planned, train_file: Path, tokenizer: str | None, num_gpus: int) -> Iterator[list[str]]:
    """Hold the trainer's command on a plan, with a run folder that goes with it. It is run once."""
    with TemporaryDirectory(prefix="bigqa-plan-") as name:
        plan = Path(name) / "plan.json"
        write_json(plan, planned.plan | {"settings": planned.plan["settings"] | {"ladder": []}})
        words = [sys.executable]
        if num_gpus > 1:
            words += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_gpus)]
        words += [str(ROOT / "train.py"), "--plan", str(plan), "--train-file", str(train_file.resolve())]
        words += ["--out", str(Path(name) / "run"), "--device", "cuda", "--no-check"]
        yield [*words, *(("--tokenizer", tokenizer) if tokenizer else ())]
