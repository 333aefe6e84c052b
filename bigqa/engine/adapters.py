"""LoRA through PEFT. In: a model. Out: the same model with small trainable matrices beside its frozen linear layers.

The QA head is new and small, so it is trained as a whole. After training the adapters are merged into the weights: what
is saved is a plain Hugging Face model.
"""

from typing import Any

from torch import nn

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
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=targets)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or HEAD in name.split("."))


def merge(model: nn.Module) -> None:
    """Add the adapters to the weights that they stand beside, and take them away."""
    for name, module in list(model.named_modules()):
        if not _is_adapted(module):
            continue
        module.merge()
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    if hasattr(model, "_hf_peft_config_loaded"):
        setattr(model, "_hf_peft_config_loaded", False)  # noqa: B010 - no attribute that nn.Module declares


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "get_base_layer") and hasattr(module, "merge")
