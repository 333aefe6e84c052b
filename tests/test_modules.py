"""Dropout of our own: each call draws anew, and a run that is seeded alike draws the same."""

import pytest
import torch
from torch import nn

from bigqa.engine.attention.windows import Shape, attend
from bigqa.engine.bits import draw_seed
from bigqa.engine.modules import DrawnDropout, swap


def test_calls_drop_other_elements_and_a_seed_brings_them_back() -> None:
    layer, x = DrawnDropout(0.5).train(), torch.ones(4096)

    def calls() -> list[torch.Tensor]:
        torch.manual_seed(3)
        return [layer(x) for _ in range(3)]

    first, second = calls(), calls()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # Two independent draws agree in half of the elements.
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert 0.4 < float((first[a] == first[b]).float().mean()) < 0.6
    assert torch.equal(layer.eval()(x), x)


def test_windows_heads_and_calls_drop_other_probabilities() -> None:
    heads, length = 2, 32
    query = torch.zeros(heads, 2 * length, length)  # every probability is the same
    # Each token's value is its own unit: the context shows which probabilities were kept.
    value = torch.eye(2 * length).expand(heads, -1, -1)
    torch.manual_seed(5)
    shape = Shape((length, length))
    kept = [attend(query, query, value[..., :length] + value[..., length:], shape, 0.5, 1.0) > 0 for _ in range(2)]
    parts = [one[begin : begin + length, head] for one in kept for begin in (0, length) for head in range(heads)]
    for i, one in enumerate(parts):
        assert 0.4 < float(one.float().mean()) < 0.6
        for other in parts[:i]:
            assert 0.4 < float((one == other).float().mean()) < 0.6


def test_seeds_differ_and_follow_the_generator() -> None:
    torch.manual_seed(1)
    seeds = [draw_seed() for _ in range(64)]
    torch.manual_seed(1)
    assert seeds == [draw_seed() for _ in range(64)]
    assert len(set(seeds)) == 64 and max(seeds) > 2**60  # of 62 bits


@pytest.mark.parametrize(("device", "kind"), [("cpu", DrawnDropout), ("cuda", nn.Dropout)])
def test_only_a_cpu_gets_the_drawn_dropout(device: str, kind: type) -> None:
    model = nn.Sequential(nn.Dropout(0.25), nn.Sequential(nn.Dropout(0.5)))
    swap(model, device)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [(type(module), module.p) for module in found] == [(kind, 0.25), (kind, 0.5)]
