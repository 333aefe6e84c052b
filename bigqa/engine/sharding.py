"""ZeRO through DeepSpeed: states sharded over the processes, and offloaded to the host or a disk.

In: a model and a strategy. Out: an `Update` whose canonical state is that of every other one. DeepSpeed is given
our own configuration (see `bigqa.engine.zero`) and our own optimizer; only its CPU Adam is its own.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.extensions import make_ready
from bigqa.engine.fragments import whole_on_first
from bigqa.engine.optim.moments import NAMES
from bigqa.engine.optim.optimizers import BETAS
from bigqa.engine.optim.scaling import ForDeepSpeed, LossScaler
from bigqa.engine.optim.update import State, Update
from bigqa.engine.recovery import is_out_of_memory
from bigqa.engine.zero import NORMED_AT_ONCE
from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.strategy import Strategy

INSTALL = tr("ZeRO needs DeepSpeed: pip install 'bigqa[deepspeed]'")

CUT_UP = ("lp_param_buffer", "grad_partitions_flat_buffer")
"""Of stage 3, what the parameters' parts lie in. Parameters outlive the engine, and their parts with them."""


class ShardedUpdate(Update):
    """Leaves backward, clipping and step to DeepSpeed."""

    def __init__(
        self, model: nn.Module, exact: Mapping[str, Tensor], groups: list[dict[str, Any]], strategy: Strategy,
        config: dict[str, Any], *, lr: float, eps: float, world_size: int,
    ) -> None:  # fmt: skip
        """`exact`: the trained weights in fp32; the model's may be rounded already."""
        deepspeed = _deepspeed(strategy.device)
        _need_group(strategy.device)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if strategy.zero_stage == 3:
            _partition_from_host(deepspeed, model, config)
        optimizer = _optimizer(deepspeed, groups, strategy, lr=lr, eps=eps)
        try:
            self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise BigqaError(tr("DeepSpeed did not start: {error}", error=error)) from error
        if hasattr(self.engine.optimizer, "_constant_buffered_norm2"):
            whole = self.engine.optimizer._constant_buffered_norm2
            self.engine.optimizer._constant_buffered_norm2 = functools.partial(whole, buffer_size=NORMED_AT_ONCE)
        self.module = model
        self.stage = strategy.zero_stage
        scaler = LossScaler() if strategy.precision == "fp16" else None
        self._start(self.engine, world_size=world_size, scaler=scaler)
        if scaler is not None:
            self.engine.optimizer.loss_scaler = ForDeepSpeed(scaler)
        # DeepSpeed takes its masters from weights that are rounded already.
        self._set_masters(exact)

    def begin(self, step: int, seed: int) -> None:
        """Begin a step."""

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr

    @contextlib.contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Hold around a micro-batch's forward and backward pass."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of the step's mean loss."""
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self) -> Tensor:
        """Clip and step. Returns: the norm before clipping."""
        self.changing = True
        self.engine.step()
        if self.scaler is not None:
            self.scaler.update(finite=not self.engine.optimizer.overflow)
        self.completed += 1
        self.changing = False
        norm = self.engine.get_global_grad_norm()  # on the device: whether it is zero is not asked, which would wait
        return torch.as_tensor(0.0 if norm is None else norm)

    def state(self) -> State:
        """Gather the canonical state on the first process; every process must call."""
        return self._gathered(with_moments=all(self._base_state()))

    def _gathered(self, *, with_moments: bool) -> State:
        weights: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        if with_moments:
            self._link_states()
        for name, parameter in self.parameters.items():
            for kind in (None, *(NAMES if with_moments else ())):
                whole = self._whole(parameter, kind)
                if whole is not None:
                    into, key = (weights, name) if kind is None else (kept, f"{kind}.{name}")
                    into[key] = whole.view(_shape(parameter))
        return State(weights=weights, moments=kept, extras=self._extras())

    def _whole(self, parameter: nn.Parameter, kind: str | None) -> Tensor | None:
        """Return fp32 weights, or moments of a kind, on the first process's host. As DeepSpeed's `safe_get_*`."""
        numel = _shape(parameter).numel()
        if self.stage == 3:
            part, _ = self.engine.optimizer._get_fp32_opt_state_partition(parameter, True, kind)
            start = torch.distributed.get_rank() * part.numel()
            return whole_on_first(part[: max(0, numel - start)], start, numel, self.engine.device)
        fragment: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if fragment is None:
            return whole_on_first(None, 0, numel, self.engine.device)
        start = fragment.lp_fragment_address.start
        return whole_on_first(fragment.get_hp_fragment(kind), start, numel, self.engine.device)

    def load(self, state: State, step: int) -> None:
        """Take a canonical state, as it was after `step` steps."""
        self._set_masters(state.weights)
        self._round_into_model(state.weights)
        self._load_extras(state.extras)
        if not state.moments:
            return
        self._make_states(step - self.skipped)
        for name, parameter in self.parameters.items():
            for kind in NAMES:
                self._set(parameter, state.moments[f"{kind}.{name}"], kind)

    @property
    def holds_all(self) -> bool:
        """Whether one process can tell the whole state without the others."""
        return False

    def forget_gradients(self) -> None:
        """Drop the gradients of a step that is not finished."""
        self.engine.zero_grad()

    def names(self) -> set[str]:
        """Return the names of all trained parameters."""
        return set(self.parameters)

    def numel(self) -> int:
        """Return how many values are trained, on all processes together."""
        return sum(_shape(parameter).numel() for parameter in self.parameters.values())

    def finish(self) -> nn.Module:
        """Return the trained model, whole and in fp32, on the first process."""
        state = self._gathered(with_moments=False)
        whole: nn.Module = type(self.module)(self.module.config)  # type: ignore[arg-type]
        if state.weights:
            whole.load_state_dict(state.weights, strict=False)
            whole.tie_weights()  # type: ignore[operator]
        self._let_go()
        self.model = self.module = whole
        return whole

    def _let_go(self) -> None:
        """Give back what the engine has of the device: scoring wants the room, and no step comes any more."""
        self.engine.destroy()
        for tensor in (*self.module.parameters(), *self.module.buffers(), *self._flats()):
            tensor.data = torch.empty(0)
        for name in CUT_UP:
            flat = getattr(self.engine.optimizer, name, None)
            if flat is not None and not flat.is_pinned():
                flat.untyped_storage().resize_(0)  # whoever still has a part of it
        self.engine.optimizer.optimizer.state.clear()
        self.engine, self.parameters = None, {}

    def _set_masters(self, weights: Mapping[str, Tensor]) -> None:
        """Take fp32 weights out of host memory, never by way of a device: it may have just the room to train."""
        for name, parameter in self.parameters.items():
            self._set(parameter, weights[name], None)

    def _round_into_model(self, weights: Mapping[str, Tensor]) -> None:
        import deepspeed

        for name, parameter in self.parameters.items():
            if self.stage < 3:
                parameter.data.copy_(weights[name])
                continue
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if torch.distributed.get_rank() == 0:
                    parameter.data.copy_(weights[name])

    def _set(self, parameter: nn.Parameter, value: Tensor, kind: str | None) -> None:
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.float()
        if self.stage == 3:  # DeepSpeed's own setter of whole tensors does not pad them to a multiple of the processes
            value = self._partition(parameter, value)
            if kind is None:
                safe_set_local_fp32_param(parameter, value)
            else:
                safe_set_local_optimizer_state(parameter, value, kind)
        elif kind is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def _partition(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        padded = torch.zeros(size * self.world_size, device=value.device)
        padded[: value.numel()] = value.flatten()
        rank = torch.distributed.get_rank()
        return padded[rank * size : (rank + 1) * size]

    def _base_state(self) -> list[dict[str, Any]]:
        base = self.engine.optimizer.optimizer
        return [base.state.get(flat) or {} for flat in self._flats()]

    def _link_states(self) -> None:
        """Let DeepSpeed find the moments by parameter: in stages 1 and 2 it links those of the first group alone."""
        if self.stage < 3:
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _flats(self) -> list[Tensor]:
        zero = self.engine.optimizer
        flats: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        )
        return flats

    def _make_states(self, step: int) -> None:
        """Make the moments that the first step would make."""
        base = self.engine.optimizer.optimizer
        as_tensor = isinstance(base, torch.optim.AdamW)
        for group, flat in enumerate(self._flats()):
            with self._in_memory(group):
                state = base.state[flat]
                state["step"] = torch.tensor(float(step), device=flat.device) if as_tensor else step
                for kind in NAMES:
                    state.setdefault(kind, torch.zeros_like(flat))
        self._link_states()

    def is_on_disk(self, group: int) -> bool:
        """Whether a group's states are on a disk between steps: small ones stay in memory."""
        return self.stage == 3 and bool(self.engine.optimizer._swappable_optimizer_subgroup(group))

    @contextlib.contextmanager
    def _in_memory(self, group: int) -> Iterator[None]:
        """Hold around work on a group's states: on a disk, they are read before, and written back with what was added.

        Of a group that is on a disk, the tensor itself is empty.
        """
        zero, is_on_disk = self.engine.optimizer, self.is_on_disk(group)
        if is_on_disk:
            zero._optimizer_states_and_gradient_swap_in(group)
        yield
        if is_on_disk:
            zero._optimizer_states_and_gradient_swap_out(group)


def _deepspeed(device: str) -> Any:
    if device == "cpu":  # asked for on a machine that has a card, which DeepSpeed would take
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError:
        raise BigqaError(INSTALL) from None
    make_ready()
    return deepspeed


def _optimizer(deepspeed: Any, groups: list[dict[str, Any]], strategy: Strategy, *, lr: float, eps: float) -> Any:
    if strategy.offload_optimizer == "none":
        return torch.optim.AdamW(groups, lr=lr, eps=eps, betas=BETAS, fused=True)
    try:
        return deepspeed.ops.adam.DeepSpeedCPUAdam(groups, lr=lr, eps=eps, betas=BETAS, adamw_mode=True)
    except Exception as error:  # it compiles itself: anything may go wrong, and hides behind an AttributeError
        raise BigqaError(
            tr(
                "DeepSpeed's CPU Adam does not build here: it needs a C++ compiler (apt-get install g++) and "
                "ninja (pip install ninja); `ds_report` shows more ({kind}: {error})",
                kind=type(error).__name__,
                error=error,
            )
        ) from error


def _partition_from_host(deepspeed: Any, model: nn.Module, config: dict[str, Any]) -> None:
    """Partition a model that is in host memory parameter by parameter: the device never holds it as a whole.

    DeepSpeed itself would first place all of it. Buffers it leaves where they are.
    """
    device = torch.device(deepspeed.get_accelerator().current_device_name())
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _need_group(device: str) -> None:
    """Make a group of one process, where the launcher made none: DeepSpeed wants one."""
    if torch.distributed.is_initialized():
        return
    backend = "nccl" if device == "cuda" else "gloo"
    os.environ.setdefault("LOCAL_RANK", "0")
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)


def _shape(parameter: nn.Parameter) -> torch.Size:
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
