"""Released Enliple checkpoints, read and turned into Hugging Face form. In: a folder with a JSON config, a pickled
state dict and a vocab.txt. Out: a `BertForQuestionAnswering` and its tokenizer; refused whole where a key is off.

The original has no dropout after the attention's output projection, and Hugging Face's BERT has one.
"""

import pickle
import re
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError, UsageError
from bigqa.files import atomic_folder, read_json, read_text
from bigqa.language import tr

ACTIVATIONS = ("auto", "gelu", "gelu_new")
SMALL = (12, 256)
"""Layers and hidden size of the small model: every released config says `gelu`, and its training used the tanh form."""
CONFIG_KEYS = {
    "ff_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "vocab_size": "vocab_size",
    "initializer_range": "initializer_range",
}
RENAMED = (
    (r"\.attn\.(query|key|value)\.", r".attention.self.\1."),
    (r"\.attn\.o_proj\.", ".attention.output.dense."),
    (r"\.attention_norm\.", ".attention.output.LayerNorm."),
    (r"\.ffn\.fc1\.", ".intermediate.dense."),
    (r"\.ffn\.fc2\.", ".output.dense."),
    (r"\.ffn_norm\.", ".output.LayerNorm."),
)


def is_released(folder: Path) -> bool:
    """Say whether a folder holds a released checkpoint."""
    file = folder / "config.json"
    if not file.is_file():
        return False
    config = read_json(file, tr("the model's config"))
    return isinstance(config, dict) and "ff_dim" in config and "num_heads" in config


def load_config(folder: Path, activation: str = "auto") -> dict[str, Any]:
    """Return a Hugging Face configuration's values. Raises: BigqaError naming a missing or unknown setting."""
    if activation not in ACTIVATIONS:
        raise UsageError(
            tr(
                "--activation is one of {activations}, not {activation}",
                activations=", ".join(ACTIVATIONS),
                activation=activation,
            )
        )
    file = folder / "config.json"
    released = read_json(file, tr("the released config"))
    for name in (*CONFIG_KEYS, "act_fn", "dropout_prob"):
        if name not in released:
            raise BigqaError(tr("{file} is not a released Enliple config: it has no {name}", file=file, name=name))
    if released["act_fn"] != "gelu":
        raise BigqaError(
            tr("{file}: act_fn {released!r} is unknown; expected gelu", file=file, released=released["act_fn"])
        )
    chosen = activation
    if activation == "auto":
        is_small = (released["num_hidden_layers"], released["hidden_size"]) == SMALL
        chosen = "gelu_new" if is_small else "gelu"
    values = {ours: released[theirs] for theirs, ours in CONFIG_KEYS.items()}
    dropout = released["dropout_prob"]
    return values | {
        "model_type": "bert",
        "hidden_act": chosen,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "architectures": ["BertForQuestionAnswering"],
    }


def load_model(
    folder: Path, config: Any, *, qa_head: Path | None = None, auto: Any = None, require_head: bool = False
) -> tuple[Any, tuple[str, ...]]:
    """Return a model with a released folder's weights, and the names of those that are new.

    It is a `BertForQuestionAnswering`, or what `auto` makes.

    A base checkpoint gets the QA head of the file `qa_head`, or a random one where none is required; so does one that
    was trained on another task.
    """
    import torch
    from transformers import BertForQuestionAnswering

    state = _renamed(_read_state(_weights_file(folder)), folder)
    if qa_head is not None:
        head = _read_state(qa_head)
        state |= {f"qa_outputs.{name.removeprefix('qa_outputs.')}": value for name, value in head.items()}
    _read_ffn_size(state, config)
    config.dtype = torch.float32
    model = BertForQuestionAnswering(config) if auto is None else auto.from_config(config)
    expected = model.state_dict()
    wanted = require_head or qa_head is not None
    if not wanted:  # the head of another task goes
        state = {name: value for name, value in state.items() if name in expected or not _is_of_a_head(name)}
    new = tuple(name for name in expected if name not in state and _is_of_a_head(name))
    if not wanted:
        state |= {name: expected[name] for name in new}
    _check(state, expected, folder)
    model.load_state_dict(state)
    return model.eval(), new


def convert(src: Path, out: Path, *, activation: str = "auto", qa_head: Path | None = None) -> None:
    """Write a released checkpoint as a Hugging Face folder: all of it, or nothing."""
    from transformers import BertConfig

    values = load_config(src, activation)
    config = BertConfig(**{name: value for name, value in values.items() if name != "model_type"})
    vocabulary = src / "vocab.txt"
    tokenizer = wordpiece(vocabulary, lower_case=values["hidden_act"] == "gelu_new")
    if len(tokenizer) != config.vocab_size:
        raise BigqaError(
            tr(
                "{vocabulary} has {count} entries and the config says vocab_size {vocab_size}",
                vocabulary=vocabulary,
                count=len(tokenizer),
                vocab_size=config.vocab_size,
            )
        )
    model, _ = load_model(src, config, qa_head=qa_head)
    with atomic_folder(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def wordpiece(
    vocabulary: Path, *, lower_case: bool, strip_accents: bool = False, tokenize_chinese_chars: bool = True
) -> Any:
    """Return a fast BERT tokenizer. Accents stay where nothing else is said: stripping takes Hangul apart into jamo.

    A vocabulary may hold an empty line that owns an id, so that lines are numbered here, empty ones too.
    """
    from transformers import BertTokenizer

    lines = read_text(vocabulary, tr("the vocabulary")).split("\n")
    if lines[-1] == "":
        lines.pop()
    entries = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
        if name not in entries:
            raise BigqaError(
                tr("{vocabulary} is not a BERT vocabulary: it has no {name}", vocabulary=vocabulary, name=name)
            )
    if len(entries) != len(lines):
        raise BigqaError(tr("{vocabulary} has an entry twice; each line must be its own", vocabulary=vocabulary))
    return BertTokenizer(
        vocab=entries,
        do_lower_case=lower_case,
        strip_accents=strip_accents,
        tokenize_chinese_chars=tokenize_chinese_chars,
    )


def _weights_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.bin"))
    chosen = [file for file in files if "qa_head" not in file.name]
    if len(chosen) != 1:
        raise BigqaError(
            tr("{folder} must hold one .bin file of weights, and has {count}", folder=folder, count=len(chosen))
        )
    return chosen[0]


def _read_state(file: Path) -> dict[str, Any]:
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BigqaError(tr("weights not found: {file}", file=file)) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BigqaError(tr("{file} is not a pickle of plain tensors: {reason}", file=file, reason=reason)) from None
    if not isinstance(state, dict):
        raise BigqaError(
            tr("{file} is not a pickle of plain tensors: it holds a {kind}", file=file, kind=type(state).__name__)
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise BigqaError(
                tr(
                    "{file} is not a pickle of plain tensors: {name!r} is a {kind}",
                    file=file,
                    name=name,
                    kind=type(value).__name__,
                )
            )
    return state


def _renamed(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Give the keys their Hugging Face names; the pooler, which a QA model does not use, is dropped."""
    renamed = {}
    for name, value in state.items():
        new = name if name.startswith(("bert.", "qa_outputs.")) else f"bert.{name}"
        if new.startswith("bert.pooler."):
            continue
        for pattern, replacement in RENAMED:
            new = re.sub(pattern, replacement, new)
        renamed[new] = value
    return renamed


def _is_of_a_head(name: str) -> bool:
    """Whether a weight is a task's own: beside the body, or its pooler."""
    return not name.startswith("bert.") or name.startswith("bert.pooler.")


def _read_ffn_size(state: dict[str, Any], config: Any) -> None:
    # The released README misprints it; the weights do not.
    weight = state.get("bert.encoder.layer.0.intermediate.dense.weight")
    if weight is not None and weight.dim() == 2:
        config.intermediate_size = int(weight.shape[0])


def _check(state: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    for name in sorted(set(expected) - set(state)):
        raise BigqaError(tr("{folder}: the weights lack {name}", folder=folder, name=name))
    for name in sorted(set(state) - set(expected)):
        raise BigqaError(tr("{folder}: the weights hold an unknown key {name}", folder=folder, name=name))
    for name, value in expected.items():
        if state[name].shape != value.shape:
            shapes = tr("{shape} instead of {shape_2}", shape=tuple(state[name].shape), shape_2=tuple(value.shape))
            raise BigqaError(tr("{folder}: {name} has the shape {shapes}", folder=folder, name=name, shapes=shapes))
