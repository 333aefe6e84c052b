"""Losses of 20 steps beside those of transformers' Trainer and of TRL's SFTTrainer: the same rows in the same order.

fp32, no dropout, a warm-up, a falling rate, weight decay, clipping. The peers read the text by themselves: tokens,
labels, which of them are answers, padding and the mean are their own. `make slow`; TRL is an extra of its own.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import train_here
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from bigqa.engine.loop.order import DataOrder
from bigqa.models.sources import load_tokenizer, resolve
from bigqa.sample import FOLDER
from bigqa.tasks.tables import read_table

pytestmark = pytest.mark.slow
STEPS, BATCH, ROWS = 20, 8, 100
"""A hundred rows: the last step of an epoch is a smaller one."""
RATES = {"learning_rate": 1e-3, "warmup_steps": 4, "weight_decay": 0.01, "adam_epsilon": 1e-6, "max_grad_norm": 1.0}
LABELS = ("attack", "criticism", "praise")
GENERATION = (
    "{% for message in messages %}<{{ message['role'] }}>{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}<end>{% endgeneration %}{% else %}{{ message['content'] }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""The sample's template with the marks by which TRL knows answers."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path / "cache"))


def ours(task: str, model: Path, data: Path, out: Path, *more: str) -> list[float]:
    """Train by bigqa; return the losses."""
    words = [
        "--task",
        task,
        "--model",
        model,
        "--train-file",
        data,
        "--out",
        out,
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    words += ["--global-batch", BATCH, "--micro-batch", BATCH, "--seq-len", 128, "--max-steps", STEPS, "--lr", 1e-3]
    words += ["--warmup-steps", 4, "--weight-decay", 0.01, "--dropout", 0, "--no-check", *more]
    done = train_here(*map(str, words))
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]


def in_order(rows: list[Any]) -> list[Any]:
    """Return rows as the steps take them."""
    order = DataOrder(num_windows=len(rows), global_batch=BATCH, seed=42)
    return [rows[index] for step in range(STEPS) for index in order.batch(step)]


def sizes(count: int) -> list[int]:
    """Return how many rows each step takes."""
    order = DataOrder(num_windows=count, global_batch=BATCH, seed=42)
    return [len(order.batch(step)) for step in range(STEPS)]


class InOrder(torch.utils.data.Sampler[list[int]]):
    """Batches of the steps' sizes, one after the other."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def __iter__(self) -> Iterator[list[int]]:
        begin = 0
        for count in self.counts:
            yield list(range(begin, begin + count))
            begin += count

    def __len__(self) -> int:
        return len(self.counts)


def watched(base: type[Any], counts: list[int], losses: list[float]) -> type[Any]:
    """Return a trainer that takes rows in order, and writes down its losses before anything rounds them."""

    class Watched(base):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                self.train_dataset, batch_sampler=InOrder(counts), collate_fn=self.data_collator
            )

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            found = super().compute_loss(model, inputs, *args, **more)
            losses.append(float((found[0] if isinstance(found, tuple) else found).detach()))
            return found

    return Watched


def arguments(kind: type[Any], folder: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(folder), per_device_train_batch_size=BATCH, max_steps=STEPS, lr_scheduler_type="linear",
        use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=1, **RATES,
        **more,
    )  # fmt: skip


def assert_alike(found: list[float], theirs: list[float]) -> None:
    assert len(found) == len(theirs) == STEPS and max(found) > 1.3 * min(found)  # rows differ, and something is learned
    pairs = list(zip(found, theirs, strict=True))
    assert max(abs(one - other) for one, other in pairs) < 1e-4, pairs


@pytest.mark.parametrize("task", ["classify", "score"])
def test_the_trainer_has_the_same_losses(task: str, tmp_path: Path) -> None:
    shape = json.loads((FOLDER / "comments" / "config.json").read_text("utf-8"))
    labels = {"num_labels": 1, "problem_type": "regression"} if task == "score" else {
        "id2label": dict(enumerate(LABELS)), "problem_type": "single_label_classification"
    }  # fmt: skip
    tokenizer = load_tokenizer(resolve(str(FOLDER / "comments" / "config.json")))
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_config(BertConfig(**shape, **labels))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [row for row, _ in read_table(FOLDER / "comments" / "train.tsv")][:ROWS]
    wanted = [float(len(row["text"])) / 20 if task == "score" else LABELS.index(row["label"]) for row in rows]
    column = wanted if task == "score" else [row["label"] for row in rows]
    data = tmp_path / "rows.tsv"
    lines = ["text\tlabel", *(f"{row['text']}\t{label}" for row, label in zip(rows, column, strict=True))]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = ours(task, tmp_path / "model", data, tmp_path / "run")

    read = [tokenizer(row["text"]) | {"labels": label} for row, label in zip(rows, wanted, strict=True)]
    losses: list[float] = []
    trainer = watched(Trainer, sizes(ROWS), losses)(
        model=AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", attn_implementation="sdpa"),
        args=arguments(TrainingArguments, tmp_path / "theirs"),
        train_dataset=in_order(read),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    assert_alike(found, losses)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small language model whose template marks answers."""
    folder = tmp_path_factory.mktemp("language")
    tokenizer = load_tokenizer(resolve(str(FOLDER / "chats" / "config.json")))
    tokenizer.chat_template = GENERATION
    torch.manual_seed(5)
    shape = json.loads((FOLDER / "chats" / "config.json").read_text("utf-8"))
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", ["messages", "prompt"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_trl_has_the_same_losses(language: Path, form: str, packed: bool, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'bigqa[peers]'")
    from datasets import Dataset

    chats = [row["messages"] for row, _ in read_table(FOLDER / "chats" / "train.jsonl")][:ROWS]
    rows: list[dict[str, Any]] = [{"messages": one} for one in chats]
    if form == "prompt":
        rows = [{"prompt": one[0]["content"] + " ", "completion": one[1]["content"]} for one in chats]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    found = ours("lm", language, data, tmp_path / "run")

    losses: list[float] = []
    only = {"assistant_only_loss": True} if form == "messages" else {"completion_only_loss": True}
    trainer = watched(trl.SFTTrainer, sizes(ROWS), losses)(
        model=LlamaForCausalLM.from_pretrained(language, attn_implementation="sdpa"),
        args=arguments(trl.SFTConfig, tmp_path / "theirs", padding_free=packed, max_length=None, bf16=False,
                       gradient_checkpointing=False, packing=False, **only),
        train_dataset=Dataset.from_list(in_order(rows)),
        processing_class=load_tokenizer(resolve(str(language))),
    )  # fmt: skip
    trainer.train()
    assert_alike(found, losses)
