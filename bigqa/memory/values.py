"""Values of tensors without data, as far as they are known. In: operations. Out: what a model reads of its inputs.

A model may look at its inputs: whether a token is padding, which tokens attend to all others. A traced batch is made of
constants, so what is worked out of it alone can be worked out on data as well: when it is read, from what each
operation was given. What hangs on weights is not known; of it, a truth value is taken to be true.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from bigqa.language import tr

aten = torch.ops.aten
MADE = {
    aten.arange.default, aten.arange.start, aten.arange.start_step, aten.ones.default, aten.zeros.default,
    aten.full.default, aten.scalar_tensor.default, aten.eye.default,
}  # fmt: skip
"""Operations that take no tensors, and whose results are known."""
FILLED: dict[Any, int | None] = {
    aten.ones_like.default: 1, aten.zeros_like.default: 0, aten.new_ones.default: 1, aten.new_zeros.default: 0,
    aten.full_like.default: None, aten.new_full.default: None,
}  # fmt: skip
"""Operations whose results hang on no value of a tensor -> what they are filled with; none: their last argument."""
SHAPED_BY_VALUES = {
    aten.nonzero.default, aten.masked_select.default, aten.repeat_interleave.Tensor, aten.bincount.default,
    aten._unique2.default, aten.unique_consecutive.default, aten.unique_dim.default,
}  # fmt: skip
READ = {aten._local_scalar_dense.default, aten.equal.default}
SPECIAL = SHAPED_BY_VALUES | READ | {aten.index.Tensor, aten._to_copy.default}
FEW = 2**16
"""Elements of tensors with data that are looked at."""
NAME = "_bigqa_known"
"""Attribute of a tensor that says how its values are worked out."""
_writes: dict[int, int] = {}
"""Storage -> how often it was written to: what was known of its tensors before no longer holds."""


class NotKnownError(Exception):
    """A model asks for a value that only data have."""


class Known:
    """How a tensor's values are worked out, once; it holds no tensor of the trace."""

    def __init__(self, func: Any, args: Any, kwargs: Any, part: int | None) -> None:
        self._call: Any = (func, args, kwargs, part)
        self._value: Any = None
        self.writes = 0
        """To its storage, when this held."""

    def __deepcopy__(self, memo: Any) -> "Known":
        return self

    def value(self) -> Tensor:
        """Return a tensor with data."""
        if self._call is not None:
            func, args, kwargs, part = self._call
            given, named = tree_map(_value, args), tree_map(_value, kwargs)
            if _writes_to_first(func):
                given = (given[0].clone(), *given[1:])
            made = func(*given, **named)
            self._value, self._call = made if part is None else made[part], None
        found: Tensor = self._value
        return found


def read(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation that reads values of the meta device; `NotImplemented`: it is no such.

    Raises: NotKnownError where it hangs on weights.
    """
    if func not in SPECIAL or not any(one.is_meta for one in _tensors(args)):
        return NotImplemented
    if func is aten.index.Tensor:
        return _chosen_by_masks(args)
    if func is aten._to_copy.default and kwargs.get("device", args[0].device).type == "meta":
        return NotImplemented
    known = _known_arguments(args, kwargs)
    if known is None and func in READ and (func is aten.equal.default or args[0].dtype == torch.bool):
        return True
    if known is None:
        raise NotKnownError(tr("it reads values that hang on its weights ({kind})", kind=func.overloadpacket.__name__))
    made = Known(func, *known, None).value()
    return made if func not in SHAPED_BY_VALUES else tree_map(_without_data, made)


def note(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Keep how a result's values are worked out, where all that they hang on is known."""
    first = args[0] if args else None
    if isinstance(first, Tensor):
        if func in FILLED:
            filling = FILLED[func] if FILLED[func] is not None else args[-1]
            options = {"dtype": result.dtype, "device": "cpu"}
            _keep(result, Known(aten.full.default, (list(result.shape), filling), options, None))
            return
        if getattr(first, NAME, None) is None and first.is_meta:
            return
    elif func not in MADE and (not isinstance(first, (list, tuple)) or not isinstance(next(iter(first), None), Tensor)):
        return
    known = None if torch.Tag.nondeterministic_seeded in func.tags else _known_arguments(args, kwargs)
    if _writes_to_first(func) and isinstance(first, Tensor):
        storage = first.untyped_storage()._cdata
        _writes[storage] = _writes.get(storage, 0) + 1
    if known is None:
        return
    for part, one in enumerate(result) if isinstance(result, (list, tuple)) else ((None, result),):
        if isinstance(one, Tensor) and one.is_meta:
            _keep(one, Known(func, *known, part))


def _keep(tensor: Tensor, known: Known) -> None:
    known.writes = _writes.get(tensor.untyped_storage()._cdata, 0)
    setattr(tensor, NAME, known)


def _known_arguments(args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Return what an operation is given with each tensor's recipe in its place, for data; none: one is not known."""
    found = tree_map(_known, args)
    if any(one is NotImplemented for one in tree_leaves(found)):
        return None
    return found, {name: torch.device("cpu") if name == "device" else value for name, value in kwargs.items()}


def _known(one: Any) -> Any:
    if not isinstance(one, Tensor):
        return one
    if not one.is_meta:
        return Known(aten.clone.default, (one.detach().clone(),), {}, None) if one.numel() <= FEW else NotImplemented
    known = getattr(one, NAME, None)
    holds = known is not None and known.writes == _writes.get(one.untyped_storage()._cdata, 0)
    return known if holds else NotImplemented


def _value(one: Any) -> Any:
    return one.value() if isinstance(one, Known) else one


def _without_data(made: Any) -> Any:
    """Return what stands for a tensor with data on the meta device."""
    if not isinstance(made, Tensor):
        return made
    empty = torch.empty_like(made, device="meta")
    _keep(empty, Known(aten.clone.default, (made,), {}, None))
    return empty


def _chosen_by_masks(args: tuple[Any, ...]) -> Any:
    """Return what masks choose: they are turned into numbers."""
    numbers: list[Any] = []
    for one in args[1]:
        if one is None or one.dtype not in (torch.bool, torch.uint8) or not one.is_meta:
            numbers.append(one)
        else:
            numbers += aten.unbind.int(read(aten.nonzero.default, (one,), {}), 1)
    if len(numbers) == len(args[1]) and all(a is b for a, b in zip(numbers, args[1], strict=True)):
        return NotImplemented
    return aten.index.Tensor(args[0], numbers)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


@functools.cache
def _writes_to_first(func: Any) -> bool:
    first = next(iter(func._schema.arguments), None)
    return first is not None and first.alias_info is not None and first.alias_info.is_write
