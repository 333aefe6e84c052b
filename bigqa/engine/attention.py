"""Attention by a kernel that is named, never left to a default. Registered with transformers as "bigqa".

In: queries, keys, values, a mask. Out: the context. A default hangs on device, dropout and the state of the tensors, so
that a predictor that runs the same step on tensors without data would see another kernel than the trainer.

B: windows. H: heads. K: heads of keys and values. S: tokens. D: size of a head.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

NAME = "bigqa"
STAND_IN_FOR: ContextVar[str] = ContextVar("STAND_IN_FOR", default="cpu")
"""The device type that tensors on the meta device stand for."""


def use(model: nn.Module) -> bool:
    """Make a model use these kernels; return whether it can. One that cannot keeps the library's eager attention."""
    if not getattr(model, "_supports_sdpa", False):
        return False
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    return True


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
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the context, [B, S, H, D], and no weights."""
    scale = query_BHSD.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query_BHSD.shape[1] // key_BKSD.shape[1]
    if groups > 1:
        key_BKSD, value_BKSD = (t.repeat_interleave(groups, dim=1) for t in (key_BKSD, value_BKSD))
    device = query_BHSD.device.type if query_BHSD.device.type != "meta" else STAND_IN_FOR.get()
    if device == "cuda":
        context = _efficient(query_BHSD, key_BKSD, value_BKSD, attention_mask, dropout, scale)
    elif dropout:
        context = _plain(query_BHSD, key_BKSD, value_BKSD, attention_mask, dropout, scale)
    else:
        context = _flash_cpu(query_BHSD, key_BKSD, value_BKSD, attention_mask, scale)
    return context.transpose(1, 2).contiguous(), None


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
