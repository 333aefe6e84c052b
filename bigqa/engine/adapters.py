"""LoRA through PEFT. In: a model. Out: the same model with small trainable matrices beside its frozen linear layers.
QLoRA: those layers are in 4 bits, see `engine.quantized`.

The QA head is new and small, so it is trained as a whole. After training the adapters are merged into the weights: what
is saved is a plain Hugging Face model.
"""

from typing import Any

from torch import nn

from bigqa.engine.quantized import QuantizedLinear, as_linear
from bigqa.errors import BigqaError
from bigqa.strategy import Adapters

RANK, ALPHA, DROPOUT = 16, 32, 0.05
"""As in the published LoRA recipes for encoders (arXiv:2106.09685, appendix D, doubled rank)."""
HEAD = "qa_outputs"


def apply(model: nn.Module, adapters: Adapters) -> None:
    """Put adapters beside every linear layer, freeze the rest but the head. Raises: BigqaError without PEFT."""
    if adapters == "none":
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise BigqaError("LoRA needs PEFT: pip install 'bigqa[adapters]'") from None
    targets = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and HEAD not in name.split(".")
    ]
    if adapters == "qlora":
        for name in targets:
            _replace(model, name, QuantizedLinear(model.get_submodule(name)))  # type: ignore[arg-type]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=targets)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or HEAD in name.split("."))


def merge(model: nn.Module) -> None:
    """Add the adapters to the weights that they stand beside, and take them away."""
    for name, module in list(model.named_modules()):
        if not _is_adapted(module):
            continue
        if isinstance(module.get_base_layer(), QuantizedLinear):
            module.base_layer = as_linear(module.get_base_layer())
        module.merge()
        _replace(model, name, module.get_base_layer())
    if hasattr(model, "_hf_peft_config_loaded"):
        setattr(model, "_hf_peft_config_loaded", False)  # noqa: B010 - no attribute that nn.Module declares


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "get_base_layer") and hasattr(module, "merge")
