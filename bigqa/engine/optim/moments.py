"""Adam's two moments in one form, fp32 by parameter, however an optimizer keeps them. In, out: tensors of a parameter.

bitsandbytes keeps them as 8-bit codes with a scale for each block of 256. The scales go along beside the fp32 form: a
block whose largest value is negative has no code for it, and its scale cannot be told from the values. So taking
moments out and putting them back changes no bit. Moments are made one at a time: as fp32 all of them would take eight
bytes for each parameter, where the run holds two. They are made in host memory, and put in place from there: a run that
is saved or resumed takes no more of a GPU than its steps do.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bigqa.engine.optim.pieces import pieces_of

NAMES = ("exp_avg", "exp_avg_sq")
BLOCK = 256


def makers(name: str, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Callable[[], Tensor]]:
    """Return what makes both moments of a parameter in fp32, by `exp_avg.NAME`; before its first step it has none."""
    state = optimizer.state.get(parameter)
    if not state:
        return {}
    pairs = zip(NAMES, "12", strict=True)
    return {f"{kind}.{name}": functools.partial(_in_fp32, state, kind, number) for kind, number in pairs}


def scale_makers(
    name: str, optimizer: torch.optim.Optimizer, parameter: nn.Parameter
) -> dict[str, Callable[[], Tensor]]:
    """Return what gives the scales of both moments, fp32 by block, where they are kept in 8 bits."""
    state = optimizer.state.get(parameter) or {}
    pairs = zip(NAMES, "12", strict=True)
    return {
        f"{kind}.{name}": functools.partial(state.__getitem__, f"absmax{number}")
        for kind, number in pairs
        if kind not in state and f"state{number}" in state and state[f"state{number}"].dtype == torch.uint8
    }


def put(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    moments: tuple[Tensor, Tensor],
    step: int,
    scales: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    """Put both moments in place, as they are after `step` steps; `scales`: of moments that were kept in 8 bits."""
    first, second = moments
    if hasattr(optimizer, "make_state"):  # of `engine.rounding`
        state = optimizer.make_state(parameter)
        state["step"] = step
        for name, number, moment, scale in zip(NAMES, "12", (first, second), scales, strict=True):
            if name in state:
                state[name].copy_(moment)
            else:
                _encode(state, number, moment, scale)
        return
    if not hasattr(optimizer, "init_state"):
        # Copies: what is read from a file is the file, mapped, and goes with its checkpoint.
        state = optimizer.state[parameter]
        state["step"] = torch.tensor(float(step), device=parameter.device)
        for kind, moment in zip(NAMES, (first, second), strict=True):
            if kind not in state:
                state[kind] = torch.empty_like(parameter, dtype=torch.float32)
            state[kind].copy_(moment)
        return
    _make_state(optimizer, parameter)
    state = optimizer.state[parameter]
    state["step"] = step
    for number, moment, scale in zip("12", (first, second), scales, strict=True):
        _encode(state, number, moment, scale)


def _in_fp32(state: dict[str, Any], kind: str, number: str) -> Tensor:
    if kind in state:
        kept: Tensor = state[kind].to("cpu").float()
        return kept
    return _decoded(state, number)


def _decoded(state: dict[str, Any], number: str) -> Tensor:
    if state[f"state{number}"].dtype == torch.float32:
        kept: Tensor = state[f"state{number}"].to("cpu")
        return kept
    from bitsandbytes.functional import dequantize_blockwise

    codes, scales, code = (state[f"{name}{number}"] for name in ("state", "absmax", "qmap"))
    if codes.device != scales.device:  # paged codes are the host's to torch, and the GPU may be writing to them
        torch.cuda.synchronize(scales.device)
    codes, scales, code = (one.to("cpu") for one in (codes, scales, code))
    values: Tensor = dequantize_blockwise(codes, absmax=scales, code=code, blocksize=BLOCK)
    return values


def _encode(state: dict[str, Any], number: str, moment: Tensor, scale: Tensor | None) -> None:
    kept: Tensor = state[f"state{number}"]
    if kept.dtype == torch.float32:
        kept.copy_(moment)
        return
    # Worked out in host memory: places within a map are integers of 8 bytes.
    code, flat = state[f"qmap{number}"].to("cpu"), moment.to("cpu").reshape(-1)
    codes, scales = kept.view(-1), state[f"absmax{number}"]
    for piece in pieces_of(flat):
        part, at = flat[piece].float(), slice(piece.start // BLOCK, -(-piece.stop // BLOCK))
        blocks = functional.pad(part, (0, -part.numel() % BLOCK)).view(-1, BLOCK)
        of_blocks = _scale_of(blocks, code) if scale is None else scale[at].to("cpu")
        scales[at].copy_(of_blocks)
        codes[piece].copy_(_codes_of(blocks, of_blocks[:, None], code).view(-1)[: part.numel()])


def _scale_of(blocks: Tensor, code: Tensor) -> Tensor:
    """Return the scale of each row at which its largest value has a code.

    bitsandbytes' own way takes the largest size as the scale. But the signed codes go from -0.993 to 1: where the
    largest value is negative, the row would come back smaller.
    """
    highest = blocks.amax(1) / code[-1]
    return torch.maximum(highest, (blocks / code[0]).amax(1)) if code[0] < 0 else highest


def _codes_of(blocks: Tensor, scale: Tensor, code: Tensor) -> Tensor:
    """Return the code that is nearest to each value at its row's scale."""
    codes = torch.bucketize(blocks / scale, (code[1:] + code[:-1]) / 2)
    # Where a scale is zero, a sign is all that is left of a code.
    zero = torch.where(blocks.signbit(), 0, int(torch.argmin(code.abs())))
    return torch.where(scale == 0, zero, codes).to(torch.uint8)


def _make_state(optimizer: Any, parameter: nn.Parameter) -> None:
    optimizer.begin()
    for group_index, group in enumerate(optimizer.param_groups):
        for index, candidate in enumerate(group["params"]):
            if candidate is parameter:
                optimizer.init_state(group, parameter, group_index, index)
