"""Weights of a Hugging Face checkpoint in a model with a task's head: every one of them, or none.

In: a folder or hub id, a configuration. Out: the model, and which of its weights are new; refused by name where the
backbone lacks a weight, or the checkpoint holds one of a backbone that finds no place. Names that differ in a prefix
alone (`model.` where the head's class says `transformer.`, `module.`, none) are mapped: the library loads nothing of
them, and its warning is about what it calls newly initialized.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import joined, put, tr

POOLER = re.compile(r"(^|\.)pooler(_\w+)?\.")
"""Made of a window's first token for other tasks; a question-answering head never asks it."""
BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|version|attn\.bias|attention\.bias)$")
"""Constants that older versions of the library saved with the weights."""
OLD_NAMES = {r"\.gamma$": ".weight", r"\.beta$": ".bias"}
"""Of normalization in checkpoints that came from TensorFlow."""


@dataclass(frozen=True)
class Loaded:
    """A model, and where its weights are from."""

    model: Any
    source: str
    new: tuple[str, ...]
    """Names of weights that are random: no checkpoint has them."""
    unused: tuple[str, ...] = ()
    """Names of the checkpoint's weights for other tasks."""
    mapped: tuple[str, str] | None = None
    """A prefix of the checkpoint's names, and the model's in its place."""

    @property
    def lacking(self) -> str | None:
        """Return the first weight of the head that is new; none where the model is fine-tuned."""
        return next((name for name in self.new if not POOLER.search(name)), None)

    def says(self) -> str | None:
        """Return one line about what is new, what is left out and what was renamed; none where nothing is."""
        parts = []
        if self.new:
            whole = len(self.new) == len(self.model.state_dict())
            parts.append(tr("new and random: {which}", which=tr("all of them") if whole else _heads(self.new)))
        if self.unused:
            parts.append(tr("not used: {heads}", heads=_heads(self.unused)))
        if self.mapped:
            ours, theirs = self.mapped[1] or tr("no prefix"), self.mapped[0] or tr("names without prefix")
            parts.append(tr("read as {ours}: {theirs}", ours=ours, theirs=theirs))
        return tr("weights of {source}: {parts}", source=self.source, parts=joined("; ", parts)) if parts else None


def load_checkpoint(name: str, config: Any, auto: Any, *, new_head: bool = False) -> Loaded:
    """Return a model with a checkpoint's weights, in fp32. Raises: BigqaError naming the first weight that is amiss.

    `auto`: the class of transformers that finds the model's; `new_head`: a head of other sizes goes.
    """
    model, found = _read(name, config, auto, own := _prefix_of_the_library(config, auto))
    other = _other_names(name, model, found)
    if other:
        del model  # not two at once
        model, found = _read(name, config, auto, own | other)
    _forget_old_names(model, own | other)
    unused = sorted(key for key in found["unexpected_keys"] if not BUFFERS.search(key))
    if new_head:
        _let_heads_go(model, found)
    _refuse(name, model, found, unused)
    _refuse_infinite(name, model)
    return Loaded(model, name, tuple(sorted(found["missing_keys"])), tuple(unused), _told(other))


def _let_heads_go(model: Any, found: dict[str, Any]) -> None:
    """Count a head of other sizes, as of other labels, among what is new."""
    is_head = _is_head(model)
    others = [key for key, *_ in found["mismatched_keys"] if is_head(key)]
    found["missing_keys"] = {*found["missing_keys"], *others}
    found["mismatched_keys"] = {one for one in found["mismatched_keys"] if one[0] not in others}


def _read(name: str, config: Any, auto: Any, renamed: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    import torch

    # What does not fit is named here; the library would raise without a name.
    model, found = auto.from_pretrained(
        name,
        config=config,
        dtype=torch.float32,
        key_mapping=renamed or None,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise BigqaError(
            tr("{name} holds an adapter beside its weights, which would be loaded too: merge it first", name=name)
        )
    return model, found


def _prefix_of_the_library(config: Any, auto: Any) -> dict[str, str]:
    """Return what renames a language model's backbone (`model.`) for the head's class (`transformer.`)."""
    from transformers import AutoModel

    head = _first(auto._model_mapping[type(config)])
    base = _first(AutoModel._model_mapping.get(type(config), head))
    theirs, ours = base.base_model_prefix, head.base_model_prefix
    return {rf"^{re.escape(theirs)}\.": f"{ours}."} if theirs and theirs != ours else {}


def _first(found: Any) -> Any:
    return found[0] if isinstance(found, (tuple, list)) else found


def _other_names(name: str, model: Any, found: dict[str, Any]) -> dict[str, str]:
    """Return what renames a checkpoint's weights where that gives the whole backbone, and its head if it has one."""
    prefix, _ = _backbone(model)
    is_head = _is_head(model)
    have = {_modern(key): key for key in found["unexpected_keys"]}
    lacking = [key.removeprefix(prefix) for key in found["missing_keys"] if not is_head(key) and not POOLER.search(key)]
    renamed: dict[str, str] = {}
    for theirs in _prefixes(name, lacking, have):
        if theirs != prefix:
            renamed[f"^{re.escape(theirs)}"] = prefix
        if any(have[theirs + key] != theirs + key for key in lacking):
            renamed |= OLD_NAMES
    heads = [key for key in found["missing_keys"] if is_head(key)]
    for theirs in _prefixes(name, heads, have):
        tops = "|".join(sorted({re.escape(key.partition(".")[0]) for key in heads}))
        if theirs:  # before the backbone's: that one may begin with it
            renamed = {f"^{re.escape(theirs)}(?=({tops})\\.)": ""} | renamed
    return renamed


def _prefixes(name: str, lacking: list[str], have: dict[str, str]) -> list[str]:
    """Return the one prefix under which a checkpoint has all that is lacking, or none. Raises: BigqaError for two."""
    if not lacking:
        return []
    longest = max(lacking, key=len)
    ends = {key[: -len(longest)] for key in have if key.endswith(longest)}
    whole = sorted(one for one in ends if not one or one.endswith(".") if all(one + key in have for key in lacking))
    if len(whole) > 1:
        raise BigqaError(
            tr(
                "{name}: its weights hold the model {count} times, under {whole}: keep the one to train",
                name=name,
                count=len(whole),
                whole=" and ".join(whole),
            )
        )
    return whole


def _modern(key: str) -> str:
    for old, new in OLD_NAMES.items():
        key = re.sub(old, new, key)
    return key


def _backbone(model: Any) -> tuple[str, set[str]]:
    """Return the prefix of the backbone's names in a model with a head, and the names of the backbone's parts."""
    import torch
    from transformers import AutoModel

    base = model.base_model
    if base is not model:
        return f"{model.base_model_prefix}.", {name for name, _ in base.named_children()}
    with torch.device("meta"):
        base = AutoModel.from_config(model.config)
    return "", {name for name, _ in base.named_children()}


def _is_head(model: Any) -> Callable[[str], bool]:
    prefix, parts = _backbone(model)
    return lambda key: not key.startswith(prefix) if prefix else key.partition(".")[0] not in parts


def _refuse(name: str, model: Any, found: dict[str, Any], unused: list[str]) -> None:
    for key, theirs, ours in sorted(found["mismatched_keys"]):
        raise BigqaError(
            tr(
                "{name}: {key} has the shape {theirs} in the weights and {ours} by config.json: they are of "
                "different models",
                name=name,
                key=key,
                theirs=tuple(theirs),
                ours=tuple(ours),
            )
        )
    prefix, parts = _backbone(model)
    is_head = _is_head(model)
    lacking = sorted(key for key in found["missing_keys"] if not is_head(key) and not POOLER.search(key))
    strange = [key for key in unused if _of_backbone(key, prefix, parts) and not POOLER.search(key)]
    if lacking:
        instead = tr("; what they hold instead: {some}", some=_some(strange or unused)) if unused else ""
        raise BigqaError(
            tr(
                "{name}: the weights lack {some}{instead}; nothing is trained on random ones",
                name=name,
                some=_some(lacking),
                instead=instead,
            )
        )
    if strange:
        raise BigqaError(
            tr(
                "{name}: the weights hold {some}, which a {kind} by its config.json has no place for: are they "
                "of another model?",
                name=name,
                some=_some(strange),
                kind=type(model).__name__,
            )
        )


def _refuse_infinite(name: str, model: Any) -> None:
    """Refuse weights of a run that had gone astray: nothing is learned from there. Raises: BigqaError."""
    for key, tensor in model.named_parameters():
        if not bool(tensor.detach().isfinite().all()):
            raise BigqaError(
                tr(
                    "{name}: {key} holds NaN or infinity: take an earlier checkpoint of what made it",
                    name=name,
                    key=key,
                )
            )


def _of_backbone(key: str, prefix: str, parts: set[str]) -> bool:
    return bool(prefix and key.startswith(prefix)) or key.partition(".")[0] in parts


def _some(keys: list[str]) -> str:
    more = tr(" and {count} more", count=len(keys) - 1) if len(keys) > 1 else ""
    return put("{first}{more}", first=keys[0], more=more)


def _heads(keys: Iterable[str]) -> str:
    """Name heads, not their every weight: `cls`, `qa_outputs`, and `bert.pooler` of the backbone."""
    names = {key[: found.end() - 1] if (found := POOLER.search(key)) else key.partition(".")[0] for key in keys}
    return ", ".join(sorted(names))


def _forget_old_names(model: Any, renamed: dict[str, str]) -> None:
    """Save under the library's names: it would put the checkpoint's own back, and then load nothing of them."""
    kept = getattr(model, "_weight_conversions", None)
    if kept:
        model._weight_conversions = [one for one in kept if not {*one.source_patterns} & {*renamed, *LEGACY}]


LEGACY = ("LayerNorm.gamma", "LayerNorm.beta")
"""The library's own names for `OLD_NAMES`."""


def _told(renamed: dict[str, str]) -> tuple[str, str] | None:
    for theirs, ours in renamed.items():
        if theirs.startswith("^") and "(?=" not in theirs:
            return theirs[1:].replace("\\", ""), ours
    return None
