"""Which layer each parameter is of: how fast it learns, and whether at all. In: a model. Out: distances, shares.

Layers lie in a list, an encoder's and a decoder's in one each. What is before them, the embeddings, is one further from
the output than the first; heads, poolers and last norms are at it. Tied words are embeddings.
"""

from torch import nn

from bigqa.errors import BigqaError
from bigqa.language import tr


def lists_of(model: nn.Module) -> list[nn.ModuleList]:
    """Return the lists of modules that lie in no other, the one with most parameters first."""
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one)]
    sizes = {id(one): sum(p.numel() for p in one.parameters()) for one in lists}
    inner = {id(part) for one in lists for member in one for part in member.modules()}
    return sorted((one for one in lists if id(one) not in inner), key=lambda one: -sizes[id(one)])


def distances(model: nn.Module) -> dict[str, int]:
    """Return by name how many layers are between a parameter and the output, its own counted.

    Raises: BigqaError where the layers lie in no list.
    """
    inside: dict[int, int] = {}
    lists = lists_of(model)
    deepest = max((len(one) for one in lists), default=0)
    for found in lists:
        for place, member in enumerate(found):
            inside |= {id(parameter): len(found) - place for parameter in member.parameters()}
    if not inside:
        raise BigqaError(
            tr("{kind} has no list of layers: --layer-decay and --freeze-layers want one", kind=type(model).__name__)
        )
    named = list(model.named_parameters())
    first = next(at for at, (_, parameter) in enumerate(named) if id(parameter) in inside)
    return {
        name: inside.get(id(parameter), deepest + 1 if at < first else 0) for at, (name, parameter) in enumerate(named)
    }


def rate_shares(model: nn.Module, decay: float) -> dict[str, float]:
    """Return by name what share of the rate a parameter learns at: `decay` once for each layer from the output."""
    return {name: decay**distance for name, distance in distances(model).items()}


def freeze(model: nn.Module, count: int) -> None:
    """Let the embeddings and the first layers, as many as `count`, learn nothing. Raises: BigqaError."""
    found = distances(model)
    deepest = max(found.values()) - 1
    if count > deepest:
        raise BigqaError(
            tr(
                "--freeze-layers {count}: {kind} has {deepest} layers; 0 is embeddings alone",
                count=count,
                kind=type(model).__name__,
                deepest=deepest,
            )
        )
    for name, parameter in model.named_parameters():
        if found[name] > deepest - count:
            parameter.requires_grad_(False)
