"""From a loss to changed weights: backward, clipping, AdamW. In: a model, its weights, an optimizer. Out: `Update`.

The update in place is the plain one. `engine.release` steps each parameter within the backward pass, `engine.sharding`
leaves the whole to DeepSpeed; all three give and take the same canonical `State`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.lazy import Lazy
from bigqa.engine.optim import moments
from bigqa.engine.optim.precision import Weights
from bigqa.engine.optim.scaling import LossScaler


@dataclass(frozen=True, kw_only=True)
class State:
    """What a run must keep of its weights and optimizer, however it is trained. fp32, by parameter name."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """`exp_avg.NAME` and `exp_avg_sq.NAME`; none before the first step."""
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    """Of the moments that are kept in 8 bits, by the same names; see `moments`."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """`scaler` of a run that is in fp16 or was, `last_norm` of released gradients."""


class Update:
    """Steps all parameters at once, after the backward pass of the last micro-batch."""

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float,
        world_size: int = 1,
        scaler: LossScaler | None = None,
    ) -> None:
        self._start(model, world_size=world_size, scaler=scaler)
        self.weights = weights
        self.optimizer = optimizer
        self.clip = clip

    def _start(self, model: nn.Module, *, world_size: int = 1, scaler: LossScaler | None = None) -> None:
        """Make what every update has, whatever else it is."""
        self.model = model
        """Perhaps wrapped for several processes; its gradients are then averages over the processes."""
        self.world_size = world_size
        self.scaler = scaler
        """For fp16 alone."""
        self.scaling = scaler or LossScaler()
        """What a checkpoint keeps of it, in every precision: a run may go on in another one and come back."""
        self.changing = False
        """Whether weights are being changed: a failure now leaves them neither before a step nor after it."""
        self.turn = threading.RLock()
        """Held while weights are being changed, or read by a thread beside the one that trains."""
        self.completed = 0
        """Steps that the weights have been through since this was made."""

    @property
    def skipped(self) -> int:
        """Steps of the run that changed nothing: gradients overflowed in fp16."""
        return self.scaling.skipped

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("rate_share", 1.0)

    def begin(self, step: int, seed: int) -> None:
        """Begin a step: what is drawn in it, the same on all processes, follows from both numbers."""
        draw = getattr(self.optimizer, "draw_from", None)
        if draw is not None:
            draw(step, seed)

    @contextlib.contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Hold around a micro-batch's forward and backward pass."""
        no_sync = getattr(self.model, "no_sync", None)
        with contextlib.nullcontext() if is_last or no_sync is None else no_sync():
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of the step's mean loss."""
        scale = 1.0 if self.scaler is None else self.scaler.scale
        # Gradients are averaged over the processes, and are wanted summed.
        (loss * (self.world_size * scale)).backward()

    def step(self) -> Tensor:
        """Clip, step, and free the gradients. Returns: their norm before clipping, a scalar."""
        with self.turn:
            return self._step()

    def _step(self) -> Tensor:
        self.weights.gather_gradients()
        gradients = [p.grad for p in self.weights.masters.values() if p.grad is not None]
        if self.scaler is not None:
            torch._foreach_mul_(gradients, 1.0 / self.scaler.scale)
        norm = clip_gradients(gradients, self.clip)
        # Without data, as in a trace, nothing overflows.
        finite = self.scaler is None or norm.is_meta or bool(torch.isfinite(norm))
        if self.scaler is not None:
            self.scaler.update(finite=finite)
        if finite:
            self.changing = True
            self.optimizer.step()
            self.weights.publish()
        self.completed += 1
        self.changing = False
        del gradients
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def holds_all(self) -> bool:
        """Whether one process can tell the whole state without the others."""
        return True

    def forget_gradients(self) -> None:
        """Drop the gradients of a step that is not finished."""
        for parameter in (*self.model.parameters(), *self.weights.masters.values()):
            parameter.grad = None

    def optimizer_of(self, master: nn.Parameter) -> torch.optim.Optimizer:
        """Return the optimizer that steps a parameter."""
        return self.optimizer

    def state(self) -> State:
        """Return the canonical state; a collective call where states are sharded. What is not read is not copied."""
        makers: dict[str, Callable[[], Tensor]] = {}
        scales: dict[str, Callable[[], Tensor]] = {}
        for name, master in self.weights.masters.items():
            makers |= moments.makers(name, self.optimizer_of(master), master)
            scales |= moments.scale_makers(name, self.optimizer_of(master), master)
        return State(weights=self.weights.masters, moments=Lazy(makers), scales=Lazy(scales), extras=self._extras())

    def load(self, state: State, step: int) -> None:
        """Take a canonical state, as it was after `step` steps."""
        self.weights.load(state.weights)
        self._load_extras(state.extras)
        for name, master in self.weights.masters.items():
            if f"{moments.NAMES[0]}.{name}" in state.moments:
                first, second = (state.moments[f"{kind}.{name}"] for kind in moments.NAMES)
                of_first, of_second = (state.scales.get(f"{kind}.{name}") for kind in moments.NAMES)
                optimizer, after = self.optimizer_of(master), step - self.skipped
                moments.put(optimizer, master, (first, second), after, (of_first, of_second))

    def names(self) -> set[str]:
        """Return the names of all trained parameters."""
        return set(self.weights.masters)

    def numel(self) -> int:
        """Return how many values are trained, on all processes together."""
        return sum(master.numel() for master in self.weights.masters.values())

    def finish(self) -> nn.Module:
        """Return the trained model with fp32 weights, out of its wrappers, in host memory.

        The update cannot be used afterwards: what it kept on a device is freed, since scoring wants the room.
        """
        model: nn.Module = getattr(self.model, "module", self.model)
        self.forget_gradients()
        for master in self.weights.masters.values():
            self.optimizer_of(master).state.clear()
        self.weights.hand_back(model)
        self.model = model  # its wrapper has buckets, as large as all gradients
        return model

    def _extras(self) -> dict[str, Any]:
        is_of_use = self.scaler is not None or self.scaling != LossScaler()
        return {"scaler": asdict(self.scaling)} if is_of_use else {}

    def _load_extras(self, extras: Mapping[str, Any]) -> None:
        for name, value in (extras.get("scaler") or {}).items():
            setattr(self.scaling, name, value)


def clip_gradients(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Scale gradients, in place, to a global norm of at most `max_norm`; return the norm before that.

    As `torch.nn.utils.clip_grad_norm_`, but with the multi-tensor kernels named: that one refuses tensors without data.
    """
    norms = torch._foreach_norm(gradients, 2.0)
    norm = torch.linalg.vector_norm(torch.stack([value.float() for value in norms]), 2.0)
    torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm
