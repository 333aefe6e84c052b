"""The commands as a person types them: what they print, and how they refuse."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Done, bigqa, here, run, train_here
from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering

from bigqa.engine import inference
from bigqa.sample import FOLDER


def assert_one_line(done: Done, *texts: str, code: int = 1) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for text in texts:
        assert text in done.stderr


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of the sample's architecture, in Hugging Face form."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = BertConfig.from_pretrained(FOLDER)
    BertForQuestionAnswering(config).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    return folder


def test_help_names_the_commands() -> None:
    done = here("--help")
    assert done.returncode == 0
    for name in ("train", "predict", "evaluate", "data", "convert"):
        assert name in done.stdout


def test_predict_answers_every_question_with_text_of_its_context(model_folder: Path, tmp_path: Path) -> None:
    out, nbest = tmp_path / "answers.json", tmp_path / "nbest.json"
    done = here("predict", model_folder, FOLDER / "dev.json", out, "--nbest", nbest)
    assert done.returncode == 0, done.stderr
    answers = json.loads(out.read_text())
    candidates = json.loads(nbest.read_text())
    contexts = {
        question["id"]: paragraph["context"]
        for article in json.loads((FOLDER / "dev.json").read_text())["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    assert answers.keys() == contexts.keys() == candidates.keys()
    for name, answer in answers.items():
        assert answer in contexts[name]
        assert candidates[name][0]["text"] == answer
        probabilities = [candidate["probability"] for candidate in candidates[name]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1 + 1e-6


def test_evaluate_prints_the_official_fields(tmp_path: Path) -> None:
    gold = FOLDER / "dev.json"
    answers = {
        question["id"]: question["answers"][0]["text"]
        for article in json.loads(gold.read_text())["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    done = bigqa("evaluate", gold, tmp_path / "answers.json", "--json")
    scores = json.loads(done.stdout)
    assert (scores["exact_match"], scores["f1"], scores["total"]) == (100.0, 100.0, len(answers))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["train", "--help"], 0),
        (["evaluate", FOLDER / "dev.json", "no-such.json"], 1),
        (["train", "--model", "tiny", "--train-file", "no-such.json", "--out", "no-such"], 1),
        (["train", "--model", "tiny", "--train-file", FOLDER / "dev.json", "--out", "no-such", "--lr", "-1"], 2),
        (["probe", "tiny", "--tier", "7"], 2),
    ],
    ids=["version", "help", "evaluate", "no file", "wrong value", "usage"],
)
def test_what_needs_no_torch_imports_none(words: list[str | Path], code: int) -> None:
    done = run([sys.executable, "-X", "importtime", "-m", "bigqa.cli", *words])
    modules = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == code, done.stderr
    assert "bigqa.cli" in modules and not modules & {"torch", "transformers", "pyarrow", "accelerate"}


BAD_FILES = {
    "empty": (b"", "empty"),
    "cut": ((FOLDER / "dev.json").read_bytes()[:2000], "is cut short"),
    "not JSON": ("질문".encode(), "not JSON"),
    "not UTF-8": ('{"data": "질문"}'.encode("euc-kr"), "not UTF-8"),
    "schema": (b'{"rows": []}', "data"),
}


# One reader serves all commands: each kind with two, two with the others.
BAD_CASES = [(command, kind) for command in ("evaluate", "inspect") for kind in BAD_FILES]
BAD_CASES += [(command, kind) for command in ("predict", "train") for kind in ("cut", "not UTF-8")]


@pytest.mark.parametrize(("command", "kind"), BAD_CASES)
def test_a_bad_file_is_named_and_nothing_is_written(
    model_folder: Path, tmp_path: Path, kind: str, command: str
) -> None:
    content, text = BAD_FILES[kind]
    bad, out = tmp_path / "bad.json", tmp_path / "out"
    bad.write_bytes(content)
    words: dict[str, tuple[str | Path, ...]] = {
        "predict": ("predict", model_folder, bad, out),
        "evaluate": ("evaluate", bad, FOLDER / "dev.json"),
        "train": ("--model", "tiny", "--train-file", bad, "--out", out, "--strategy", "cpu-fp32"),
        "inspect": ("data", "inspect", bad, "tiny"),
    }
    start = train_here if command == "train" else here
    assert_one_line(start(*words[command]), text, str(bad))
    assert {path.name for path in tmp_path.iterdir()} == {"bad.json"}


def test_a_bad_file_is_named_once_by_the_processes_that_train(tmp_path: Path) -> None:
    """As a person sees it: a command, a process that it launches, and all the libraries that this one imports."""
    bad, out = tmp_path / "bad.json", tmp_path / "out"
    bad.write_bytes(BAD_FILES["cut"][0])
    words = ["train", "--model", "tiny", "--train-file", bad, "--out", out, "--strategy", "cpu-fp32"]
    assert_one_line(bigqa(*words), "is cut short", str(bad))
    assert not out.exists()


def test_a_missing_file_is_named(model_folder: Path, tmp_path: Path) -> None:
    assert_one_line(here("predict", model_folder, tmp_path / "none.json", tmp_path / "out"), "none.json")


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mlm"
    BertForMaskedLM(BertConfig.from_pretrained(FOLDER)).save_pretrained(folder)
    (folder / "vocab.txt").write_bytes((FOLDER / "vocab.txt").read_bytes())
    assert_one_line(here("predict", folder, FOLDER / "dev.json", tmp_path / "out"), "mlm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("bigqa.plan.probe.probe", ("probe", "tiny", "--gpu", "T4", "--out")),
        ("bigqa.plan.probe.probe", ("probe", "tiny", "--gpu", "T4", "--html")),
        ("bigqa.run.prediction.load_for_prediction", ("predict", "model", FOLDER / "dev.json")),
        ("bigqa.run.prediction.load_for_prediction", ("generate", "model", FOLDER / "dev.json")),
    ],
)
def test_what_cannot_be_written_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: tuple[str | Path, ...]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError(command)

    monkeypatch.setattr(command, never)
    (tmp_path / "file").touch()
    assert_one_line(here(*words, tmp_path), "it is a folder")
    assert_one_line(here(*words, tmp_path / "file" / "out"), "a part of that path is a file")


def test_a_traceback_is_shown_on_request(tmp_path: Path) -> None:
    done = bigqa("evaluate", tmp_path / "none.json", tmp_path / "none.json", BIGQA_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_memory_that_does_not_reach_for_one_window_is_a_line(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(inference, "_forward", never)
    done = here("predict", model_folder, FOLDER / "dev.json", tmp_path / "out", "--device", "cpu")
    assert_one_line(done, "out of memory (device) while predicting", "--device cpu")
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_named(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    out = tmp_path / "file" / "answers.json"
    assert_one_line(here("predict", model_folder, FOLDER / "dev.json", out), str(out))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    from bigqa.errors import BigqaError
    from bigqa.files import atomic_path

    with (
        pytest.raises(BigqaError, match="the disk is full"),
        atomic_path(tmp_path / "x"),
        open("/dev/full", "w", buffering=1) as full,
    ):
        full.write("x\n")
    assert not list(tmp_path.iterdir())


def test_an_unknown_metric_is_a_usage_error() -> None:
    done = here("evaluate", FOLDER / "dev.json", FOLDER / "dev.json", "--metric", "bleu")
    assert_one_line(done, "korquad1", "korquad2", code=2)
