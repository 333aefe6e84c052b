"""Classification and scores: what is learned of data, losses, figures, and whole runs on tables of our own."""

import importlib.util
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import here, train_here
from tables import KINDS, rows, write_jsonl, write_tsv
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

from bigqa.engine.attention import kernels
from bigqa.engine.attention.packing import can_pack
from bigqa.errors import BigqaError
from bigqa.tasks.base import Tokens
from bigqa.tasks.classify.answers import given, probabilities
from bigqa.tasks.classify.scoring import best_threshold
from bigqa.tasks.classify.task import Classification
from bigqa.tasks.registry import kind_of
from bigqa.tasks.score.kind import pearson, spearman
from bigqa.tasks.streams import bursts_of

HAS_SCIKIT_LEARN = importlib.util.find_spec("sklearn") is not None
WORDS = ["--model", "tiny", "--device", "cpu", "--precision", "fp32", "--seq-len", "32", "--global-batch", "8",
         "--micro-batch", "8", "--dropout", "0", "--lr", "1e-3", "--no-check"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned which words tell a label."""
    folder = tmp_path_factory.mktemp("comments")
    train = write_tsv(folder / "train.tsv", 48)
    done = train_here(*WORDS, "--task", "classify", "--train-file", train, "--epochs", "12", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_labels_are_learned_and_kept_in_the_models_config(trained: Path) -> None:
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["id2label"] == dict(zip("012", sorted(KINDS), strict=True))
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert json.loads((trained / "model" / "bigqa.json").read_text())["task"] == "classify"


def test_predict_writes_the_labels_that_the_librarys_pipeline_gives(trained: Path, tmp_path: Path) -> None:
    texts = [text for text, _ in rows(5)]
    data = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    done = here("predict", trained / "model", data, tmp_path / "out.jsonl", "--precision", "fp32")
    assert done.returncode == 0 and "5 texts" in done.stdout, done.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["label"] for one in found] == [label for _, label in rows(5)]
    expected = pipeline("text-classification", str(trained / "model"), top_k=None)(texts)
    for one, shares in zip(found, expected, strict=True):
        for share in shares:
            assert one["probabilities"][share["label"]] == pytest.approx(share["score"], abs=1e-5)


def test_lines_are_labelled_as_they_come(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [*(text for text, _ in rows(4)), ""]
    stream = io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
    monkeypatch.setattr("sys.stdin", stream)
    done = here("predict", trained / "model", "-")
    assert done.returncode == 0, done.stderr
    found = [line.split("\t") for line in done.stdout.splitlines()]
    assert [one[0] for one in found[:4]] == [label for _, label in rows(4)]
    assert [one[2] for one in found] == lines and all(0 < float(one[1]) <= 1 for one in found)


def test_lines_that_are_there_are_taken_together_and_none_is_waited_for() -> None:
    wait, said = io.StringIO("a\nb\nc\n"), []
    for burst in bursts_of(iter(wait)):
        said += burst
    assert said == ["a\n", "b\n", "c\n"]

    def fails() -> Iterator[str]:
        yield "a"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(bursts_of(fails()))


@pytest.mark.skipif(not HAS_SCIKIT_LEARN, reason="scikit-learn is not here")
def test_a_dev_file_is_scored_and_drawn(tmp_path: Path) -> None:
    train, dev = write_tsv(tmp_path / "train.tsv", 24), write_tsv(tmp_path / "dev.tsv", 9)
    out = tmp_path / "run"
    more = ["--train-file", train, "--dev-file", dev, "--epochs", "6", "--class-weights", "balanced", "--out", out]
    done = train_here(*WORDS, "--task", "classify", *more)
    assert done.returncode == 0 and "macro F1" in done.stdout, done.stderr
    scores = json.loads((out / "report.json").read_text())["scores"]
    given = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    right = sum(one["wanted"] == one["given"] for one in given)
    assert scores["total"] == len(given) == 9 and scores["accuracy"] == pytest.approx(100 * right / 9)
    assert sum(map(sum, scores["confusion"])) == 9 and (out / "confusion.png").read_bytes()[1:4] == b"PNG"


def test_several_labels_at_once_and_yes_or_no(tmp_path: Path) -> None:
    values: list[dict[str, object]] = [{"text": text, "labels": [label, "all"]} for text, label in rows(12)]
    path = write_jsonl(tmp_path / "several.jsonl", values)
    kind = kind_of("classify")
    facts = kind.learn(path, kind.options({}))
    assert facts["problem_type"] == "multi_label_classification" and facts["label_counts"] == [12, 4, 4, 4]
    config = AutoConfig.for_model("bert").from_dict({"model_type": "bert"} | facts)
    assert kind.task(None, kind.options({}), Tokens(0), config).several and config.num_labels == 4
    yes = write_jsonl(tmp_path / "yes.jsonl", [{"text": "가", "label": True}, {"text": "나", "label": False}])
    assert kind.learn(yes, kind.options({}))["id2label"] == {0: "False", 1: "True"}


REFUSED = {
    "has one label only, 'a'": [{"text": "가", "label": "a"}],
    "more than 1000 labels": [{"text": "가", "label": str(number)} for number in range(1002)],
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_learned_is_one_line(words: str, tmp_path: Path) -> None:
    kind = kind_of("classify")
    with pytest.raises(BigqaError, match=words):
        kind.learn(write_jsonl(tmp_path / "data.jsonl", REFUSED[words]), kind.options({}))


def test_a_label_that_was_not_trained_on_is_refused_before_training(tmp_path: Path) -> None:
    train = write_tsv(tmp_path / "train.tsv", 6)
    dev = write_jsonl(tmp_path / "dev.jsonl", [{"text": "가", "label": "new"}])
    out = tmp_path / "run"
    done = train_here(*WORDS, "--task", "classify", "--train-file", train, "--dev-file", dev, "--out", out)
    assert done.returncode == 1 and not out.exists()
    assert "new' is none of those trained on" in done.stderr or "scikit-learn" in done.stderr


def test_options_of_another_task_are_refused(tmp_path: Path) -> None:
    train = write_tsv(tmp_path / "train.tsv", 6)
    words = ["--train-file", train, "--out", tmp_path / "run"]
    done = train_here(*WORDS, *words, "--task", "score", "--class-weights", "balanced")
    assert done.returncode == 2 and "--class-weights is nothing to --task score" in done.stderr
    done = train_here(*WORDS, *words, "--task", "nothing")
    assert done.returncode == 2 and "no task nothing; choose one of" in done.stderr


def made(family: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, num_labels=3, **more,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("family", ["bert", "electra", "distilbert"])
def test_packed_windows_have_the_logits_and_gradients_of_padded_ones(family: str) -> None:
    more = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4} if family == "distilbert" else {}
    model = made(family, **more)
    lengths = [9, 30, 4, 17]
    generator = torch.Generator().manual_seed(0)
    data = [
        {"input_ids": torch.randint(4, 100, (length,), generator=generator).tolist(), "token_type_ids": [0] * length,
         "label": length % 3} for length in lengths
    ]  # fmt: skip
    task = Classification(0, family != "distilbert", num_labels=3)
    alone = torch.cat([model(input_ids=torch.tensor(row["input_ids"])[None]).logits for row in data])
    wanted = torch.nn.functional.cross_entropy(alone, torch.tensor([row["label"] for row in data]), reduction="sum")
    wanted.backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    if not kernels.use(model):
        pytest.skip("its attention is its own")
    assert can_pack(model, task, 32)
    for batch in (task.pack(data), task.collate(data)):
        model.zero_grad()
        loss = task.loss_sum(model, batch)
        loss.backward()
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(model.get_input_embeddings().weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_losses_are_torchs_own_with_weights_and_smoothing() -> None:
    logits, label = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])

    def loss(batch: Any, **more: Any) -> torch.Tensor:
        task = Classification(0, False, num_labels=3, **more)
        task.logits = lambda model, batch: (logits,)  # type: ignore[method-assign]
        return task.loss_sum(torch.nn.Identity(), batch)

    smooth = torch.log_softmax(logits, 1)
    wanted = -(0.9 * smooth[range(5), label] + 0.1 * smooth.mean(1)).sum()
    torch.testing.assert_close(loss({"label": label}, smoothing=0.1), wanted)
    weights = [1.0, 2.0, 0.5]
    wanted = -(torch.tensor(weights)[label] * smooth[range(5), label]).sum()
    torch.testing.assert_close(loss({"label": label}, weights=weights), wanted)
    several = torch.eye(3)[label]
    each = -(several * logits.sigmoid().log() * 2 + (1 - several) * (-logits).sigmoid().log())
    found = loss({"label": several}, several=True, weights=[2.0, 2.0, 2.0])
    torch.testing.assert_close(found, each.mean(1).sum())


def test_labels_are_given_from_their_thresholds_on() -> None:
    shares = probabilities(np.array([0.0, math.log(3.0), -20.0]), several=True)
    np.testing.assert_allclose(shares[:2], [0.5, 0.75])
    assert given(shares, "abc", None, several=True) == ["b", "a"]
    assert given(shares, "abc", {"a": 0.6}, several=True) == ["b"]
    yes = probabilities(np.array([0.0, math.log(3.0)]), several=False)
    np.testing.assert_allclose(yes, [0.25, 0.75])
    assert given(yes, "ny", {"y": 0.8}, several=False) == ["n"] and given(yes, "ny", None, several=False) == ["y"]


def test_the_best_threshold_is_that_of_a_search() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        truth, shares = random.integers(0, 2, 12), random.integers(0, 8, 12) / 8

        def f1(threshold: float, truth: Any = truth, shares: Any = shares) -> float:
            told = shares >= threshold
            total = told.sum() + truth.sum()
            return float(2 * (told & (truth == 1)).sum() / total) if total else 0.0

        found = best_threshold(truth, shares)
        assert f1(found) == pytest.approx(max(f1(one) for one in np.linspace(0, 1, 33)))


def test_correlations_are_those_of_the_definitions() -> None:
    one, other = np.array([1.0, 2.0, 2.0, 5.0, 9.0]), np.array([2.0, 1.0, 4.0, 4.0, 7.0])
    assert pearson(one, other) == pytest.approx(float(np.corrcoef(one, other)[0, 1]))
    ranks = np.array([1, 2.5, 2.5, 4, 5]), np.array([2, 1, 3.5, 3.5, 5])
    assert spearman(one, other) == pytest.approx(float(np.corrcoef(*ranks)[0, 1]))
    assert pearson(one, np.ones(5)) == 0.0


def test_scores_of_pairs_are_learned(tmp_path: Path) -> None:
    """A pair is alike where both are of one kind."""
    names = list(KINDS)
    values: list[dict[str, object]] = [
        {"sentence1": KINDS[names[a]], "sentence2": KINDS[names[b]], "score": 1.0 if a == b else 0.0}
        for a in range(3) for b in range(3)
    ]  # fmt: skip
    data, out = write_jsonl(tmp_path / "pairs.jsonl", values * 4), tmp_path / "run"
    files = ["--train-file", data, "--dev-file", data, "--out", out]
    done = train_here(*WORDS, "--task", "score", *files, "--epochs", "15")
    assert done.returncode == 0, done.stderr
    scores = json.loads((out / "report.json").read_text())["scores"]
    assert scores["pearson"] > 80 and f"Spearman {scores['spearman']:.2f} on 36 texts" in done.stdout
    done = here("predict", out / "model", data, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    found = [float(line.split("\t")[0]) for line in done.stdout.splitlines()]
    assert len(found) == 36 and found[0] > 0.5 > found[1]
    asked = pipeline("text-classification", str(out / "model"))
    pairs = [{"text": one["sentence1"], "text_pair": one["sentence2"]} for one in values]
    assert [one["score"] for one in map(asked, pairs)] == pytest.approx(found[:9], abs=1e-4)


def test_a_score_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    kind = kind_of("score")
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"sentence1": "가", "sentence2": "나", "score": "high"}])
    with pytest.raises(BigqaError, match="row 1: the score 'score' is 'high', not a number"):
        kind.learn(path, kind.options({}))


def test_probe_says_what_shorter_windows_cut(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "t.jsonl", [{"text": "봄 " * n, "label": str(n % 3)} for n in (20, 140, 140, 300)])
    done = here("probe", "tiny", "--task", "classify", "--train-file", train, "--strategy", "cpu", "--gpu", "none",
                "--seq-len", "256")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Of the texts 75.0% are cut at 128 tokens, 25.0% at 256." in done.stdout
