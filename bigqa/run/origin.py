"""What a run began with, and whether it goes on with the same. In: a run's files and model. Out: an `Origin`, refusals.

Digests are of what is read, not of where it lies. Of data: every byte of its files. Of weights: every value as loaded,
tensor by tensor and side by side, while the model is in memory (no copy is made, and shards or a pickle in place of one
file are the same); those of a new head are fixed by the seed. Of configuration and tokenizer: what they say, in a text.
Data, model, tokenizer and recipe that differ are refused; other versions are said.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from bigqa.engine.processes import Processes
from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.models.tokenizers import description
from bigqa.models.weights import Loaded
from bigqa.run.inputs import Made
from bigqa.settings import Origin, Settings
from bigqa.tasks.features import data_digest
from bigqa.versions import code, versions

RECIPE = (
    "seed", "epochs", "max_steps", "global_batch", "seq_len", "doc_stride", "max_query_length", "max_answer_length",
    "lr", "warmup", "task", "task_options", "warmup_steps", "schedule",
    "layer_decay", "freeze_layers", "eval_every", "eval_on", "metric",
    "keep_best", "patience", "weight_decay", "adam_eps", "clip", "dropout", "limit",
)  # fmt: skip
"""Settings that decide on what is learned; the others are about how it is computed and where it is kept."""
WHAT = {
    "train_file": tr("the training data, --train-file"),
    "dev_file": tr("the data that it is scored on, --dev-file"),
    "config": tr("the model's configuration, of --model"),
    "tokenizer": tr("the tokenizer, of --tokenizer or --model"),
    "weights": tr("the model's weights, of --model"),
}


def with_data(settings: Settings, processes: Processes, *, resume: bool) -> Settings:
    """Return the settings with digests of data and recipe. Raises: BigqaError where a resumed run's are others."""
    return _agreed(settings, processes, lambda: _of_data(settings), resume=resume)


def with_model(settings: Settings, made: Made, processes: Processes, *, resume: bool) -> Settings:
    """Return the settings with digests of the model too. Raises: BigqaError where a resumed run's are others."""
    return _agreed(settings, processes, lambda: _of_model(made), resume=resume)


def remark(settings: Settings) -> str | None:
    """Return a line about versions that are not what the run began with."""
    now, begun = _versions(), settings.origin.versions if settings.origin else {}
    other = [name for name in sorted(set(now) | set(begun)) if now.get(name) != begun.get(name)]
    if not begun or not other:
        return None
    before, after = (", ".join(f"{name} {which.get(name, '-')}" for name in other) for which in (begun, now))
    return tr(
        "begun with {before}; going on with {after}: the numbers may differ in their last bits",
        before=before,
        after=after,
    )


def check_checkpoint(saved: Mapping[str, Any], settings: Settings, where: str) -> None:
    """Refuse a checkpoint of a run that began otherwise: a folder may hold another run's. Raises: BigqaError."""
    values = settings.model_dump(mode="json")
    for name in RECIPE:
        if name in saved and saved[name] != values[name]:
            raise BigqaError(
                tr(
                    "{where} is of another recipe: {name} {saved}, and config.json says {values}",
                    where=where,
                    name=name,
                    saved=saved[name],
                    values=values[name],
                )
            )
    theirs, ours = saved.get("origin") or {}, values.get("origin") or {}
    for name in ("train_file", "config", "tokenizer", "weights"):
        if theirs.get(name) and ours.get(name) and theirs[name] != ours[name]:
            raise BigqaError(
                tr(
                    "{where} is of a run that began with another {name} than config.json says",
                    where=where,
                    name=name.replace("_", " "),
                )
            )


def _agreed(settings: Settings, processes: Processes, look: Callable[[], dict[str, Any]], *, resume: bool) -> Settings:
    """Look on the main process, and tell all of them."""
    found = processes.from_main(_found(settings, look, resume=resume) if processes.is_main else None)
    if isinstance(found, str):
        raise BigqaError(found)
    return settings.model_copy(update={"origin": found})


def _found(settings: Settings, look: Callable[[], dict[str, Any]], *, resume: bool) -> Origin | str:
    """Return what a run began with, or what of it is not what it was."""
    try:
        now = look()
    except BigqaError as error:
        return str(error)
    begun = settings.origin or Origin(versions=_versions())
    for name, digest in now.items() if resume else ():
        was = getattr(begun, name)
        if was is not None and not _alike(was, digest):
            return _difference(settings, name, was, digest)
    return begun.model_copy(update=now)


def _alike(was: Any, now: Any) -> bool:
    """Whether both are the same; of a recipe, a setting that an older bigqa did not have was not asked for."""
    if isinstance(was, dict) and isinstance(now, dict):
        return all(was.get(key) == now.get(key) for key in (*was, *now))
    return bool(was == now)


def _difference(settings: Settings, name: str, was: Any, now: Any) -> str:
    if name == "recipe":
        key = next(key for key in (*now, *was) if now.get(key) != was.get(key))
        what = tr(
            "the recipe in its config.json, {key} {now} and not {before},",
            key=key,
            now=now.get(key),
            before=was.get(key),
        )
    else:
        what = WHAT[name]
    other = tr("; or name what it is scored on now, --dev-file") if name == "dev_file" else ""
    return tr(
        "{out} cannot go on: {what} is not what it began with; put it back, or begin a new run{other}",
        out=settings.out,
        what=what,
        other=other,
    )


def _of_data(settings: Settings) -> dict[str, Any]:
    values = settings.model_dump(mode="json")
    found: dict[str, Any] = {"recipe": {name: values[name] for name in RECIPE}}
    found["train_file"] = data_digest(settings.train_file)
    if settings.dev_file is not None:
        found["dev_file"] = data_digest(settings.dev_file)
    return found


def _of_model(made: Made) -> dict[str, Any]:
    return {
        "config": _digest(made.config),
        "tokenizer": _digest(description(made.tokenizer)),
        "weights": weights_digest(made.loaded),
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def weights_digest(loaded: Loaded) -> str:
    """Return a digest of a model's weights that are from its checkpoint; blake2b, half a GB/s and core at least."""
    new = set(loaded.new)
    tensors = {name: one for name, one in sorted(loaded.model.state_dict().items()) if name not in new}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets go of Python's lock
        parts = pool.map(_tensor_digest, tensors.values())
        return _digest("\n".join(f"{name} {part}" for name, part in zip(tensors, parts, strict=True)))


def _tensor_digest(tensor: torch.Tensor) -> str:
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.blake2b(values.data, digest_size=16).hexdigest()}"


def _versions() -> dict[str, str]:
    return versions() | {"code": code()}
