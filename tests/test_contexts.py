"""What a process takes of a card besides torch's memory: worked out from what torch itself said, never guessed."""

import pytest

from bigqa.machine.chips import CHIPS
from bigqa.machine.contexts import MESSAGES, context_bytes, context_of
from bigqa.machine.gpus import GPUS, find_gpu
from bigqa.memory.cards import card_for

MIB = 2**20


def test_a_message_tells_what_is_not_torchs() -> None:
    # "this process has 31.34 GiB memory in use. Of the allocated memory 30.74 GiB is allocated by PyTorch, and
    # 19.41 MiB is reserved by PyTorch but unallocated": 0.60 GiB less 19.41 MiB.
    assert context_of("RTX 5090") == 595 * MIB
    # Blocks of 1 GiB on an H200 until the 140th did not fit: 289.25 MiB of 139.80 GiB were left.
    assert context_of("H200") == round(0.80 * 1024 - 289.25) * MIB


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_messages_of_a_card_are_of_one_size_of_context(name: str) -> None:
    found = [message.context_mib for message in MESSAGES[name]]
    assert min(found) >= 100 and max(found) <= 750  # more were a context with all kernels, or NCCL
    assert max(found) <= 1.65 * min(found)
    for message in MESSAGES[name]:
        assert message.in_use * 1024 <= CHIPS[name].cuda_mib + 10, "more in use than the card has"


@pytest.mark.parametrize(("name", "stands_in"), [("3060-12", "L4"), ("4060 Ti-16", "L4"), ("1080 Ti", "P100")])
def test_a_card_without_a_figure_has_that_of_the_next_larger(name: str, stands_in: str) -> None:
    card, other = find_gpu(name), find_gpu(stands_in)
    assert card is not None and other is not None and name not in MESSAGES
    assert context_bytes(card) == context_bytes(other)
    assert card.capability[0] == other.capability[0]


def test_an_unknown_card_has_the_most_that_any_takes() -> None:
    assert context_of("Some GPU of 2031") == max(context_bytes(card) for card in GPUS) == context_of("B200")


def test_predictions_count_the_cards_own() -> None:
    assert card_for("Tesla T4", (7, 5)).context_bytes == context_of("T4") < card_for("H100", (9, 0)).context_bytes
