"""LoRA through PEFT. In: a model. Out: the same model with small trainable matrices beside its frozen linear layers.
QLoRA: those layers are in 4 bits, see `engine.quantized`.

A task's head is new and small, so it is trained as a whole. After training the adapters are written by themselves, and
merged into the weights: what is saved beside them is a plain Hugging Face model.
"""

import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from bigqa.engine.quantized import QuantizedLinear, as_it_was
from bigqa.errors import BigqaError, in_a_line
from bigqa.language import tr
from bigqa.strategy import Adapters

WEIGHTS = "adapter_model.safetensors"
RANK, ALPHA, DROPOUT = 16, 32, 0.05
"""As in the published LoRA recipes for encoders (arXiv:2106.09685, appendix D, doubled rank)."""
LINEAR = (nn.Linear, Conv1D)
"""Layers that get adapters; the second is GPT-2's, whose weights lie the other way round."""


def apply(model: nn.Module, adapters: Adapters) -> None:
    """Put adapters beside every linear layer, freeze the rest but the head.

    Raises: BigqaError without PEFT, or without such layers.
    """
    if adapters == "none":
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise BigqaError(tr("LoRA needs PEFT: pip install 'bigqa[adapters]'")) from None
    head, words = _head_of(model), _words_of(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, LINEAR)]
    targets = [name for name in linear if not _within(name, head) and model.get_submodule(name) is not words]
    if not targets:
        raise BigqaError(tr("{kind} has no linear layers that adapters could be put beside", kind=type(model).__name__))
    if adapters == "qlora":
        for name in targets:
            _replace(model, name, QuantizedLinear(model.get_submodule(name)))  # type: ignore[arg-type]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=targets)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # it finds out by itself how weights lie
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            raise BigqaError(
                tr("adapters cannot be put into {kind}: {error}", kind=type(model).__name__, error=in_a_line(error))
            ) from None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or _within(name, head))


def _head_of(model: nn.Module) -> tuple[str, ...]:
    """Return the modules that a task has added to a model's body: what is beside it, and its pooler.

    A language model's head is its own words, old and large: it is neither trained nor adapted.
    """
    body, words = getattr(model, "base_model_prefix", ""), _words_of(model)
    if not hasattr(model, body):
        return ("qa_outputs",)
    beside = [name for name, module in model.named_children() if name != body and module is not words]
    return *beside, f"{body}.pooler"


def _words_of(model: Any) -> nn.Module | None:
    """Return the layer that turns hidden states into words, where a model has one."""
    found: nn.Module | None = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return found


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in modules)


def save(model: nn.Module, folder: Path, base: str) -> None:
    """Write adapters and the head that was trained with them as PEFT writes its own, to be loaded beside `base`."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    head = _head_of(model)
    linear = [name for name, module in model.named_modules() if _is_adapted(module)]
    LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=linear, base_model_name_or_path=base,
        modules_to_save=[name.rpartition(".")[2] for name in head if _learns(model, name)] or None, inference_mode=True,
    ).save_pretrained(str(folder))  # fmt: skip
    trained = {name: one for name, one in model.named_parameters() if "lora_" in name or _within(name, head)}
    # As PEFT has it: the model within its own, and no name of an adapter, of which a file holds one.
    named = {f"base_model.model.{name.replace('.default.', '.')}": one for name, one in trained.items()}
    save_file({name: one.detach().float().contiguous().cpu() for name, one in named.items()}, folder / WEIGHTS)


def _learns(model: nn.Module, name: str) -> bool:
    """Whether a model has such a module, with weights."""
    return any(_within(one, (name,)) for one, _ in model.named_parameters())


def merge(model: nn.Module) -> None:
    """Add the adapters to the weights that they stand beside, and take them away."""
    for name, module in list(model.named_modules()):
        if not _is_adapted(module):
            continue
        if isinstance(module.get_base_layer(), QuantizedLinear):
            module.base_layer = as_it_was(module.get_base_layer())
            module.fan_in_fan_out = isinstance(module.base_layer, Conv1D)
        module.merge()
        _replace(model, name, module.get_base_layer())
    if hasattr(model, "_hf_peft_config_loaded"):
        setattr(model, "_hf_peft_config_loaded", False)  # noqa: B010 - no attribute that nn.Module declares


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "get_base_layer") and hasattr(module, "merge")
