"""What lies at which address of the GPU. In: all objects of the process. Out: {address: kind}."""

import gc
from collections.abc import Iterator
from typing import Any

DEEPEST = 4


def tagged() -> dict[int, str]:
    """Return what is known of what is allocated now."""
    import torch

    modules, optimizers = _instances()
    found: dict[int, str] = {}

    def tag(tensor: Any, kind: str) -> None:
        for part in (tensor, getattr(tensor, "_local_tensor", None)):
            if isinstance(part, torch.Tensor) and part.device.type == "cuda":
                try:
                    address = part.untyped_storage().data_ptr()
                except (RuntimeError, NotImplementedError):  # a tensor that only wraps others
                    continue
                if address:
                    found.setdefault(address, kind)

    own: set[int] = set()
    for module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                own.add(id(tensor))
                tag(tensor, "weights")
                for part in _tensors(getattr(tensor, "quant_state", None)):
                    tag(part, "weights")
                tag(getattr(tensor, "grad", None), "gradients")
    for optimizer in optimizers:
        for kind, tensor in _of_optimizer(optimizer, own):
            tag(tensor, kind)
            tag(
                getattr(tensor, "grad", None) if isinstance(tensor, torch.Tensor) and tensor.is_leaf else None,
                "gradients",
            )
    return found


def _instances() -> tuple[list[Any], list[Any]]:
    """Return the process's modules and optimizers. Only types are looked at: some objects' `__class__` does things."""
    import torch

    modules, optimizers = [], []
    kinds: dict[type, int] = {}
    for thing in gc.get_objects():
        kind = type(thing)
        if kind not in kinds:
            is_optimizer = issubclass(kind, torch.optim.Optimizer) or _is_of_deepspeed(kind)
            kinds[kind] = 1 if issubclass(kind, torch.nn.Module) else 2 if is_optimizer else 0
        if kinds[kind] == 1:
            modules.append(thing)
        elif kinds[kind] == 2:
            optimizers.append(thing)
    return [m for m in modules if "_parameters" in vars(m)], optimizers


def _is_of_deepspeed(kind: type) -> bool:
    """Whether it is one of DeepSpeed's optimizers, which are not all torch's."""
    return str(kind.__module__).startswith("deepspeed") and "Optimizer" in kind.__name__


def _of_optimizer(optimizer: Any, own: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield an optimizer's states, its own copies of weights, and what else it holds."""
    fields = dict(vars(optimizer))
    for tensor in _tensors(fields.pop("state", None)):
        yield "optimizer", tensor
    for group in fields.pop("param_groups", None) or ():
        for parameter in group.get("params", ()) if isinstance(group, dict) else ():
            if id(parameter) not in own:
                yield "optimizer", parameter
    for name, value in fields.items():
        is_gradient = any(word in name for word in ("grad", "ipg", "bucket"))
        is_weight = any(word in name for word in ("bit16", "fp16", "param")) and "fp32" not in name
        for tensor in _tensors(value):
            yield "gradients" if is_gradient else "weights" if is_weight else "optimizer", tensor


def _tensors(value: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the tensors in nested containers, and of objects that hold tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif depth >= DEEPEST or value is None or isinstance(value, torch.nn.Module | type):
        return
    elif isinstance(value, dict):
        for part in list(value.values()):
            yield from _tensors(part, depth + 1)
    elif isinstance(value, list | tuple | set):
        for part in list(value):
            yield from _tensors(part, depth + 1)
    elif hasattr(value, "__dict__") and type(value).__module__.startswith(("bitsandbytes", "torchao", "deepspeed")):
        for part in list(vars(value).values()):
            yield from _tensors(part, depth + 1)
