"""Puts a step together. In: a model, a task, a strategy and settings. Out: the parts that `train_step` works on."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bigqa.engine import adapters, modules, recompute
from bigqa.engine.alike import without_bf16
from bigqa.engine.attention import kernels as attention
from bigqa.engine.attention.packing import can_pack
from bigqa.engine.layers import freeze, rate_shares
from bigqa.engine.loop.step import Parts
from bigqa.engine.offload import ActivationOffload
from bigqa.engine.optim.optimizers import make_optimizer, parameter_groups, undecayed_names
from bigqa.engine.optim.precision import DTYPES, Weights, cast
from bigqa.engine.optim.release import ReleasedUpdate
from bigqa.engine.optim.scaling import LossScaler
from bigqa.engine.optim.update import Update
from bigqa.engine.processes import Processes
from bigqa.engine.sharding import ShardedUpdate
from bigqa.engine.stream import building as streaming
from bigqa.engine.zero import deepspeed_config
from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.settings import Settings
from bigqa.strategy import Precision, Strategy, missing_package, with_low_precision
from bigqa.tasks.base import TrainedTask

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Takes groups of parameters."""


def choose_precision(asked: str, device: torch.device) -> Precision:
    """Resolve "auto": bf16 where the hardware multiplies in it, else fp32."""
    if asked != "auto":
        return {"bf16": "bf16", "fp16": "fp16"}.get(asked, "fp32")  # type: ignore[return-value]
    if device.type == "cuda":
        return "fp16" if without_bf16(device) else "bf16"
    return "bf16" if cpu_multiplies_bf16() else "fp32"


def strategy_of(settings: Settings, device: torch.device) -> Strategy:
    """Return the strategy that a plan or `--strategy` gave, else the plain one.

    In the precision asked for; else a row's low precision is what the device is best at.
    """
    kind: Literal["cuda", "cpu"] = "cuda" if device.type == "cuda" else "cpu"
    precision = choose_precision(settings.precision, device)
    if settings.strategy is None:
        return Strategy(precision=precision, device=kind)
    strategy = settings.strategy.model_copy(update={"device": kind})
    if settings.precision == "auto":
        return with_low_precision(strategy, precision)
    # Random rounding is of bf16 alone, whatever is asked for.
    return strategy if strategy.precision == "bf16-sr" else strategy.model_copy(update={"precision": precision})


def not_together(strategy: Strategy, world_size: int = 1) -> str | None:
    """Say which axes of a strategy exclude each other; none where they can be had at once."""
    if strategy.release and world_size > 1:
        return tr("gradients can be released in one process alone: several must average them first")
    if strategy.release and strategy.precision == "fp16":
        return tr("released gradients cannot be taken back when fp16 overflows; use bf16")
    if strategy.needs_deepspeed and (strategy.release or strategy.precision == "bf16-sr"):
        return tr("DeepSpeed has its own update: neither gradient release nor stochastic rounding goes with ZeRO")
    if strategy.zero_stage == 3 and strategy.recompute == "selective":
        # DeepSpeed's `LinearFunctionForZeroStage3`: recomputing would add the bias to the kept result once more.
        return tr("ZeRO-3 adds biases in place to results that selective recomputation keeps; use full recomputation")
    if strategy.stream and _beside_streaming(strategy):
        return _beside_streaming(strategy)
    if strategy.needs_deepspeed and (strategy.optimizer != "adamw" or strategy.adapters != "none"):
        return tr("8-bit states and adapters do not go with ZeRO here")
    return None


def _beside_streaming(strategy: Strategy) -> str | None:
    if strategy.needs_deepspeed or strategy.adapters != "none":
        return tr("streamed layers go with neither ZeRO nor adapters")
    if strategy.recompute != "none" or strategy.activation_offload or strategy.release:
        return tr("streamed layers recompute, offload and release by themselves: leave these axes out")
    if strategy.optimizer != "adamw" and (strategy.precision, strategy.optimizer) != ("bf16-sr", "adamw8bit"):
        return tr("streamed layers have 8-bit states with random rounding alone")
    if "cpu" in (strategy.offload_optimizer, strategy.offload_parameters):
        return tr("streamed layers lie in host memory by themselves: offload them to nvme, or leave these axes out")
    return None


def possible_strategy(settings: Settings, processes: Processes) -> Strategy:
    """Return the run's strategy.

    Raises: BigqaError where its axes exclude each other, or a package or a folder is missing that it needs.
    """
    strategy = strategy_of(settings, processes.device)
    problem = not_together(strategy, processes.world_size) or missing_package(strategy)
    problem = problem or _has_no_bf16(strategy, processes.device) or _one_rate_alone(strategy, settings)
    if problem:
        raise BigqaError(tr("this strategy cannot be had: {problem}", problem=problem))
    if strategy.needs_disk and settings.nvme is None:
        raise BigqaError(tr("this strategy offloads to a disk: say where with --nvme DIR"))
    return strategy


def _one_rate_alone(strategy: Strategy, settings: Settings) -> str | None:
    """Say that an update of a strategy's own knows one rate, and trains all layers."""
    asked = {"--layer-decay": settings.layer_decay, "--freeze-layers": settings.freeze_layers}
    named = [name for name, value in asked.items() if value is not None]
    if not named or not (strategy.needs_deepspeed or strategy.stream):
        return None
    return tr("{named} goes neither with ZeRO nor with streamed layers; choose a strategy without them", named=named[0])


def _has_no_bf16(strategy: Strategy, device: torch.device) -> str | None:
    if device.type != "cuda" or not strategy.precision.startswith("bf16"):
        return None
    lacking = without_bf16(device)
    return lacking and tr("{lacking} has no bf16: use fp16 or fp32", lacking=lacking)


def change(model: nn.Module, strategy: Strategy, *, frozen: int | None = None) -> Weights:
    """Apply the axes that change the model; return its weights as the optimizer sees them.

    `frozen`: layers that learn nothing. Trainer and predictor share this.
    """
    change_modules(model, strategy)
    if frozen is not None:
        freeze(model, frozen)
    return Weights(model, strategy.precision)


def change_modules(model: nn.Module, strategy: Strategy) -> None:
    if getattr(getattr(model, "config", None), "use_cache", None):
        # Decoders keep keys and values for a next token that never comes, and once more in every recomputation.
        model.config.use_cache = False  # type: ignore[union-attr]
    attention.use(model)
    adapters.apply(model, strategy.adapters)
    modules.swap(model, strategy.device)  # the adapters' dropout too
    recompute.apply(model, strategy.recompute)


def make_offload(model: nn.Module, strategy: Strategy) -> ActivationOffload | None:
    """Return what sends activations to the host, where the strategy has it."""
    return ActivationOffload(model) if strategy.activation_offload else None


def make_update(model: nn.Module, strategy: Strategy, weights: Weights, make: MakeOptimizer, **options: Any) -> Update:
    """Return the update of a model that `change` was applied to; the predictor brings its own optimizers."""
    groups, clip = options["groups"], options["clip"]
    if strategy.release:
        return ReleasedUpdate(model, weights, groups, lambda group: make([group]), clip=clip)
    scaler = LossScaler() if strategy.precision == "fp16" else None
    return Update(model, weights, make(groups), clip=clip, world_size=options.get("world_size", 1), scaler=scaler)


def build(model: nn.Module, task: TrainedTask, settings: Settings, processes: Processes) -> Parts:
    """Place the model, make its masters and optimizer, and wrap it for the processes. Raises: BigqaError."""
    strategy = possible_strategy(settings, processes)
    undecayed = undecayed_names(model)
    packs = _packs(model, task, strategy, settings.seq_len, processes.device)
    if strategy.needs_deepspeed:
        change_modules(model, strategy)
        # Rounded in host memory, so that a GPU never holds fp32 weights that it would only give up.
        exact = {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}
        cast(model, DTYPES[strategy.precision])
        sharded = _sharded(model, exact, strategy, settings, processes, undecayed)
        return Parts(
            model=sharded.engine, update=sharded, task=task, packs=packs, offload=make_offload(model, strategy)
        )
    if strategy.stream:
        change_modules(model, strategy)
        rates = streaming.Rates(eps=settings.adam_eps, clip=settings.clip, weight_decay=settings.weight_decay)
        group = processes.host_group()
        passes, streamed = streaming.streamed(
            model, task, strategy, processes.device, rates, group, folder=settings.nvme
        )  # fmt: skip
        return Parts(model=model, update=streamed, task=task, packs=packs, passes=passes)
    weights = change(model, strategy, frozen=settings.freeze_layers)
    shares = None if settings.layer_decay is None else rate_shares(model, settings.layer_decay)
    weights.place(model, processes.device)
    wrapped = processes.wrap(model)
    update = make_update(
        wrapped,
        strategy,
        weights,
        lambda groups: make_optimizer(strategy, groups, lr=settings.lr, eps=settings.adam_eps),
        groups=parameter_groups(weights.masters, undecayed, settings.weight_decay, shares),
        clip=settings.clip,
        world_size=processes.world_size,
    )
    return Parts(model=wrapped, update=update, task=task, packs=packs, offload=make_offload(model, strategy))


def _packs(model: nn.Module, task: TrainedTask, strategy: Strategy, seq_len: int, device: torch.device) -> bool:
    """Whether windows are packed: tried in host memory, with the weights as they are loaded, alike on every process."""
    attention.use(model)
    return attention.packs_on(device, DTYPES[strategy.precision], model.config, seq_len) and can_pack(
        model, task, seq_len
    )


def _sharded(
    model: nn.Module,
    exact: Mapping[str, Tensor],
    strategy: Strategy,
    settings: Settings,
    processes: Processes,
    undecayed: set[str],
) -> ShardedUpdate:
    config = deepspeed_config(
        strategy,
        clip=settings.clip,
        global_batch=settings.global_batch,
        micro_batch=share_of_batch(settings, processes.world_size),
        world_size=processes.world_size,
        nvme=settings.nvme,
        num_parameters=sum(p.numel() for p in model.parameters()),
    )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = parameter_groups(trained, undecayed, settings.weight_decay)
    rates = {"lr": settings.lr, "eps": settings.adam_eps}
    return ShardedUpdate(model, exact, groups, strategy, config, world_size=processes.world_size, **rates)


def share_of_batch(settings: Settings, world_size: int) -> int:
    """Return the micro-batch: the one asked for, or a process's whole share of the global batch."""
    share = -(-settings.global_batch // world_size)
    return min(settings.micro_batch or share, share)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products."""
    cpuinfo = Path("/proc/cpuinfo")
    if os.name != "posix" or not cpuinfo.is_file():
        return False
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace")
    return "avx512_bf16" in flags or "amx_bf16" in flags
