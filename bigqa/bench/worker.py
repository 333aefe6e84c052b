"""One case of a benchmark, in a process of its own. Run: `python -m bigqa.bench.worker CASE.json OUT.json [DISK]`.

In: a `Case`. Out: a `Measured`. It builds and trains as `bigqa train` does, on windows that are all full, with its own
step, loop and prediction; what it leaves out is what a run writes.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from bigqa.language import tr
from bigqa.machine.heap import hold_tight

if __name__ == "__main__":
    hold_tight()  # before torch is imported

import torch
from torch import nn

from bigqa.bench.meters import DeviceMeter
from bigqa.bench.report import Case, Measured
from bigqa.engine.build import build, share_of_batch
from bigqa.engine.loop.fit import fit
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.loop.stop import StopRequest
from bigqa.engine.loop.training import Training
from bigqa.engine.processes import Processes
from bigqa.engine.recovery import HostWatch, is_out_of_memory, which_memory
from bigqa.files import read_json, write_json
from bigqa.machine.hardware import host_memory
from bigqa.models.sources import first_position, load_config, load_model, resolve
from bigqa.run.job import job_of
from bigqa.run.planning import shortfall
from bigqa.settings import Settings, make_settings
from bigqa.tasks.base import Tokens

WARM_UP = {"tight": 1, "kept": 3}
"""Steps before those that are timed: what a heap keeps has met every size by the third."""


class Figures(Silent):
    """Keeps the figures of each step, and begins to measure where the warm-up ends."""

    def __init__(self, meter: DeviceMeter, warm_up: int) -> None:
        self.meter, self.warm_up = meter, warm_up
        self.steps: list[dict[str, Any]] = []

    def step(self, record: dict[str, Any]) -> None:
        """Take one step's figures."""
        self.steps.append(record)
        if len(self.steps) == self.warm_up:
            self.meter.begin_timing()
        elif len(self.steps) > self.warm_up:
            self.meter.end_timing()


def measure(case: Case, folder: Path, nvme: Path | None = None) -> Measured:
    """Train a case's steps. `nvme`: where it offloads to; none: the folder."""
    settings = settings_of(case, folder, nvme)
    meter = DeviceMeter(torch.device(case.axes.device, 0))  # before there is a context on the card
    processes = Processes(settings.device)
    meter.cap(case.cap_bytes)
    warm_up = WARM_UP[case.heap]
    figures = Figures(meter, warm_up)
    try:
        with HostWatch(host_memory), meter:
            # As a run does before it starts: this is also where memory is told to be kept, were there plenty.
            shortfall(settings, processes)
            fit(training_of(case, settings, processes, figures))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = f"{which_memory(error)}: {str(error).strip().splitlines()[0]}"
        return Measured(outcome="out of memory", reason=reason).model_copy(update=meter.peaks())
    timed, steady = figures.steps[warm_up : warm_up + case.steps], figures.steps[-1]
    done = Measured(
        outcome="ok",
        step_s=tuple(step["seconds"] for step in timed),
        windows_per_step=steady["windows"],
        tokens_per_step=steady["tokens"],
        last_loss=steady["loss"],
        energy_j=meter.energy_j,
    )
    return done.model_copy(update=meter.peaks())


def _num_steps(case: Case) -> int:
    """A second step has the optimizer's state from its start: that is where the peak is."""
    return WARM_UP[case.heap] + max(1, case.steps)


def settings_of(case: Case, folder: Path, nvme: Path | None = None) -> Settings:
    return make_settings(
        model=case.model,
        train_file=folder / "none",
        out=folder,
        strategy=case.axes,
        precision="bf16" if case.axes.precision == "bf16-sr" else case.axes.precision,
        micro_batch=case.micro_batch,
        global_batch=case.global_batch,
        seq_len=case.seq_len,
        max_steps=_num_steps(case),
        device=case.axes.device,
        ladder=(),
        nvme=(nvme or folder / "disk") if case.axes.needs_disk else None,
    )


def model_of(case: Case, seed: int) -> nn.Module:
    """Make a case's model, its weights at random."""
    source = resolve(case.model)
    return load_model(source.model_copy(update={"has_weights": False}), load_config(source), seed=seed)


def training_of(
    case: Case, settings: Settings, processes: Processes, figures: Silent, model: nn.Module | None = None
) -> Training:
    """Return what `fit` takes; `model`: one that is made already."""
    model = model_of(case, settings.seed) if model is None else model
    config: Any = model.config
    job = job_of(settings)
    pad, separator = (getattr(config, name, None) or 0 for name in ("pad_token_id", "sep_token_id"))
    task = job.kind.task(model, job.options, Tokens(pad, separator, first_position(config)))
    parts = build(model, task, settings, processes)
    count = settings.global_batch * _num_steps(case)
    return Training(
        settings=settings,
        micro_batch=share_of_batch(settings, processes.world_size),
        processes=processes,
        parts=parts,
        windows=job.kind.full_rows(count, case.seq_len, config.vocab_size),
        lengths=[case.seq_len] * count,
        packs=parts.packs,
        recorder=figures,
        stop=StopRequest(settings.out),
        saves=False,
    )


def main() -> None:
    """Run as a program."""
    case_file, out, *disk = map(Path, sys.argv[1:])
    case = Case.model_validate(read_json(case_file, tr("the case")))
    started = time.perf_counter()
    found = measure(case, out.parent, *disk)
    write_json(out, json.loads(found.model_copy(update={"wall_s": time.perf_counter() - started}).model_dump_json()))


if __name__ == "__main__":
    from bigqa.console import as_program, quiet_libraries

    quiet_libraries()
    as_program(main)
