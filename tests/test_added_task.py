"""A task that nobody knew of: made here, and trained, scored and asked as any other."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import here, train_here
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from bigqa.tasks import registry
from bigqa.tasks.base import Ask, Batch, Counted, Row, Scored, TaskKind, Tokens
from bigqa.tasks.heads import CLASSES, Head
from bigqa.tasks.rows import Rows
from bigqa.tasks.sequences import encoded, tokens_of
from bigqa.tasks.whole_windows import SequenceTask

LINES = ["맑은 봄 하늘", "전쟁", "도시의 인구 조사", "인구"] * 4


class Longer(SequenceTask):
    """Learns whether a text has more than one word."""

    def targets(self, rows: list[Row]) -> Batch:
        import torch

        return {"long": torch.tensor([int(row["long"]) for row in rows])} if "long" in rows[0] else {}

    def example_targets(self, micro_batch: int, seq_len: int) -> Batch:
        import torch

        return {"long": torch.zeros(micro_batch, dtype=torch.long)}

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        (logits,) = self.logits(model, batch)
        return functional.cross_entropy(logits, batch["long"], reduction="sum")


class Options(BaseModel):
    seq_len: int = 32


class Words(TaskKind[Options]):
    """One text a line."""

    name = "words"
    head = Head(CLASSES.auto_class, CLASSES.words, "NoSuchEnding", labels=2)
    watched = "right"
    lost_words = ("lines", "lost")
    columns = ("input_ids", "token_type_ids", "long")
    options_type = Options

    def check_file(self, file: Path, options: Options, config: Any) -> None:
        file.read_text(encoding="utf-8")

    def features(self, file: Path, tokenizer: Any, options: Options, config: Any, **_: Any) -> Rows:
        lines = file.read_text(encoding="utf-8").splitlines()
        found = [tokens_of(one) for one in encoded(lines, tokenizer, options.seq_len)]
        columns = {name: [one[name] for one in found] for name in found[0]}
        return Rows.of_columns(columns | {"long": [int(" " in line) for line in lines]})

    def task(self, model: Any, options: Options, tokens: Tokens, config: Any = None) -> Any:
        return Longer(tokens.pad, True, tokens.first_position)

    def full_rows(self, count: int, seq_len: int, vocabulary_size: int) -> Rows:
        raise NotImplementedError

    def predict(self, file: Path, tokenizer: Any, options: Options, config: Any, ask: Ask, task: Any) -> Iterator[Row]:
        rows = self.features(file, tokenizer, options, config).only(self.columns[:2])
        for _, logits in ask(task, rows, rows.lengths("input_ids")):
            yield {"long": bool(logits[1] > logits[0])}

    def score(
        self, file: Path, tokenizer: Any, options: Options, config: Any, ask: Ask, task: Any, limit: int | None = None
    ) -> Scored:
        wanted = [" " in line for line in file.read_text(encoding="utf-8").splitlines()]
        found = [one["long"] for one in self.predict(file, tokenizer, options, config, ask, task)]
        right = sum(one == other for one, other in zip(wanted, found, strict=True))
        return Scored({"right": right}, {}, {})

    def headline(self, scores: Mapping[str, Any]) -> str:
        return f"{scores['right']} lines are right"

    def count(self, file: Path, tokenizer: Any, options: Options) -> Counted:
        return Counted(len(LINES), {})


def test_a_task_added_in_a_test_is_planned_trained_scored_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_added", {})
    registry.add(Words())
    data, out = tmp_path / "lines", tmp_path / "run"
    data.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    plan = tmp_path / "plan.json"
    words = ["--strategy", "cpu-fp32", "--gpu", "none", "--seq-len", "32", "--global-batch", "8"]
    done = here("probe", "tiny", "--task", "words", "--train-file", data, *words, "--out", plan)
    assert done.returncode == 0, done.stderr
    files = ["--train-file", data, "--dev-file", data, "--out", out]
    done = train_here("--plan", plan, *files, "--epochs", "10", "--lr", "1e-3", "--dropout", "0", "--no-check")
    assert done.returncode == 0, done.stderr
    assert f"{len(LINES)} lines are right" in done.stdout
    assert json.loads((out / "config.json").read_text())["task"] == "words"
    done = here("predict", out / "model", data, tmp_path / "out.jsonl")
    assert done.returncode == 0 and f"{len(LINES)} texts" in done.stdout, done.stderr
    found = [json.loads(line)["long"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == [" " in line for line in LINES]


def test_nothing_outside_of_tasks_asks_which_task_it_is() -> None:
    root = Path(registry.__file__).parents[1]
    names = [f'"{name}"' for name in registry.names()]
    for file in root.rglob("*.py"):
        if "tasks" in file.relative_to(root).parts or "nullgpu" in file.parts:
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            told = [name for name in names if f"== {name}" in line or f"!= {name}" in line]
            assert not told, f"{file}: {line}"
