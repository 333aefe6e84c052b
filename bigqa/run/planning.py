"""What a run trains under, decided before anything is made. In: settings, processes. Out: settings with a strategy and
a ladder; or why the run does not fit.
"""

import psutil

from bigqa.console import say
from bigqa.engine.build import share_of_batch, strategy_of
from bigqa.engine.processes import Processes
from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.machine.hardware import detect, free_space, host_memory
from bigqa.machine.heap import keep_if_plenty
from bigqa.models.sources import check_lengths
from bigqa.plan.candidates import Candidate, Workload, choose
from bigqa.plan.ladder import ladder_of, plain_ladder
from bigqa.plan.machine import machine_for
from bigqa.plan.planner import Planner, known_estimator
from bigqa.run.job import job_of
from bigqa.settings import Rung, Settings
from bigqa.strategy import Strategy
from bigqa.units import GIB


def planned(settings: Settings, processes: Processes) -> Settings:
    """Choose strategy and micro-batch where neither a plan nor a person did, as `bigqa probe` would.

    A run that goes on with bigqa's own choice on another machine gets another one, which learns the same.
    """
    here = processes.from_main(_called(processes) if processes.is_main else None)
    begun, goes_on = settings.strategy, settings.planned_for is not None
    if settings.planned_for == here:
        return settings
    if not goes_on and (begun is not None or settings.micro_batch is not None or settings.precision != "auto"):
        return settings
    found = processes.from_main(_choice(settings, processes, begun) if processes.is_main else None)
    if isinstance(found, str):
        raise BigqaError(found)
    assert isinstance(found, tuple)
    found, ladder = found
    if processes.is_main:
        before = f"planned for {settings.planned_for}, now on {here}; the new " if goes_on else ""
        say(
            tr(
                "{before}plan: {name} in {precision}, micro-batches of {micro_batch}",
                before=before,
                name=found.name,
                precision=found.strategy.precision,
                micro_batch=found.micro_batch,
            )
        )
    update = {"strategy": found.strategy, "micro_batch": found.micro_batch, "seq_len": found.seq_len}
    update |= {"ladder": ladder, "predicted_samples_per_s": found.samples_per_s}
    return settings.model_copy(update=update | {"planned_for": here})


def with_ladder(settings: Settings, processes: Processes) -> Settings:
    """Give a run without a plan something to step down to."""
    if settings.ladder is not None:
        return settings
    ladder = plain_ladder(strategy_of(settings, processes.device), share_of_batch(settings, processes.world_size))
    return settings.model_copy(update={"ladder": ladder})


PREDICTED = ("allocated_bytes", "device_bytes", "host_bytes")


def check_fits(settings: Settings, processes: Processes, *, refuse: bool) -> dict[str, int]:
    """Refuse a strategy that is predicted not to fit, before anything is made; return what it is predicted to take.

    Bytes of one process; nothing from a process that is not the first. Raises: BigqaError.
    """
    problem, predicted = shortfall(settings, processes)
    if problem and refuse:
        raise BigqaError(
            tr(
                "{problem}; choose another strategy (`bigqa probe {model}` shows what fits), or --no-check to "
                "try, stepping down when memory runs out",
                problem=problem,
                model=settings.model,
            )
        )
    return predicted


def shortfall(settings: Settings, processes: Processes) -> tuple[str | None, dict[str, int]]:
    """Say what a run lacks on this machine, or nothing, and what it takes; on a CPU, keep freed memory where there is
    plenty."""
    strategy = strategy_of(settings, processes.device)
    problem = need_bytes = None
    predicted: dict[str, int] = {}
    if processes.is_main:
        planner = _planner(settings, processes)
        micro_batch = share_of_batch(settings, processes.world_size)
        try:
            memory = planner.need(strategy, micro_batch, settings.seq_len, processes.world_size)
            problem, need_bytes = planner.machine.shortfall(strategy, memory), memory.host_bytes
            predicted = {name: getattr(memory, name) for name in PREDICTED}
        except BigqaError as error:  # the step of this model, under this strategy
            problem = tr("this strategy cannot be had: {error}", error=error)
    problem, need_bytes = processes.from_main((problem, need_bytes))  # type: ignore[misc]
    if processes.device.type == "cpu" and need_bytes is not None:
        keep_if_plenty(need_bytes * processes.world_size, host_memory()[1])
    return problem, predicted


def _called(processes: Processes) -> str:
    """Name what a plan for this machine hangs on: the same after a restart, another on another card."""
    hardware = detect()
    if processes.device.type != "cuda" or not hardware.gpus:
        return f"a CPU with {round(hardware.host_total_bytes / GIB)} GiB"
    card = min(hardware.gpus[: processes.on_this_machine], key=lambda card: card.total_bytes)
    return f"{card.name} with {round(card.total_bytes / GIB)} GiB"


def _choice(
    settings: Settings, processes: Processes, begun: Strategy | None
) -> tuple[Candidate, tuple[Rung, ...]] | str:
    """Return the best plan and its ladder, or why there is none. `begun`: of a run that goes on, to learn the same."""
    candidates = _planner(settings, processes).candidates()
    if begun is not None:
        candidates = [
            one for one in candidates if one.strategy.adapters == begun.adapters and one.seq_len == settings.seq_len
        ]
    chosen = choose([candidate for candidate in candidates if candidate.strategy.device == processes.device.type])
    if chosen is None:
        other = tr("; the CPU would do: --device cpu") if choose(candidates) else ""
        return tr(
            "no strategy fits {model} here: `bigqa probe {model} --all` shows why{other}",
            model=settings.model,
            other=other,
        )
    return chosen, ladder_of(candidates, chosen)


def _planner(settings: Settings, processes: Processes) -> Planner:
    job = job_of(settings)
    config = job.config()
    check_lengths(config, settings.seq_len)
    hardware = detect()
    # Processes of one run are alike, so the card with the least free memory decides.
    cards = hardware.gpus[: processes.on_this_machine] if processes.device.type == "cuda" else ()
    gpu = min(cards, key=lambda card: card.free_bytes, default=None)
    machine = machine_for(
        hardware,
        gpu,
        num_gpus=processes.on_this_machine,
        num_nodes=processes.world_size // processes.on_this_machine,
        nvme=settings.nvme is not None,
        disk_free_bytes=free_space(settings.nvme) if settings.nvme else None,
        # What this process holds already is part of what is predicted.
        host_bytes=hardware.host_free_bytes + psutil.Process().memory_info().rss,
    )
    workload = Workload(seq_len=settings.seq_len, global_batch=settings.global_batch)
    return Planner(known_estimator(config, job.kind), workload, machine)
