"""A model's layers, apart from what is around them. In: a model whose layers lie in a list. Out: `Layers`.

Whatever a model does before its layers, between them and after them is its own code, which is run as it is, with
stand-ins for the layers: what comes before tells what each layer is called with, what comes after takes the last
one's result. A trial without data tells whether that is all that there is.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from bigqa.engine.attention.packing import trial_rows
from bigqa.engine.layers import lists_of
from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.tasks.base import Task

TRIAL_TOKENS = 16
HIDDEN = "hidden_states"


class _ReachedError(Exception):
    """The last layer is about to run: what comes before it has been seen."""


@dataclass(frozen=True)
class Call:
    """What a layer is called with."""

    values: list[Any]
    spec: TreeSpec
    hidden: int
    """Which of the values goes from layer to layer."""

    def arguments(self, hidden: Tensor, leaves: Mapping[int, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with another hidden state; `leaves`: what takes the place of other values."""
        values = [leaves.get(place, value) for place, value in enumerate(self.values)]
        values[self.hidden] = hidden
        args, kwargs = tree_unflatten(values, self.spec)
        return args, kwargs


class Layers:
    """The layers of one model."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        """Raises: BigqaError where a model cannot be streamed."""
        self.name = type(model).__name__
        self.modules = _layers_of(model)
        self._rests: list[tuple[Any, ...] | None] = [None] * len(self.modules)
        """What a layer returns beside its result; none: it returns the result alone."""
        self.sides: list[tuple[int, ...]] = [()] * len(self.modules)
        """Places of a layer's other arguments that are trained as well."""
        self.tables = _Trial(self, model, task).run()
        """Names of the parameters that rows are looked up in, and nothing else."""
        self._calls: list[Call] = []
        self._final: Tensor | None = None
        self._at_last: Callable[[], None] = _nothing
        for index, layer in enumerate(self.modules):
            layer.forward = functools.partial(self._stand_in, index)  # type: ignore[method-assign]

    def __len__(self) -> int:
        """Count the layers."""
        return len(self.modules)

    def restore(self) -> None:
        """Take the stand-ins out."""
        for layer in self.modules:
            vars(layer).pop("forward", None)

    def before(self, run: Callable[[], Any]) -> tuple[Tensor, list[Call]]:
        """Run what comes before the layers; return the first one's input, and what each is called with."""
        self._calls, self._final = [], None
        try:
            run()
        except _ReachedError:
            calls, self._calls = self._calls, []
            hidden = calls[0].values[calls[0].hidden]
            for call in calls:
                call.values[call.hidden] = None
            return hidden, calls
        raise self.refused(tr("not all of its layers ran"))

    def after(self, run: Callable[[], Any], hidden: Tensor, at_last: Callable[[], None]) -> Any:
        """Run what comes after the layers, on the last one's result; `at_last` is called in the last one's place."""
        self._calls, self._final, self._at_last = [], hidden, at_last
        try:
            return run()
        finally:
            self._calls, self._final = [], None

    def run(self, index: int, call: Call, hidden: Tensor, leaves: Mapping[int, Tensor] | None = None) -> Tensor:
        """Run a layer; return its result."""
        layer = self.modules[index]
        args, kwargs = call.arguments(hidden, leaves or {})
        result = type(layer).forward(layer, *args, **kwargs)
        return result[0] if self._rests[index] is not None else result  # type: ignore[no-any-return]

    def refused(self, why: str) -> BigqaError:
        """Return the error of a model that cannot be streamed."""
        return BigqaError(
            tr("{model} cannot be streamed: {why}; choose a strategy without `stream`", model=self.name, why=why)
        )

    def note(self, index: int, call: Call, result: Any) -> Tensor:
        """Take what a layer returned in a trial; return its result."""
        rest: tuple[Any, ...] | None = None
        if isinstance(result, tuple):
            result, *others = result
            if any(isinstance(one, Tensor) for one in others):
                raise self.refused(tr("its layers hand on more than one tensor"))
            rest = tuple(others)
        if not isinstance(result, Tensor):
            raise self.refused(tr("its layers return a {kind}", kind=type(result).__name__))
        self._rests[index] = rest
        self.sides[index] = tuple(
            place
            for place, value in enumerate(call.values)
            if place != call.hidden and isinstance(value, Tensor) and value.requires_grad
        )
        return result

    def call_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return a call of a layer."""
        hidden = args[0] if args else kwargs.get(HIDDEN)
        values, spec = tree_flatten((args, kwargs))
        found = [place for place, value in enumerate(values) if value is hidden and isinstance(value, Tensor)]
        if len(found) != 1:
            raise self.refused(tr("its layers are not called with one hidden state"))
        return Call(values, spec, found[0])

    def _stand_in(self, index: int, *args: Any, **kwargs: Any) -> Any:
        call, is_last = self.call_of(args, kwargs), index == len(self) - 1
        hidden = call.values[call.hidden]
        if index != len(self._calls):
            raise self.refused(tr("its layers do not run once each, in their order"))
        self._calls.append(call)
        if is_last and self._final is None:
            raise _ReachedError
        if is_last:
            self._at_last()
        result = self._final if is_last else hidden
        rest = self._rests[index]
        return result if rest is None else (result, *rest)


class _Trial:
    """Runs a model without data, and sees whether its layers are all that matters."""

    def __init__(self, layers: Layers, model: nn.Module, task: Task) -> None:
        self.layers, self.model, self.task = layers, model, task
        self.count = 0
        self.passed: Tensor | None = None

    def run(self) -> tuple[str, ...]:
        """Return the names of tables, in the model's own order: several processes sum them up one after the other."""
        rows = [row | {"start": 1, "end": 1} for row in trial_rows(self.model.config, TRIAL_TOKENS)]
        batch = {name: value.to("meta") for name, value in self.task.collate(rows).items()}
        inside = {id(one) for layer in self.layers.modules for one in layer.parameters()}
        tables = {
            f"{name}.weight"
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Embedding) and id(module.weight) not in inside and _is_plain(module)
        }
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        made = {
            name: torch.empty_like(one, device="meta").requires_grad_(isinstance(one, nn.Parameter))
            for name, one in named.items()
        }
        seen = _Seen({id(made[name]): name for name in tables & made.keys()})

        def without_data(**inputs: Any) -> Any:
            return torch.func.functional_call(self.model, made, kwargs=inputs)

        with self._watched(), seen:
            self.task.loss_sum(without_data, batch)  # type: ignore[arg-type]
        if self.count != len(self.layers):
            raise self.layers.refused(tr("not all of its layers run"))
        found = seen.looked_up - seen.used
        return tuple(name for name in named if name in found)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        for index, layer in enumerate(self.layers.modules):
            layer.forward = functools.partial(self._look, index)  # type: ignore[method-assign]
        try:
            yield
        finally:
            self.layers.restore()

    def _look(self, index: int, *args: Any, **kwargs: Any) -> Any:
        call, layer = self.layers.call_of(args, kwargs), self.layers.modules[index]
        if index != self.count:
            raise self.layers.refused(tr("its layers do not run once each, in their order"))
        if index and call.values[call.hidden] is not self.passed:
            raise self.layers.refused(tr("something is computed between its layers"))
        given = [one for one in call.values if isinstance(one, Tensor)]
        versions = [one._version for one in given]
        result = type(layer).forward(layer, *args, **kwargs)
        if versions != [one._version for one in given]:
            # It runs twice with them, and a copy to the host may be on its way as it writes.
            raise self.layers.refused(tr("its layers write into what they are called with"))
        self.passed = self.layers.note(index, call, result)
        self.count += 1
        return result


class _Seen(TorchFunctionMode):
    """Notes which parameters rows are looked up in, and which are used in another way."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.looked_up: set[str] = set()
        self.used: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function and look at its arguments."""
        for place, value in enumerate(args):
            if id(value) in self.names:
                is_looked_up = func is functional.embedding and place == 1
                (self.looked_up if is_looked_up else self.used).add(self.names[id(value)])
        return func(*args, **(kwargs or {}))


def _nothing() -> None:
    pass


def _layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the members of the list that holds most of a model. Raises: BigqaError."""
    outer = lists_of(model)
    sizes = {id(one): sum(p.numel() for p in one.parameters()) for one in outer}
    error = tr("{kind} cannot be streamed", kind=type(model).__name__)
    if not outer:
        raise BigqaError(tr("{error}: its layers lie in no list; choose a strategy without `stream`", error=error))
    if len(outer) > 1 and 10 * sizes[id(outer[1])] > sizes[id(outer[0])]:
        raise BigqaError(
            tr("{error}: its layers lie in more than one list; choose a strategy without `stream`", error=error)
        )
    return list(outer[0])


def _is_plain(module: nn.Embedding) -> bool:
    """Whether rows are all that an embedding gives, and their gradients all that it takes."""
    return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
