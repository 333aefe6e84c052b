"""A step, layer by layer: all micro-batches pass a layer before the next one's weights come. Out: gradients.

Forward: what comes before the layers runs for each micro-batch, then each layer for all of them; nothing is kept but
the hidden states at the borders. Backward: each layer runs once more, with the random numbers that it drew, and
gradients leave as soon as they are whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.loop.step import draw_for, part_of_loss
from bigqa.engine.stream.borders import Borders
from bigqa.engine.stream.layers import Call, Layers
from bigqa.engine.stream.link import Link
from bigqa.engine.stream.slots import Slots
from bigqa.engine.stream.tables import Tables
from bigqa.engine.threads import index_of
from bigqa.tasks.base import Batch, Task

GRADIENT = -1
"""In the place of a layer: the key of the gradient that goes from layer to layer."""


@dataclass
class _MicroBatch:
    number: int
    loss: Callable[[], Tensor]
    """Runs the model."""
    calls: list[Call]
    drawn: list[Any] = field(default_factory=list)
    """Where the generator was before the model, before each layer, and after the last."""
    leaves: dict[int, Tensor] = field(default_factory=dict)
    """What else is trained of a layer's arguments, by the identity of the value."""


class LayerPasses:
    """The passes of one model."""

    def __init__(
        self, model: nn.Module, layers: Layers, slots: Slots, tables: Tables, leave: Callable[[int, bool], None]
    ) -> None:
        """`leave`: is told which layer's backward pass begins, and whether with the last micro-batch."""
        self.model, self.layers, self.slots, self.tables = model, layers, slots, tables
        self.link: Link = slots.link
        self.borders = Borders(self.link)
        self.leave = leave
        self.scale = 1.0
        """What the loss is multiplied by for its backward pass."""

    def accumulate(self, task: Task, batches: list[Batch], num_windows: int) -> Tensor:
        """Bring the gradient of the step's mean loss to the host; return this process's part of that loss."""
        seed = torch.initial_seed()
        self.slots.ahead(0)
        running = [self._begin(task, batch, index, seed, num_windows) for index, batch in enumerate(batches)]
        self.tables.begin_gradients()
        for layer in range(len(self.layers)):
            self._forward(layer, running)
        total = torch.zeros((), device=self.link.device)
        for one in running:
            total += self._end(one)
        for layer in reversed(range(len(self.layers))):
            self._backward(layer, running)
        for one in running:
            self._before(one)
        self.borders.clear()
        return total

    def forget(self) -> None:
        """Drop what a step left that did not end."""
        self.borders.clear()
        self.tables.forget()

    @torch.no_grad()
    def _begin(self, task: Task, batch: Batch, number: int, seed: int, num_windows: int) -> _MicroBatch:
        def loss() -> Tensor:
            return part_of_loss(task, self.model, batch, num_windows)

        draw_for(number, seed)
        before = self._drawn()
        with self.tables.first(number):
            hidden, calls = self.layers.before(loss)
        self.borders.put((0, number), hidden)
        leaves = {
            id(call.values[place]): call.values[place].detach().requires_grad_()
            for call, places in zip(calls, self.layers.sides, strict=True)
            for place in places
        }
        return _MicroBatch(number, loss, calls, [before, self._drawn()], leaves)

    @torch.no_grad()
    def _forward(self, layer: int, running: list[_MicroBatch]) -> None:
        self.slots.use(layer, layer + 1)
        for at, one in enumerate(running):
            hidden = self.borders.get((layer, one.number))
            if at + 1 < len(running):
                self.borders.ahead((layer, running[at + 1].number))
            self._seek(one.drawn[layer + 1])
            result = self.layers.run(layer, one.calls[layer], hidden)
            one.drawn.append(self._drawn())
            self.borders.put((layer + 1, one.number), result)

    def _end(self, one: _MicroBatch) -> Tensor:
        """Run what comes after the layers; return the loss."""
        last = len(self.layers)
        hidden = self.borders.get((last, one.number)).requires_grad_()
        self._seek(one.drawn[0])
        with self.tables.blank():
            loss: Tensor = self.layers.after(one.loss, hidden, lambda: self._seek(one.drawn[-1]))
        (loss * self.scale).backward()
        assert hidden.grad is not None
        self.borders.put((GRADIENT, one.number), hidden.grad)
        return loss.detach()

    def _backward(self, layer: int, running: list[_MicroBatch]) -> None:
        self.slots.use(layer, layer - 1)
        for at, one in enumerate(running):
            hidden = self.borders.get((layer, one.number)).requires_grad_()
            outer = self.borders.get((GRADIENT, one.number))
            self._ahead_of_backward(layer, at, running)
            self._seek(one.drawn[layer + 1])
            call = one.calls[layer]
            leaves = {place: one.leaves[id(call.values[place])] for place in self.layers.sides[layer]}
            result = self.layers.run(layer, call, hidden, leaves)
            self.leave(layer, at + 1 == len(running))
            torch.autograd.backward(result, outer)
            assert hidden.grad is not None
            self.borders.put((GRADIENT, one.number), hidden.grad)

    def _ahead_of_backward(self, layer: int, at: int, running: list[_MicroBatch]) -> None:
        """Begin to fetch what the next micro-batch wants, or after the last one the first, of the layer below."""
        is_last = at + 1 == len(running)
        following = running[0 if is_last else at + 1].number
        if not is_last or layer > 0:
            self.borders.ahead((layer - 1 if is_last else layer, following))
        if len(running) > 1:  # else it is the one that is being made
            self.borders.ahead((GRADIENT, following))

    def _before(self, one: _MicroBatch) -> None:
        """Hand the gradient on to what comes before the layers."""
        self._seek(one.drawn[0])
        with self.tables.again(one.number):
            hidden, calls = self.layers.before(one.loss)
        ends, gradients = [hidden], [self.borders.get((GRADIENT, one.number))]
        for old, new, places in zip(one.calls, calls, self.layers.sides, strict=True):
            for place in places:
                leaf = one.leaves.pop(id(old.values[place]), None)
                if leaf is not None and leaf.grad is not None:
                    ends.append(new.values[place])
                    gradients.append(leaf.grad)
        torch.autograd.backward(ends, gradients)
        self.tables.collect(one.number)

    def _drawn(self) -> Any:
        """Return where the device's generator is."""
        if self.link.device.type == "cuda":
            generator = torch.cuda.default_generators[index_of(self.link.device)]
            return generator.initial_seed(), generator.get_offset()
        return None if self.link.device.type == "meta" else torch.get_rng_state()

    def _seek(self, place: Any) -> None:
        """Put the device's generator where it was."""
        if self.link.device.type == "cuda":
            generator = torch.cuda.default_generators[index_of(self.link.device)]
            generator.manual_seed(place[0])
            generator.set_offset(place[1])
        elif place is not None:
            torch.set_rng_state(place)
