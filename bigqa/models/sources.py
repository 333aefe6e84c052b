"""What MODEL may be, and how it is loaded. In: a name. Out: configuration, fast tokenizer, model.

MODEL is a preset, a Hugging Face folder or hub id, a released Enliple folder, or a bare `config.json`.
"""

import functools
import importlib
import inspect
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bigqa.errors import BigqaError, in_a_line
from bigqa.files import read_json
from bigqa.language import tr
from bigqa.models import enliple
from bigqa.models.files import check_pointer, check_weights, no_model, refuse_other_forms, without_config
from bigqa.models.loading import loading
from bigqa.models.presets import PRESETS, TINY, Recipe
from bigqa.models.tokenizers import no_vocabulary, settled
from bigqa.models.vocabularies import by_its_only_file, wordpieces
from bigqa.models.weights import Loaded, load_checkpoint
from bigqa.sample import FOLDER as SAMPLE
from bigqa.tasks.heads import HEADS, SPANS, Head

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".onnx", ".msgpack"}
"""Endings of files that hold a model's weights, or all of it in another program's form."""
Kind = Literal["hf", "enliple", "config", "preset"]


class ModelSource(BaseModel):
    """Where a model comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    name: str
    has_weights: bool
    tokenizer: str | None = None
    recipe: Recipe | None = None
    lower_case: bool = False

    @property
    def called(self) -> str:
        """As a person calls it, who does not know where a preset lies."""
        return TINY if self.kind == "preset" and self.name == str(SAMPLE) else self.name


def resolve(name: str, *, tokenizer: str | None = None) -> ModelSource:
    """Say what a name stands for. Raises: BigqaError where it stands for nothing."""
    path = Path(name)
    if name == TINY:
        recipe = Recipe.model_validate(read_json(SAMPLE / "recipe.json", tr("the sample's recipe")))
        return ModelSource(
            kind="preset", name=str(SAMPLE), has_weights=False, tokenizer=tokenizer or str(SAMPLE), recipe=recipe
        )
    if name in PRESETS:
        preset = PRESETS[name]
        return ModelSource(
            kind="preset",
            name=name,
            has_weights=False,
            tokenizer=tokenizer,
            recipe=preset.recipe,
            lower_case=preset.lower_case,
        )
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte
        raise BigqaError(tr("no model {name}: {error}", name=name, error=in_a_line(error))) from None
    if is_file and path.suffix.lower() in WEIGHTS:
        raise BigqaError(
            tr("{name} is a file of weights: name the folder that it lies in, with its config.json", name=name)
        )
    if is_file:
        return ModelSource(kind="config", name=name, has_weights=False, tokenizer=tokenizer or str(path.parent))
    if is_folder:
        kind: Kind = "enliple" if enliple.is_released(path) else "hf"
        return ModelSource(kind=kind, name=name, has_weights=True, tokenizer=tokenizer or name)
    if not _may_be_hub_id(name):
        raise no_model(name)
    return ModelSource(kind="hf", name=name, has_weights=True, tokenizer=tokenizer or name)


def _may_be_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def load_config(source: ModelSource, head: Head = SPANS) -> Any:
    """Return the Hugging Face configuration, with as many labels as a task's head has."""
    return with_labels(plain_config(source), head)


def with_labels(config: Any, head: Head) -> Any:
    """Make a configuration say how wide a head is: what another task's was, the new one would be."""
    if head.labels is not None and getattr(config, "num_labels", head.labels) != head.labels:
        config.num_labels = head.labels
    return config


def plain_config(source: ModelSource) -> Any:
    """Return the Hugging Face configuration as it lies there."""
    from transformers import AutoConfig

    if source.name in PRESETS:
        return _from_dict(PRESETS[source.name].config)
    if source.kind == "enliple":
        return _from_dict(enliple.load_config(Path(source.name)))
    path = Path(source.name)
    file = path / "config.json" if path.is_dir() else path
    if file.is_file():
        said = read_json(file, tr("the model's config"))
        if not isinstance(said, dict):
            raise BigqaError(tr("the model's config is no JSON object: {file}", file=file))
        if "model_type" not in said and "architectures" not in said:
            raise BigqaError(
                tr(
                    "{file} is not a model's config: it has no model_type{instead}",
                    file=file,
                    instead=without_config(path),
                )
            )
    elif path.is_dir():
        raise BigqaError(
            tr(
                "{path} holds no config.json: it is no model's folder{instead}",
                path=path,
                instead=without_config(path),
            )
        )
    with loading(tr("model"), source.name):
        return AutoConfig.from_pretrained(source.name, trust_remote_code=False)


def describe_config(config: Any) -> str:
    """Return what a configuration says of the model, in one text that is the same wherever it lies."""
    values = config.to_diff_dict()
    elsewhere = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
    return json.dumps(
        {name: value for name, value in values.items() if name not in elsewhere}, sort_keys=True, default=str
    )


def load_tokenizer(source: ModelSource) -> Any:
    """Return the fast tokenizer, without the state that it was saved in: see `tokenizers.settled`."""
    from transformers import AutoTokenizer

    if source.tokenizer is None:
        raise BigqaError(
            tr(
                "{source} has no vocabulary of its own: name one with --tokenizer (vocab.txt or folder)",
                source=source.name,
            )
        )
    path = Path(source.tokenizer)
    if not path.exists() and not _may_be_hub_id(source.tokenizer):
        raise BigqaError(
            tr(
                "no tokenizer {tokenizer}: it is no folder, no vocab.txt and no hub id (OWNER/NAME)",
                tokenizer=source.tokenizer,
            )
        )
    for file in filter(Path.is_file, (path / name for name in ("tokenizer.json", "vocab.txt", "spiece.model"))):
        check_pointer(file)
    vocabulary = path / "vocab.txt" if path.is_dir() else path
    plain = vocabulary.name.endswith(".txt") and vocabulary.is_file() and not (path / "tokenizer.json").is_file()
    with loading(tr("tokenizer"), source.tokenizer):
        if plain and (pieces := wordpieces(vocabulary, lower_case=source.lower_case)) is not None:
            return settled(pieces, source.tokenizer)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.tokenizer, use_fast=True, trust_remote_code=False)
        except ValueError as error:
            if "backend tokenizer" in str(error):  # what the library says of a folder with nothing to make one of
                raise no_vocabulary(source.tokenizer, tr("no file of one")) from None
            raise
        if not tokenizer.is_fast:
            raise BigqaError(
                tr(
                    "the tokenizer {tokenizer} has no fast form, which bigqa needs for offsets",
                    tokenizer=source.tokenizer,
                )
            )
        return settled(by_its_only_file(tokenizer, source.tokenizer), source.tokenizer)


def load_model(source: ModelSource, config: Any, **options: Any) -> Any:
    """Return the model of `load`, where it is not asked what of it is new."""
    return load(source, config, **options).model


def load(
    source: ModelSource,
    config: Any,
    *,
    vocabulary_size: int | None = None,
    seed: int = 42,
    head: Head = SPANS,
    require_head: bool = False,
    new_head: bool = False,
) -> Loaded:
    """Return a model with a task's head: its weights where it has some, else random ones that `seed` fixes.

    `new_head`: the configuration may have other labels than the checkpoint's head, which goes then. Raises: BigqaError
    for a model type without such a head, weights of another task where `require_head`, weights that are not all there
    or find no place, or a vocabulary larger than the embedding.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading and saving: seconds, and bigqa's own bars tell of the rest
    auto = auto_class(config, head, source.called)
    _fit_vocabulary(source, config, vocabulary_size)
    torch.manual_seed(seed)
    config.architectures = None if not source.has_weights else config.architectures
    if source.kind == "enliple":
        model, new = enliple.load_model(Path(source.name), config, auto=auto, require_head=require_head)
        return Loaded(model, source.name, new)
    if not source.has_weights:
        if require_head:
            raise BigqaError(tr("{called} has no weights: train it first", called=source.called))
        model = auto.from_config(config, dtype=torch.float32)
        return Loaded(model, source.called, tuple(model.state_dict()))
    refuse_other_forms(source.name, config)
    if Path(source.name).is_dir():
        check_weights(Path(source.name))
    with loading(tr("model"), source.name):
        loaded = load_checkpoint(source.name, config, auto, new_head=new_head)
    if require_head and loaded.lacking:
        raise BigqaError(
            tr(
                "{source} is no fine-tuned model with a {words}: its weights lack {lacking}; train it first",
                source=source.name,
                words=head.words,
                lacking=loaded.lacking,
            )
        )
    return loaded


def auto_class(config: Any, head: Head, name: str = "") -> Any:
    """Return the class of transformers that makes models with a head. Raises: BigqaError where this type has none."""
    import transformers

    auto = getattr(transformers, head.auto_class)
    if type(config) not in auto._model_mapping:
        where = f"{name}: " if name else ""
        others = [one.words for one in HEADS if type(config) in getattr(transformers, one.auto_class)._model_mapping]
        instead = (
            tr("they have a {others} (--task)", others=" and a ".join(others))
            if others
            else tr("name a model of another type")
        )
        raise BigqaError(
            tr(
                "{where}models of type {model_type} have no {words}; {instead}",
                where=where,
                model_type=config.model_type,
                words=head.words,
                instead=instead,
            )
        )
    return auto


def _fit_vocabulary(source: ModelSource, config: Any, size: int | None) -> None:
    if size is None or size <= getattr(config, "vocab_size", size):
        return
    if source.has_weights:
        raise BigqaError(
            tr(
                "the vocabulary does not fit {source}: {size} entries, and weights for {vocab_size}",
                source=source.name,
                size=size,
                vocab_size=config.vocab_size,
            )
        )
    config.vocab_size = size


MADE_FROM_TOKENS = "create_position_ids_from_input_ids"
"""What the library calls it where positions begin behind the padding's, as RoBERTa's and its kin's do."""


def first_position(config: Any) -> int:
    """Return the position of a window's first token."""
    return int(config.pad_token_id or 0) + 1 if _counts_from_padding(type(config).__module__) else 0


@functools.cache
def _counts_from_padding(module: str) -> bool:
    """Whether a type's positions begin behind the padding's: the code of its model has a function for it."""
    try:
        code = importlib.import_module(module.replace(".configuration_", ".modeling_"))
    except ImportError:
        return False
    return any(hasattr(one, MADE_FROM_TOKENS) for one in (code, *filter(inspect.isclass, vars(code).values())))


def usable_positions(config: Any) -> int | None:
    """Return the longest window of a model, in tokens; None where nothing in the model limits it."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or (config.model_type == "deberta-v2" and not config.position_biased_input):
        return None
    return int(positions) - first_position(config)


def check_lengths(config: Any, seq_len: int) -> None:
    """Refuse windows that are longer than the model's positions."""
    positions = usable_positions(config)
    if positions is not None and seq_len > positions:
        raise BigqaError(
            tr(
                "--seq-len {seq_len} is more than the model's {positions} positions; use at most {positions}",
                seq_len=seq_len,
                positions=positions,
            )
        )


def _from_dict(values: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**values)
