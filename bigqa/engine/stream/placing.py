"""A model whose weights are elsewhere. In: a model in host memory. Out: units on the host, and places on a device.

The layers' parameters lie in two places that all of them share; what is around the layers has a place of its own for
good; of an embedding nothing is on the device but a parameter of one element that stands for it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.optim.pieces import pieces_of
from bigqa.engine.optim.precision import cast
from bigqa.engine.stream.layers import Layers
from bigqa.engine.stream.shelf import Shelf
from bigqa.engine.stream.slots import PLACES, Slots
from bigqa.engine.stream.store import Unit, Weight, make_unit
from bigqa.engine.stream.tables import Table, Tables
from bigqa.language import tr

Owners = dict[str, list[tuple[nn.Module, str]]]


class Placed:
    """A model, its units, and where its parameters lie."""

    def __init__(
        self, model: nn.Module, layers: Layers, shelf: Shelf, undecayed: set[str], dtype: torch.dtype, *, waits: bool,
        staged: bool, made: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """`waits`: all gradients wait on the host, and fp32 masters are kept.

        `staged`: as of `Slots`; `made`: as of `make_unit`.
        """
        self.model, self.layers, self.shelf, self.link, self.waits = model, layers, shelf, shelf.link, waits
        self.takes_turns = shelf.states_on_disk or not waits
        """Whether gradients of layers come to two places by turns, and go from there."""
        self.owners = _owners(model)
        of_layers = _names_in(layers, self.owners)
        tables = {name: [name] for name in layers.tables}
        inside = {name for names in of_layers for name in names}
        outer = [name for name in self.owners if name not in inside and name not in tables]
        self._options: dict[str, Any] = {"undecayed": undecayed, "dtype": dtype, "keeps": waits, "made": made}
        self.layer_units = [self._unit(names, moves=True) for names in of_layers]
        self.outer = self._unit(outer, moves=True, stays=True)
        self.table_units = {name: self._unit(names, moves=False) for name, names in tables.items()}
        self.others = [self.outer, *self.table_units.values()]
        self.units = [*self.layer_units, *self.others]
        self.weights: dict[str, Weight] = {}
        for name in self.owners:  # in the model's own order
            self.weights[name] = next(unit.weights[name] for unit in self.units if name in unit.weights)
        self.on_gradient: Callable[[Unit], None] = lambda unit: None
        self.let_go: Callable[[Any, Tensor], None] = lambda event, gradient: self.link.wait(event)
        """Holds a gradient until it has left."""
        self._layer: int | None = None
        self._take_places(dtype, staged=staged)

    def _unit(self, names: list[str], *, moves: bool, stays: bool = False) -> Unit:
        """Take weights out of the model, which then has them no more: both at once would be too much."""
        values, options = {name: self._parameter(name) for name in names}, self._options
        unit = make_unit(self.shelf, values, moves=moves, stays=stays, **options)
        for name in names:
            self._own(name, nn.Parameter(torch.empty(0, device="cpu")))
        return unit

    def _take_places(self, dtype: torch.dtype, *, staged: bool) -> None:
        """Put the parameters where they are from now on: what the model held of them goes."""
        link, model = self.link, self.model
        self._place_tables(dtype)
        self.slots = Slots(self.shelf, self.layer_units, dtype, staged=staged)
        for index, unit in enumerate(self.layer_units):
            for name, weight in unit.weights.items():
                parameter = self.slots.parameter(index, name)
                parameter.register_post_accumulate_grad_hook(self._hook(index, weight))
                self._own(name, parameter)
        self.outer_place = torch.empty(self.outer.flat.numel(), dtype=dtype, device=link.device)
        for name, weight in self.outer.weights.items():
            self._own(name, nn.Parameter(self.outer_place[self.outer.places[name]].view(weight.shape)))
        cast(model, dtype)  # what is left: buffers
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(link.device))
        self._make_room_for_gradients()

    def _place_tables(self, dtype: torch.dtype) -> None:
        found = {}
        for name, unit in self.table_units.items():
            weight = unit.weights[name]
            parameter = nn.Parameter(torch.empty((), dtype=dtype, device=self.link.device).expand(weight.shape))
            found[id(parameter)] = Table(name, weight.low.view(weight.shape))
            self._own(name, parameter)
        self.tables = Tables(self.shelf, found)

    def _make_room_for_gradients(self) -> None:
        """A layer's own, where they wait as they came; else of two layers, the places being taken by turns."""
        units = self.layer_units
        most, turns = max(unit.flat.numel() for unit in units), self.takes_turns
        dtype = units[0].flat.dtype
        count = min(PLACES, len(units)) if turns else len(units)
        flats = [self.link.pinned(most if turns else units[index].flat.numel(), dtype) for index in range(count)]
        for index, unit in enumerate(units):
            _give(unit, flats[index % count])
            if turns and self.waits:
                _let_wait(unit, self.shelf.states(unit.flat.numel(), dtype))
        _give(self.outer, self.link.pinned(self.outer.flat.numel(), dtype))

    def _hook(self, layer: int, weight: Weight) -> Callable[[Tensor], None]:
        def leave(parameter: Tensor) -> None:
            if self._layer == layer:
                self.send(weight, parameter)

        return leave

    def backward_of(self, layer: int, is_last: bool) -> None:
        """Say which layer's backward pass begins, and whether its gradients are whole after it."""
        if self._layer is not None and self._layer != layer:
            self.on_gradient(self.layer_units[self._layer])
        self._layer = layer if is_last else None

    def send_outer(self) -> None:
        """Send the last gradients."""
        if self._layer is not None:
            self.on_gradient(self.layer_units[self._layer])
            self._layer = None
        for name, weight in self.outer.weights.items():
            parameter = self._parameter(name)
            if parameter.grad is not None:
                self.send(weight, parameter)
        for table in self.tables.by_parameter.values():
            weight = self.weights[table.name]
            weight.gradient, weight.is_touched = table.gradient, table.gradient is not None

    def send(self, weight: Weight, parameter: Tensor) -> None:
        """Send a gradient, and let go of it."""
        assert parameter.grad is not None and isinstance(weight.gradient, Tensor)
        gradient, parameter.grad = parameter.grad.reshape(-1), None
        self.let_go(self.link.leave(weight.gradient, gradient), gradient)
        weight.is_touched = True

    def bring_outer(self) -> None:
        """Bring what is around the layers."""
        self.link.wait(self.link.arrive(self.outer_place, self.outer.flat, weights=True))

    def forget_gradients(self) -> None:
        """Drop the gradients of a step."""
        self._layer = None
        for name, weight in self.weights.items():
            weight.is_touched = False
            if name in self.table_units:
                weight.gradient = None
            else:
                self._parameter(name).grad = None

    def exact(self, weight: Weight) -> Tensor:
        """Return a weight's fp32 master."""
        master = weight.exact()
        self.shelf.leave(weight.parts)
        return master

    def _handed_back(self, weight: Weight) -> Tensor:
        flat = self.shelf.handed_back(weight.low.numel())
        for piece in self.shelf.along(pieces_of(flat), changed=[flat], read=weight.parts):
            flat[piece] = weight.piece(piece)
        return flat.view(weight.shape)

    def hand_back(self) -> nn.Module:
        """Return the model with fp32 weights of its own, in host memory. There is nothing left here."""
        self.layers.restore()
        for weight in self.weights.values():
            weight.gradient = weight.waiting = None
        for unit in self.units:
            unit.gradient = unit.waiting = unit.rest = None
        for unit in self.units:
            unit_weights, unit.weights = unit.weights, {}
            for name, weight in unit_weights.items():
                self._own(name, nn.Parameter(self._handed_back(weight)))
                self.weights.pop(name)
        self.slots.let_go()
        del self.outer_place
        self.model.to("cpu")
        self.model.float()
        return self.model

    def _parameter(self, name: str) -> nn.Parameter:
        module, own = self.owners[name][0]
        return module._parameters[own]  # type: ignore[return-value]

    def _own(self, name: str, parameter: nn.Parameter) -> None:
        for module, own in self.owners[name]:
            module._parameters[own] = parameter


def _give(unit: Unit, flat: Tensor) -> None:
    """Give the gradients of a unit their place."""
    unit.gradient = flat[: unit.flat.numel()]
    for name, weight in unit.weights.items():
        weight.gradient = unit.gradient[unit.places[name]]


def _let_wait(unit: Unit, flat: Tensor) -> None:
    """Give the gradients of a unit a place to wait in."""
    unit.waiting = flat
    for name, weight in unit.weights.items():
        weight.waiting = flat[unit.places[name]]


def _owners(model: nn.Module) -> Owners:
    """Return where each trained parameter is found, by its first name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: Owners = {name: [] for name in names.values()}
    for module in model.modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                found[names[id(parameter)]].append((module, own))
    return found


def _names_in(layers: Layers, owners: Mapping[str, list[tuple[nn.Module, str]]]) -> list[list[str]]:
    """Return each layer's names. Raises: BigqaError where a layer shares a weight."""
    of_module = {id(part): index for index, layer in enumerate(layers.modules) for part in layer.modules()}
    found: list[list[str]] = [[] for _ in layers.modules]
    for name, places in owners.items():
        inside = {of_module.get(id(module)) for module, _ in places}
        if len(inside) > 1:
            raise layers.refused(tr("{name} is shared by several of its parts", name=name))
        for index in inside - {None}:
            found[index].append(name)  # type: ignore[index]
    return found
