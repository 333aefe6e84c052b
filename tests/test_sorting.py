"""What sorting backward passes hold, beside torch's own record of allocations on null GPUs (torch 2.13)."""

from typing import Any

import pytest
import torch

from bigqa.memory.cards import card_for
from bigqa.memory.events import Event, Stream, moved_on
from bigqa.memory.scratch import Freed, Moved, Scratch, ahead, beside, of_some_cards

EMBEDDING, INDEXING = torch.ops.aten.embedding_dense_backward.default, torch.ops.aten.index_put_.default
CARDS = {"T4": (7, 5), "A100-40": (8, 0), "L4": (8, 9), "H100": (9, 0)}


def of(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def sizes(steps: Any, card: str) -> list[int]:
    """Return what is allocated, in its order, but for what takes nothing."""
    found = [step.size(card_for(card, CARDS[card])) for step in steps if isinstance(step, Scratch)]
    return [size for size in found if size]


@pytest.mark.parametrize(
    ("card", "indices", "rows", "recorded"),
    [
        ("T4", 6144, 2, [49152] * 3 + [5631, 49152, 8, 49152, 16, 16, 8, 4928, 4928, 64]),
        ("T4", 6144, 512, [49152] * 3 + [105983, 49152, 8, 49152, 4096, 4096, 8, 9008, 36032]),
        ("A100-40", 6144, 32000, [49152] * 3 + [104959, 49152, 8, 49152, 49152, 49152, 8, 54064, 216256]),
        ("L4", 6144, 250002, [49152] * 3 + [107007, 49152, 8, 49152, 49152, 49152, 8, 54064, 216256]),
        ("T4", 24576, 512, [196608] * 3 + [407039, 196608, 8, 196608, 4096, 4096, 8, 23752, 95008]),
        ("H100", 24576, 512, [196608] * 3 + [403967, 196608, 8, 196608, 4096, 4096, 8, 23752, 23752, 16384]),
        ("H100", 3072, 512, []),
    ],
)
def test_the_backward_pass_of_an_embedding(card: str, indices: int, rows: int, recorded: list[int]) -> None:
    args = (of(indices, 8), of(indices, dtype=torch.int64), rows, 0, False)
    before = ahead(EMBEDDING, args)
    assert sizes([*before, *beside(EMBEDDING, args, of(rows, 8))], card) == recorded
    assert [step.number for step in before if isinstance(step, Freed)] == [3, 2]  # all but sorted keys and places


@pytest.mark.parametrize(
    ("card", "count", "rows", "recorded"),
    [
        ("T4", 2304, 100, [18432] * 5 + [1]),
        ("T4", 2305, 100, [18440] * 5 + [3583]),
        ("T4", 2817, 100, [22536] * 5 + [4607]),
        ("H100", 2817, 100, [22536] * 5 + [3583]),
        ("A100-40", 6144, 6144, [49152] * 5 + [104959]),
    ],
)
def test_adding_at_places(card: str, count: int, rows: int, recorded: list[int]) -> None:
    args = (of(rows, 16), [of(count, dtype=torch.int64)], of(count, 16), True)
    assert sizes(beside(INDEXING, args, None), card) == recorded
    assert sizes(beside(INDEXING, args[:3], None), card) == []  # nothing is added: nothing is sorted


def test_a_card_without_flash_attention_copies_the_gradient_first_and_draws_on_the_host() -> None:
    tokens, heads, size = 100, 4, 32
    query, ends = of(tokens, heads, size), of(3, dtype=torch.int32)
    numbers = of(2, dtype=torch.int64)
    args = (
        of(tokens, heads, size),
        query,
        query,
        query,
        query,
        numbers,
        ends,
        ends,
        50,
        50,
        0.1,
        False,
        numbers,
        numbers,
    )
    held = ahead(torch.ops.aten._flash_attention_backward.default, args)
    assert sizes(held, "T4") == [2 * tokens * heads * size] and sizes(held, "L4") == [] and held[1] == Moved(0)
    forward = (query, query, query, ends, ends, 50, 50, 0.1)
    drawn = of_some_cards(torch.ops.aten._flash_attention_forward.default, forward, numbers)
    assert drawn is not None and sizes([drawn], "T4") == [] and sizes([drawn], "L4") == [16]
    assert of_some_cards(torch.ops.aten._flash_attention_forward.default, forward, query) is None


def test_what_a_card_makes_anew_takes_the_place_of_what_it_was_made_of() -> None:
    """Of storages 1 and 2, the second a copy that an old card makes: it lives on, and the first goes at once."""
    rule = Scratch("efficient", (4096, 0, 32, 1))
    events = [
        Event(1, 4096, "backward", "mm"),
        Event(2, 1, "backward", "_flash_attention_backward", scratch=rule),
        Event(2, 0, "backward", "", takes=1),
        Event(3, 8, "backward", "sum"),
        Event(1, 0, "backward", ""),
    ]

    def freed(name: str, capability: tuple[int, int]) -> list[int]:
        found = moved_on(Stream(events=events), card_for(name, capability))
        assert not any(event.takes for event in found.events) and len(found.events) == len(events)
        return [event.storage for event in found.events if not event.size_bytes]

    assert freed("T4", (7, 5)) == [1, 2]
    assert freed("L4", (8, 9)) == [2, 1]  # where the second is nothing
