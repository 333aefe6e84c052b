"""How deep a configuration is, and one of another depth. In: a configuration. Out: the same, shallower or deeper.

Configurations say their depth by a number, an encoder's and a decoder's, and by lists with an entry for each layer:
kinds of attention, widths of windows. All are changed together; whether layers repeat is told by the lists, and by the
models that are made.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

NUMBERS = ("num_hidden_layers", "encoder_layers", "num_encoder_layers", "decoder_layers", "num_decoder_layers")
"""Names that the library's configurations have for a depth; those with others map the first to their own."""
Shapes = Counter[tuple[int, ...]]
"""How many parameters and buffers a model has of each shape."""


def depth_of(config: Any) -> int:
    """Return the layers of a model; zero where no number says how many there are."""
    found = getattr(config, "num_hidden_layers", None)
    return found if isinstance(found, int) else 0


def with_layers(config: Any, num_layers: int) -> Any:
    """Return a configuration of another depth; lists are cut, or go on as they repeat.

    A decoder that is as deep as the encoder stays so; another keeps its depth.
    """
    changed, depth, repeat = copy.deepcopy(config), depth_of(config), period_of(config)
    for name in NUMBERS:
        if getattr(config, name, None) == depth:
            setattr(changed, name, num_layers)
    for name, values in _lists(config).items():
        more = [values[depth - repeat + (index - depth) % repeat] for index in range(depth, num_layers)]
        setattr(changed, name, type(values)([*values[:num_layers], *more]))
    return changed


def period_of(config: Any) -> int:
    """Return after how many layers their kinds repeat; the whole depth where they do not."""
    depth = depth_of(config)
    kinds = list(zip(*_lists(config).values(), strict=True))
    every = getattr(config, "global_attn_every_n_layers", None)  # of ModernBERT before transformers 5.20
    if every and not kinds:
        return int(every)
    periods = (p for p in range(1, depth) if all(kinds[i] == kinds[i - p] for i in range(p, len(kinds))))
    return next(periods, max(depth, 1)) if kinds else 1


def depths_for(config: Any, make_model: Callable[[Any], nn.Module]) -> tuple[int, int]:
    """Return two depths that stand for the full one: the full one twice, where layers do not repeat.

    Both and the full one are a whole number of repeats apart, and so are the models that are made of them.
    """
    depth, repeat = depth_of(config), period_of(config)
    if repeat == depth > 1:
        return depth, depth
    first = depth % repeat + (2 if repeat == 1 else repeat)
    if first + repeat >= depth:
        first, repeat = depth, 1
    second = first + repeat
    try:
        low, high, full = (_shapes(make_model, with_layers(config, layers)) for layers in (first, second, depth))
    except Exception:  # a configuration whose depth is said in a way of its own
        return depth, depth
    steps = (depth - first) // repeat
    one = {shape: high[shape] - low[shape] for shape in high | low}
    repeats = all(full[shape] == low[shape] + steps * one.get(shape, 0) for shape in full | low | high)
    return (first, second) if repeats else (depth, depth)


def _lists(config: Any) -> dict[str, Any]:
    """Return the lists that have an entry for each layer: all of so many entries are taken to be such."""
    depth = depth_of(config)
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == depth > 1
    }


def _shapes(make_model: Callable[[Any], nn.Module], config: Any) -> Shapes:
    with torch.device("meta"):
        model = make_model(config)
    return Counter(tuple(tensor.shape) for tensor in (*model.parameters(), *model.buffers()))
