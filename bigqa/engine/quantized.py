"""Frozen linear layers in 4 bits. In: a linear layer. Out: one that unpacks its weight for each product.

NF4 with quantized scales, as in QLoRA (arXiv:2305.14314); codes are bitsandbytes'. Only the packed weight is kept for
the backward pass, never the unpacked one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from bigqa.errors import BigqaError
from bigqa.language import tr

BLOCK = 64
"""Weights that share a scale."""
SCALE_BLOCK = 256
"""Scales that share a scale of their own."""
CODES = 16
"""What 4 bits stand for."""


class QuantizedLinear(nn.Linear):
    """Computes in the precision of its input. Its bias is kept as it was."""

    def __init__(self, source: nn.Linear | Conv1D) -> None:
        nn.Module.__init__(self)
        self.turned = isinstance(source, Conv1D)
        """Whether the source holds its weight as [in, out]."""
        weight = source.weight.detach()
        weight = weight.t().contiguous() if self.turned else weight
        self.out_features, self.in_features = weight.shape
        self.state: Any
        packed, self.state = _quantize(weight)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = source.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b."""
        product: Tensor = _Product.apply(x, self)
        return product

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, [out, in]."""
        shape = (self.out_features, self.in_features)
        if self.weight.is_meta:
            scales = torch.empty_like(self.state[1], dtype=torch.float32)  # held while the weight is unpacked
            return scales.new_empty(shape, dtype=dtype)
        from bitsandbytes.functional import dequantize_4bit

        self.state.dtype = dtype
        weight: Tensor = dequantize_4bit(self.weight, self.state).view(shape)
        return weight

    def state_tensors(self) -> list[Tensor]:
        """Return what is kept beside the packed weight, in the order in which it is placed on a device.

        Source: bitsandbytes, `QuantState.to`.
        """
        if self.weight.is_meta:
            return list(self.state)
        state = self.state
        return [state.code, state.absmax, state.offset, state.state2.absmax, state.state2.code]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # Scales follow to another device, and never to another precision.
        super()._apply(fn, recurse)
        if not self.weight.is_meta:
            self.state.to(self.weight.device)
        return self


def as_it_was(layer: QuantizedLinear) -> nn.Linear | Conv1D:
    """Return a plain fp32 layer of the source's kind, with the weight that the 4 bits stand for."""
    weight = layer.unpacked(torch.float32)
    plain: nn.Linear | Conv1D
    if layer.turned:
        plain, weight = Conv1D(layer.out_features, layer.in_features), weight.t().contiguous()
    else:
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = layer.bias
    return plain


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.unpacked(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient @ ctx.layer.unpacked(gradient.dtype), None


def _quantize(weight: Tensor) -> tuple[Tensor, Any]:
    """Return the packed weight and what unpacks it. Raises: BigqaError without bitsandbytes."""
    state: Any
    if weight.is_meta:
        scales = -(-weight.numel() // BLOCK)
        shapes: tuple[tuple[int, ...], ...] = ((CODES,), (scales,), (), (-(-scales // SCALE_BLOCK),), (256,))
        state = [torch.empty(shape, dtype=torch.float32, device="meta") for shape in shapes]
        state[1] = state[1].to(torch.uint8)
        return torch.empty((weight.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta"), state
    try:
        from bitsandbytes.functional import quantize_4bit
    except ImportError:
        raise BigqaError(tr("4-bit weights need bitsandbytes: pip install 'bigqa[8bit]'")) from None
    packed, state = quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    return packed, state
