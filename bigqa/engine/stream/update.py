"""The update on the host, unit by unit. In: units with their gradients. Out: an `Update` with the canonical state.

Gradients are added up over the processes, and their norms taken, as they leave, beside the backward pass of the layers
below. Where all wait on the host, the global norm is known before the first weight changes, as in the plain update.
Where they do not wait, as with random rounding, each unit is stepped then as well, clipped by the norm of the step
before, as `engine.optim.release` does it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.lazy import Lazy
from bigqa.engine.optim.moments import NAMES
from bigqa.engine.optim.pieces import pieces_of
from bigqa.engine.optim.scaling import LossScaler
from bigqa.engine.optim.update import State, Update
from bigqa.engine.pinned import whole_pages
from bigqa.engine.stream.beside import Beside
from bigqa.engine.stream.host_steps import HostSteps
from bigqa.engine.stream.link import Link
from bigqa.engine.stream.passes import LayerPasses
from bigqa.engine.stream.placing import Placed
from bigqa.engine.stream.store import Unit, Weight, take
from bigqa.engine.stream.sums import Sums
from bigqa.engine.stream.tables import RowGradient

READ_AHEAD = 2**22
"""Elements of the next weight whose states are read while one is stepped."""
WHOLE = slice(0, None)


class StreamedUpdate(Update):
    """Steps what lies on the host."""

    def __init__(
        self, placed: Placed, passes: LayerPasses, steps: HostSteps, *, clip: float, weight_decay: float,
        scaler: LossScaler | None, sums: Sums,
    ) -> None:  # fmt: skip
        self._start(placed.model, scaler=scaler)
        self.placed, self.passes, self.steps, self.sums = placed, passes, steps, sums
        self.link: Link = passes.link
        self.clip, self.weight_decay = clip, weight_decay
        self.lr = 0.0
        self._last_norm: Tensor | None = None
        self._norms: dict[str, Tensor] = {}
        """Of this step, by name."""
        self.shelf = placed.shelf
        # Of two layers' gradients that have places, one's are taken while the next one's come.
        self.beside = Beside(self.link.device, ahead=1 if placed.takes_turns else None)
        for unit in placed.units:
            sums.from_first((unit.flat, unit.rest))
        self._begin_passes()
        placed.on_gradient = self._leave
        placed.bring_outer()

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        self.lr = lr

    def begin(self, step: int, seed: int) -> None:
        """Begin a step."""
        self.steps.draw_from(step, seed)

    def step(self) -> Tensor:
        """Clip and step, or end a step whose units have been stepped. Returns: the norm before clipping."""
        with self.turn:
            return self._step()

    def _step(self) -> Tensor:
        self.placed.send_outer()
        if self.link.device.type == "meta":
            norm = torch.zeros((), device="meta")
            self._pass_without_data()
        else:
            for unit in self.placed.others:
                self._leave(unit)
            self.beside.done()
            self.link.land()
            norm = self._step_all() if self.steps.waits else self._end_of_steps()
        self._end()
        return norm

    def _step_all(self) -> Tensor:
        scale = 1.0 / (self.scaler.scale if self.scaler is not None else 1.0)
        norm = self._norm() * scale
        finite = self.scaler is None or bool(torch.isfinite(norm))
        if self.scaler is not None:
            self.scaler.update(finite=finite)
        if finite:
            self._change()
            factor = torch.clamp(self.clip / (norm + 1e-6), max=1.0) * scale
            self._step_in_turn([one for one in self.placed.weights.values() if one.is_touched], factor)
        return norm

    def _step_in_turn(self, weights: Sequence[Weight], factor: Tensor) -> None:
        """Step weights, the next one's states being read meanwhile."""
        for one, following in zip(weights, [*weights[1:], None], strict=True):
            if following is not None:
                self.shelf.ahead(part[:READ_AHEAD] for part in self.steps.passes(following))
            self._step_one(one, factor)

    def _step_one(self, weight: Weight, factor: Tensor) -> None:
        decay = self.weight_decay if weight.decays else 0.0
        self.steps.step(weight, weight.gradient_kept(), self.lr, decay, factor)

    def _change(self) -> None:
        """Begin to change weights, which a thread beside this one must not read until the step is over."""
        if not self.changing:
            self.turn.acquire()
        self.changing = True

    def _leave(self, unit: Unit) -> None:
        """Take the gradients of a unit, which are whole, beside the backward pass of the layers below."""
        if self.link.device.type == "meta":
            return
        if not self.steps.waits:
            self._change()
        landed = self.link.mark()
        self.beside.begin(lambda: self._take(unit, landed))

    def _take(self, unit: Unit, landed: Callable[[], None]) -> None:
        """Add the gradients up, note their norms, and step where they do not wait for the others'."""
        landed()
        if unit.gradient is not None:
            self.sums.add(unit.gradient)
        for one in unit.weights.values():
            if not one.is_touched:
                continue
            if isinstance(one.gradient, RowGradient):
                self.sums.add(one.gradient.values)
            norm = self._norms[one.name] = one.gradient_of_step().norm()
            if not self.steps.waits:
                known = norm if self._last_norm is None else self._last_norm
                self._step_in_turn([one], torch.clamp(self.clip / (known + 1e-6), max=1.0))
        self._lay_by(unit)

    def _lay_by(self, unit: Unit) -> None:
        """Put gradients where they wait: the place that they came to is wanted for another layer's."""
        if unit.waiting is None or unit.gradient is None:
            return
        for piece in self.shelf.along(pieces_of(unit.gradient), changed=[unit.waiting]):
            unit.waiting[piece].copy_(unit.gradient[piece])

    def _pass_without_data(self) -> None:
        """Pass everything that an update does, where what passes is counted alone."""
        for unit in self.placed.layer_units:
            if unit.waiting is not None:
                list(self.shelf.along([WHOLE], changed=[unit.waiting]))
        for one in self.placed.weights.values():
            waiting = [] if one.waiting is None else [one.waiting]
            list(self.shelf.along([WHOLE], changed=self.steps.passes(one), read=waiting))

    def _end_of_steps(self) -> Tensor:
        self._last_norm = self._norm()
        return self._last_norm

    def _norm(self) -> Tensor:
        """Return the global norm, of all weights' in the plain update's order."""
        return torch.linalg.vector_norm(
            torch.stack([self._norms[n] for n in self.placed.weights if n in self._norms]), 2.0
        )

    def _end(self) -> None:
        self.forget_gradients()
        self.completed += 1
        if self.changing:
            self.changing = False
            self.turn.release()
        self.placed.slots.forget()
        self.placed.bring_outer()
        self._begin_passes()

    def _begin_passes(self) -> None:
        self.passes.scale = 1.0 if self.scaler is None else self.scaler.scale

    def forget_gradients(self) -> None:
        """Drop the gradients of a step that is not finished."""
        self.beside.drop()
        self.placed.forget_gradients()
        self.passes.forget()
        self._norms = {}

    @property
    def handed_back_bytes(self) -> int:
        """What `finish` will take of a disk besides."""
        sizes = (one.low.numel() * torch.float32.itemsize for one in self.placed.weights.values())
        return sum(map(whole_pages, sizes)) if self.shelf.weights_on_disk else 0

    def names(self) -> set[str]:
        """Return the names of all trained parameters."""
        return set(self.placed.weights)

    def state(self) -> State:
        """Return the canonical state; what is not read is not made."""
        weights: dict[str, Callable[[], Tensor]] = {}
        moments: dict[str, Callable[[], Tensor]] = {}
        scales: dict[str, Callable[[], Tensor]] = {}
        for name, one in self.placed.weights.items():
            weights[name] = functools.partial(self.placed.exact, one)
            moments |= self.steps.moments(one)
            scales |= self.steps.scales(one)
        return State(weights=Lazy(weights), moments=Lazy(moments), scales=Lazy(scales), extras=self._extras())

    def load(self, state: State, step: int) -> None:
        """Take a canonical state, as it was after `step` steps."""
        self._load_extras(state.extras)
        for name, one in self.placed.weights.items():
            take(one, state.weights[name], self.shelf)
            if f"{NAMES[0]}.{name}" in state.moments:
                moments, scales = (
                    tuple(kept.get(f"{kind}.{name}") for kind in NAMES) for kept in (state.moments, state.scales)
                )
                self.steps.load(one, moments, step - self.skipped, scales)
        self.placed.slots.forget()
        self.placed.bring_outer()
        self._begin_passes()

    def numel(self) -> int:
        """Return how many values are trained."""
        return sum(one.shape.numel() for one in self.placed.weights.values())

    def finish(self) -> nn.Module:
        """Return the trained model with fp32 weights in host memory, as it was before it was streamed."""
        self.forget_gradients()
        self.steps.forget(self.placed.weights.values())
        return self.placed.hand_back()

    def _extras(self) -> dict[str, Any]:
        norm = {} if self._last_norm is None else {"last_norm": float(self._last_norm)}
        return super()._extras() | norm

    def _load_extras(self, extras: Mapping[str, Any]) -> None:
        super()._load_extras(extras)
        if extras.get("last_norm") is not None and not self.steps.waits:
            self._last_norm = torch.tensor(extras["last_norm"])
