"""Precision of weights and of what the optimizer keeps. In: a model and a precision. Out: what the optimizer steps.

fp32: the optimizer steps the model's own weights. bf16, fp16: the model holds low-precision weights and the optimizer
fp32 masters, so no autocast, and no cache of cast weights, is needed. bf16-sr: bf16 weights alone, rounded at random.
"""

from collections.abc import Mapping

import torch
from torch import nn

from bigqa.strategy import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "bf16-sr": torch.bfloat16}


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Round a model's weights, but not the angles by which rotary positions turn: they are multiplied by positions.

    In bf16 an angle is up to 0.4 % off, a whole radian after some hundred tokens; no model folder holds that.
    """
    angles = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]
    model.to(dtype)
    for module, name, buffer in angles:
        setattr(module, name, buffer)


class Weights:
    """A model's trainable weights by name, and the masters that the optimizer steps."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        self.model_parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.has_masters = precision in ("bf16", "fp16")
        self.masters: Mapping[str, nn.Parameter] = self.model_parameters
        if self.has_masters:
            self.masters = {name: nn.Parameter(p.detach().float().clone()) for name, p in self.model_parameters.items()}
        if precision != "fp32":
            cast(model, DTYPES[precision])

    def place(self, model: nn.Module, device: torch.device) -> None:
        """Move model and masters: they are made in host memory, so that a GPU never holds fp32 weights beside them."""
        model.to(device)
        if self.has_masters:
            for master in self.masters.values():
                master.data = master.data.to(device)

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take fp32 values by name."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(values[name])
        self.publish()

    def gather_gradients(self) -> None:
        """Hand the model's gradients to the masters, in fp32, and free the model's."""
        if not self.has_masters:
            return
        for name, parameter in self.model_parameters.items():
            if parameter.grad is not None:
                self.masters[name].grad = parameter.grad.float()
                parameter.grad = None

    def publish(self) -> None:
        """Round the masters into the model's weights."""
        if not self.has_masters:
            return
        with torch.no_grad():
            for name, parameter in self.model_parameters.items():
                parameter.copy_(self.masters[name])

    def hand_back(self, model: nn.Module) -> None:
        """Make the masters the model's own weights: after training, what is saved is what is used.

        In host memory, for a model in fp32 may be larger than all that training held on a GPU; on a CPU without a copy.
        The optimizer's groups know the masters for as long as there is an optimizer: they are left empty.
        """
        model.to("cpu")
        for name, parameter in self.model_parameters.items():
            parameter.data = self.masters[name].detach().to("cpu")
            if self.has_masters:
                self.masters[name].data = torch.empty(0)
        self.masters = {}
        model.float()
