"""Which kernel a card's attention is: what one has for heads of a size, and how far tokens look."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from null_gpu import on_null_gpu

from bigqa.engine.attention import kernels
from bigqa.engine.attention.kernels import runs_flash
from bigqa.memory import scratch
from bigqa.memory.cards import A100, Card

RTX3090 = Card((8, 6), 82, 1536)


@pytest.mark.parametrize(
    ("capability", "size", "drops", "runs"),
    [
        ((7, 5), 64, False, False),
        ((8, 0), 256, True, True),
        ((8, 0), 264, False, False),
        ((9, 0), 256, True, True),
        *(((major, minor), 192, True, True) for major, minor in ((8, 6), (8, 9), (12, 0))),
        *(((major, minor), 256, True, False) for major, minor in ((8, 6), (8, 9), (12, 0), (12, 1))),
        ((8, 6), 224, False, False),
        ((8, 6), 256, False, True),
    ],
)
def test_flash_attention_of_large_heads(capability: tuple[int, int], size: int, drops: bool, runs: bool) -> None:
    """As torch's own choice has it (`sdp_utils.cpp`); its operation itself would launch nothing, and say nothing."""
    assert runs_flash(capability, size, drops=drops) is runs


def held(card: Card, size: int, dropout: float) -> dict[str, int]:
    """Return what the backward pass of attention holds by kernel, of two windows of 64 and four heads."""
    query = torch.empty(128, 4, size, dtype=torch.bfloat16, device="meta")
    ends = torch.empty(3, dtype=torch.int32, device="meta")
    args = (query, query, query, query, query, query, ends, ends, 64, 64, dropout, False)
    found: dict[str, int] = {}
    for one in scratch.beside(torch.ops.aten._flash_attention_backward.default, args, None):
        kind = one.rule.split()[0]
        found[kind] = found.get(kind, 0) + one.size(card)
    return found


def test_what_a_kernel_takes_follows_the_choice() -> None:
    assert held(A100, 256, 0.1) == held(RTX3090, 256, 0.0) and held(A100, 256, 0.1)["efficient"] == 0
    of_3090 = held(RTX3090, 256, 0.1)
    assert of_3090["flash"] == 0 and of_3090["efficient"] == held(Card((7, 5), 40, 1024), 256, 0.1)["efficient"] > 0
    assert held(RTX3090, 64, 0.1)["efficient"] == 0


@pytest.fixture
def without_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_has_flash", lambda query, drops: False)


@pytest.mark.usefixtures("without_flash")
@pytest.mark.parametrize(("span", "refused"), [(31, True), (32, False), (33, False), (None, False)])
def test_windows_no_longer_than_tokens_look_need_no_flash_attention(span: int | None, refused: bool) -> None:
    """In a window of 32, two tokens are at most 31 apart."""
    one = torch.empty(4, 32, 8)
    bounds = kernels.Bounds(torch.tensor([0, 32], dtype=torch.int32), 32, False, span)
    # A CPU has no such kernel: what is refused by torch was not refused by us.
    with pytest.raises(NotImplementedError, match="need flash" if refused else "_efficient_attention_forward"):
        kernels._packed_on_gpu(one, one, one, bounds, 0.1, 1.0)


def test_models_with_large_heads_that_look_only_so_far_are_padded_there(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(sliding_window=8, num_attention_heads=2, head_dim=256, hidden_size=512)
    for capability, packs in (((8, 0), True), ((8, 6), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert kernels.packs_on(torch.device("cuda", 0), torch.bfloat16, config, 16) is packs


@pytest.mark.parametrize(("cuda", "built", "runs"), [("13.0", True, True), ("13.0", False, False), (None, False, True)])
def test_a_torch_without_flash_attention_has_none_on_any_card(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, built: bool, runs: bool
) -> None:
    """One for the CPU says nothing of the one that a card's machine has."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    assert kernels._flash_on((8, 0), torch.bfloat16, 64, drops=True) is runs


class Kernels(torch.utils._python_dispatch.TorchDispatchMode):
    """Writes down which kernels run, and the sizes of their heads."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in (name := func.overloadpacket.__name__):
            self.sizes[name] = args[0].shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("size", "filled"), [(26, 32), (32, 32)])
@pytest.mark.parametrize("packed", [False, True])
def test_heads_are_filled_up_to_what_a_gpu_takes(size: int, filled: int, packed: bool) -> None:
    """TinyBERT's 12 heads share 312 values; torch, flash_api.cpp: "head_size must be a multiple of 8"."""
    one = torch.empty(1, 12, 64, size, dtype=torch.bfloat16, device="meta", requires_grad=True)
    bounds = {"cu_seq_lens_q": torch.empty(3, dtype=torch.int32, device="meta"), "max_length_q": 40} if packed else {}
    with kernels.standing_in_for("cuda"), Kernels() as seen:
        context, _ = kernels.attention(torch.nn.Module(), one, one, one, None, 0.1, **bounds)
    assert set(seen.sizes.values()) == {filled} and context.shape == (1, 64, 12, size)


def test_what_heads_are_filled_up_with_changes_nothing() -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 26, generator=torch.Generator().manual_seed(0))
    filled = [kernels._filled_up(one) for one in (query, key, value)]
    whole, wanted = (kernels._plain(*all_three, None, 0.0, 26**-0.5) for all_three in (filled, (query, key, value)))
    torch.testing.assert_close(whole[..., :26], wanted)
    assert filled[0].shape[-1] == 32


@pytest.mark.nullgpu
@pytest.mark.parametrize(("card", "large"), [("3090", "Efficient"), ("A100-40", "Flash")])
def test_the_kernel_that_runs(card: str, large: str) -> None:
    program = """
import json, torch
from bigqa.engine.attention import kernels
class Module: is_causal = False
ends = torch.tensor([0, 100, 200], dtype=torch.int32).cuda()
found = []
for size, dropout, span in ((64, 0.1, None), (256, 0.1, None), (256, 0.1, 100)):
    q, k, v = (torch.randn(1, 2, 200, size, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    made, _ = kernels.attention(Module, q, k, v, None, dropout, None, cu_seq_lens_q=ends, max_length_q=100,
                                sliding_window=span)
    node, names = made.grad_fn, []
    while node is not None and "Attention" not in node.name():
        node = node.next_functions[0][0]
    made.sum().backward()
    found.append(node.name())
print(json.dumps(found))
"""
    found = on_null_gpu(program, card)
    assert ["Flash" in found[0], *(large in name for name in found[1:])] == [True, True, True]
