"""Attention by a kernel that is named, never left to a default. Registered with transformers as "bigqa".

In: queries, keys, values, a mask. Out: the context. A default hangs on device, dropout and the state of the tensors, so
that a predictor that runs the same step on tensors without data would see another kernel than the trainer.

Windows come padded, with a mask, or packed end to end as one row of tokens, with `cu_seq_lens_q`, the name that the
library has for their bounds: [0, end of the first, end of the second, ...]. The kernels keep packed ones apart.

B: windows. H: heads. K: heads of keys and values. S: tokens. D: size of a head. T: tokens of all windows.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from bigqa.engine.alike import FLASH_FROM, least_capability
from bigqa.engine.attention.windows import Shape, attend

NAME = "bigqa"
FLASH_SIZES, FLASH_SIZES_EVERYWHERE = 256, 192
"""Largest heads of torch's flash kernels, and of those on cards with little shared memory."""
HEAD_STEP = 8
"""A GPU's kernels read 16 bytes at once and refuse heads of other sizes than multiples of so many elements."""
LITTLE_SHARED = {(8, 6), (8, 9), (12, 0), (12, 1)}
"""Compute capabilities whose blocks have 99 KiB of it."""
STAND_IN_FOR: ContextVar[str] = ContextVar("STAND_IN_FOR", default="cpu")
"""The device type that tensors on the meta device stand for."""


_packed_calls = 0


def count_packed() -> int:
    """Return how often packed windows have come to this attention: a model may not hand their bounds on."""
    return _packed_calls


def use(model: nn.Module) -> bool:
    """Make a model use these kernels; return whether it can. One that cannot keeps the library's eager attention."""
    if not getattr(model, "_supports_sdpa", False) or _has_biases_of_its_own(model):
        return False
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    return True


def _has_biases_of_its_own(model: nn.Module) -> bool:
    """Whether the scores want a bias that these kernels do not take: T5 and its kin learn one of relative positions."""
    return any(name.endswith("relative_attention_bias") for name, _ in model.named_modules())


@contextlib.contextmanager
def standing_in_for(device_type: str) -> Iterator[None]:
    """Let the meta device stand for another one inside the block."""
    token = STAND_IN_FOR.set(device_type)
    try:
        yield
    finally:
        STAND_IN_FOR.reset(token)


def attention(
    module: nn.Module,
    query_BHSD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the context, [B, S, H, D], and no weights."""
    scale = query_BHSD.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query_BHSD.shape[1] // key_BKSD.shape[1]
    if groups > 1:
        key_BKSD, value_BKSD = (t.repeat_interleave(groups, dim=1) for t in (key_BKSD, value_BKSD))
    device = query_BHSD.device.type if query_BHSD.device.type != "meta" else STAND_IN_FOR.get()
    size = query_BHSD.shape[-1]
    if device == "cuda" and size % HEAD_STEP:
        query_BHSD, key_BKSD, value_BKSD = (_filled_up(one) for one in (query_BHSD, key_BKSD, value_BKSD))
    if cu_seq_lens_q is not None:
        global _packed_calls
        _packed_calls += 1
        packed = _packed_on_gpu if device == "cuda" else _packed_on_cpu
        causal = bool(getattr(module, "is_causal", False))
        tensors = (query_BHSD[0], key_BKSD[0], value_BKSD[0])
        bounds = Bounds(cu_seq_lens_q, max_length_q, causal, sliding_window)
        return _cut(packed(*tensors, bounds, dropout, scale)[None], size), None
    if device == "cuda":
        context = _efficient(query_BHSD, key_BKSD, value_BKSD, attention_mask, dropout, scale)
    elif dropout:
        context = _plain(query_BHSD, key_BKSD, value_BKSD, attention_mask, dropout, scale)
    else:
        context = _flash_cpu(query_BHSD, key_BKSD, value_BKSD, attention_mask, scale)
    return _cut(context, size).transpose(1, 2).contiguous(), None


def _filled_up(one_BHSD: Tensor) -> Tensor:
    """Fill heads up with zeros: they add nothing to a product, and of the context they are cut off."""
    return functional.pad(one_BHSD, (0, -one_BHSD.shape[-1] % HEAD_STEP))


def _cut(context: Tensor, size: int) -> Tensor:
    return context if context.shape[-1] == size else context[..., :size]


@dataclass(frozen=True)
class Bounds:
    """The windows of a packed row, and what within them looks at what."""

    ends: Tensor
    """int32, [windows + 1], on the device: where each begins, and the end of the last."""
    longest: int
    causal: bool
    span: int | None
    """Tokens that look at each other are fewer than this apart."""


def _packed_on_cpu(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, dropout: float, scale: float) -> Tensor:
    count = bounds.ends.shape[0] - 1
    lengths = [bounds.longest] * count if bounds.ends.is_meta else bounds.ends.diff().tolist()
    return attend(query, key, value, Shape(tuple(lengths), bounds.causal, bounds.span), dropout, scale)


def _packed_on_gpu(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, dropout: float, scale: float) -> Tensor:
    """Flash attention where the card has it for this precision, else the memory-efficient kernel, which all have."""
    tensors_THD = [one.transpose(0, 1) for one in (query, key, value)]
    ends, longest = bounds.ends, bounds.longest
    if _has_flash(query, dropout > 0.0):
        before = -1 if bounds.span is None else bounds.span - 1
        context: Tensor = torch.ops.aten._flash_attention_forward(
            *tensors_THD, ends, ends, longest, longest, dropout, bounds.causal, False, scale=scale,
            window_size_left=before, window_size_right=0 if bounds.causal else before,
        )[0]  # fmt: skip
        return context
    if bounds.span is not None and bounds.span < longest:
        raise NotImplementedError("windows that look only so far need flash attention, or padding")
    from_top_left = 1
    context = torch.ops.aten._efficient_attention_forward(
        *(one[None] for one in tensors_THD), None, ends, ends, longest, longest, dropout,
        from_top_left if bounds.causal else 0, torch.is_grad_enabled() and query.requires_grad, scale=scale,
    )[0][0]  # fmt: skip
    return context


def packs_on(device: torch.device, dtype: torch.dtype, config: Any, seq_len: int) -> bool:
    """Whether a device has a kernel for a model's packed windows."""
    return device.type != "cuda" or packs_at(least_capability(device), dtype, config, seq_len)


def packs_at(capability: tuple[int, int], dtype: torch.dtype, config: Any, seq_len: int) -> bool:
    """Whether a GPU has a kernel for packed windows: tokens that look only so far need flash attention."""
    if not any(span < seq_len for span in spans_of(config)):
        return True
    heads = int(getattr(config, "num_attention_heads", 1))
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return _flash_on(capability, dtype, size, drops=True)


def spans_of(config: Any) -> list[int]:
    """Return how far the layers of a model look that do not look at the whole window, in tokens."""
    found = (getattr(config, name, None) for name in ("local_attention", "sliding_window"))
    return [int(span) for span in found if span]


def _has_flash(query: Tensor, drops: bool) -> bool:
    if query.is_meta:
        # Both keep the same for the backward pass; torch's shapes of the other one's backward pass are broken (2.13).
        return True
    return _flash_on(torch.cuda.get_device_capability(query.device), query.dtype, query.shape[-1], drops=drops)


def _flash_on(capability: tuple[int, int], dtype: torch.dtype, size: int, *, drops: bool) -> bool:
    return dtype in (torch.bfloat16, torch.float16) and has_flash() and runs_flash(capability, size, drops=drops)


def has_flash() -> bool:
    """Whether this torch was built with flash attention; one for the CPU is no word on what a card's would be."""
    return torch.version.cuda is None or bool(torch.backends.cuda.is_flash_attention_available())


def runs_flash(capability: tuple[int, int], size: int, *, drops: bool) -> bool:
    """Whether a card has flash attention for heads of a size, its backward pass included.

    That of large heads wants more shared memory than some cards have, with dropout above all. There torch's operation
    launches nothing, and says nothing: gradients are what lay in memory. Its own choice of a kernel steers clear.
    Sources: torch, `flash_bwd_launch_template.h`, `run_mha_bwd_hdim256`; `sdp_utils.cpp`,
    `check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120`.
    """
    if capability < FLASH_FROM or size > FLASH_SIZES:
        return False
    return capability not in LITTLE_SHARED or size <= FLASH_SIZES_EVERYWHERE or (size > 224 and not drops)


def mask(
    batch_size: int, q_length: int, kv_length: int, *, mask_function: Any, attention_mask: Tensor | None, **options: Any
) -> Tensor | None:
    """Return a boolean mask that broadcasts to [B, H, S, S], made without a look at the data; none: all is open."""
    if mask_function is bidirectional_mask_function:
        return None if attention_mask is None else attention_mask[:, None, None, :].bool()
    options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(
        batch_size, q_length, kv_length, mask_function=mask_function, attention_mask=attention_mask, **options
    )


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    # The lowest finite number, not -inf: a row with nothing open must not become NaN.
    closed = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return closed.masked_fill_(~mask, torch.finfo(dtype).min)


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float) -> Tensor:
    scores_BHSS = torch.matmul(query * scale, key.transpose(-1, -2))
    if mask is not None:
        scores_BHSS += _bias(mask, scores_BHSS.dtype)
    weights_BHSS = functional.dropout(torch.softmax(scores_BHSS, dim=-1), dropout)
    return torch.matmul(weights_BHSS, value)


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    bias = None if mask is None else _bias(mask, query.dtype)
    if query.device.type != "meta":
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    if bias is not None:
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    context: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=bias, scale=scale
    )[0]
    return context


def _efficient(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float) -> Tensor:
    """Memory-efficient attention: every card since Maxwell has it, with masks and with dropout."""
    bias = None
    if mask is not None:
        # The kernel wants rows of the bias to begin at multiples of 16 bytes.
        length, padded = key.shape[2], -(-key.shape[2] // 8) * 8
        full = functional.pad(mask.expand(-1, -1, query.shape[2], length), (0, padded - length))
        bias = _bias(full, query.dtype)[..., :length].expand(query.shape[0], query.shape[1], -1, -1)
    needs_gradient = torch.is_grad_enabled() and query.requires_grad
    context: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, needs_gradient, dropout, scale=scale
    )[0]
    return context


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
