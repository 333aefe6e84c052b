"""What a run began with is what it goes on with: what changed in between is refused by name, versions are said."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Done, here, train_here
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertForQuestionAnswering

from bigqa.models.sources import load, load_config, load_tokenizer, resolve
from bigqa.run import origin
from bigqa.run.folder import settings_from
from bigqa.run.origin import weights_digest
from bigqa.sample import FOLDER
from bigqa.settings import read_settings

WORDS = (
    "--max-steps", "2", "--save-every", "1", "--limit", "8", "--seq-len", "64", "--doc-stride", "16",
    "--max-query-length", "24", "--global-batch", "4", "--no-check", "--device", "cpu", "--precision", "fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with model, tokenizer, data and a run of them that has ended."""
    folder = tmp_path_factory.mktemp("world")
    config = AutoConfig.for_model(
        "bert", vocab_size=431, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(1)
    BertForQuestionAnswering(config).save_pretrained(folder / "model")
    load_tokenizer(resolve("tiny")).save_pretrained(folder / "model")
    for name in ("train", "dev"):
        data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        (folder / f"{name}.json").write_text(json.dumps({"data": data["data"][:3]}), encoding="utf-8")
    files = ("--train-file", folder / "train.json", "--dev-file", folder / "dev.json")
    done = train_here("--model", folder / "model", *files, "--out", folder / "run", *WORDS)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Iterator[Path]:
    """Return the same folder, put back as it was afterwards."""
    kept = Path(shutil.copytree(made, tmp_path / "kept"))
    yield made
    shutil.rmtree(made)
    shutil.copytree(kept, made)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def go_on(world: Path, *words: str | Path) -> Done:
    return train_here("--resume", world / "run", *words)


def assert_refused(world: Path, *texts: str, words: tuple[str | Path, ...] = ()) -> None:
    before = {file: file.read_bytes() for file in (world / "run").rglob("*.json")}
    done = go_on(world, *words)
    assert done.returncode in (1, 2)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("bigqa: ")
    assert all(text in line for text in texts), line
    assert {file: file.read_bytes() for file in (world / "run").rglob("*.json")} == before


def test_digests_lie_in_config_checkpoints_and_report(made: Path) -> None:
    found = json.loads((made / "run" / "config.json").read_text(encoding="utf-8"))["origin"]
    assert all(found[name] for name in ("train_file", "dev_file", "config", "tokenizer", "weights"))
    assert found["recipe"]["max_steps"] == 2
    assert set(found["versions"]) >= {"bigqa", "torch", "transformers", "tokenizers", "code"}
    for file in (made / "run" / "checkpoints").glob("*/state.json"):
        assert json.loads(file.read_text(encoding="utf-8"))["settings"]["origin"] == found
    log = (made / "run" / "log.txt").read_text(encoding="utf-8")
    assert "begun with" not in log


def test_a_run_goes_on_with_the_same(world: Path) -> None:
    shutil.rmtree(world / "run" / "checkpoints" / "step-00000002")
    done = go_on(world)
    assert done.returncode == 0, done.stderr
    assert "going on from step 1" in done.stdout
    assert "begun with" not in done.stdout


CHANGES: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "a word of the training data": ("train.json", lambda data: data["data"].pop(), "the training data"),
    "white space of the training data": ("train.json", lambda _: None, "the training data"),
    "the dev file": ("dev.json", lambda data: data["data"].pop(), "the data that it is scored on"),
    "the model's activation": ("model/config.json", lambda now: now.update(hidden_act="relu"), "configuration"),
    "the model's dropout": ("model/config.json", lambda now: now.update(hidden_dropout_prob=0.2), "configuration"),
    "the tokenizer's settings": (
        "model/tokenizer_config.json",
        lambda now: now.update(do_lower_case=True),
        "tokenizer",
    ),
    "the learning rate": ("run/config.json", lambda now: now.update(lr=1e-3), "lr 0.001 and not 5e-05"),
    "the number of steps": ("run/config.json", lambda now: now.update(max_steps=9), "max_steps 9 and not 2"),
    "the seed": ("run/config.json", lambda now: now.update(seed=7), "seed 7 and not 42"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_refused_by_name(world: Path, name: str) -> None:
    file, change, named = CHANGES[name]
    if name.startswith("white"):
        (world / file).write_text((world / file).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    else:
        edit(world / file, change)
    assert_refused(world, "cannot go on", named, "is not what it began with")


@pytest.mark.parametrize("where", ["first", "last"])
def test_one_weight_that_changed_is_refused(world: Path, where: str) -> None:
    state = load_file(world / "model" / "model.safetensors")
    name = min(state) if where == "first" else max(state)
    state[name].view(-1)[0] += 1e-3
    save_file(state, world / "model" / "model.safetensors", metadata={"format": "pt"})
    assert_refused(world, "the model's weights")


def test_a_checkpoint_of_another_run_is_refused(world: Path) -> None:
    """Both files were changed by hand, and agree; the sealed checkpoint does not."""

    def change(now: Any) -> None:
        now["lr"] = now["origin"]["recipe"]["lr"] = 1e-3

    edit(world / "run" / "config.json", change)
    done = go_on(world)
    assert done.returncode == 1
    assert "step-00000002 is of another recipe: lr 5e-05, and config.json says 0.001" in done.stderr


def test_the_same_in_another_place_and_form_is_the_same(world: Path) -> None:
    other = world / "elsewhere"
    shutil.copytree(world / "model", other / "model")
    (world / "model").rename(world / "gone")
    shutil.move(world / "train.json", other / "questions.json")
    state = load_file(other / "model" / "model.safetensors")
    torch.save(state, other / "model" / "pytorch_model.bin")
    (other / "model" / "model.safetensors").unlink()
    done = go_on(world, "--model", other / "model", "--train-file", other / "questions.json")
    assert done.returncode == 0, done.stderr
    assert read_settings(world / "run" / "config.json").train_file == other / "questions.json"
    assert go_on(world).returncode == 0


def test_another_place_must_hold_the_same(world: Path) -> None:
    words = ("--train-file", FOLDER / "train.json")
    assert_refused(world, "the training data", words=words)
    edit(world / "run" / "config.json", lambda now: now.pop("origin"))
    assert_refused(world, "--train-file cannot be changed", "not known", words=words)


def test_a_dev_file_may_be_another_where_it_is_named(world: Path) -> None:
    edit(world / "dev.json", lambda data: data["data"].pop())
    done = go_on(world, "--dev-file", world / "dev.json")
    assert done.returncode == 0, done.stderr
    assert go_on(world).returncode == 0


def test_other_versions_are_said_and_the_first_ones_kept(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "code", lambda: "123abc")
    begun = read_settings(world / "run" / "config.json").origin
    edit(world / "run" / "config.json", lambda now: now["origin"]["versions"].update(torch="1.0", peft="0.1"))
    done = go_on(world)
    assert done.returncode == 0, done.stderr
    assert begun is not None
    [line] = [one for one in done.stdout.splitlines() if one.startswith("begun with")]
    assert f"code {begun.versions['code']}" in line
    assert "torch 1.0; going on with code 123abc" in line
    now = read_settings(world / "run" / "config.json").origin
    assert now is not None
    assert now.versions["torch"] == "1.0"
    assert line in (world / "run" / "log.txt").read_text(encoding="utf-8")


def test_a_run_of_an_older_bigqa_goes_on_and_is_known_from_then_on(world: Path) -> None:
    edit(world / "run" / "config.json", lambda now: now.pop("origin"))
    assert go_on(world).returncode == 0
    edit(world / "train.json", lambda data: data["data"].pop())
    assert_refused(world, "the training data")


def test_weights_of_a_new_head_are_not_the_checkpoints(world: Path) -> None:
    state = {name: one for name, one in load_file(world / "model" / "model.safetensors").items() if "qa_" not in name}
    save_file(state, world / "model" / "model.safetensors", metadata={"format": "pt"})
    source = resolve(str(world / "model"))
    one, other = (load(source, load_config(source), seed=seed) for seed in (1, 2))
    assert not torch.equal(one.model.qa_outputs.weight, other.model.qa_outputs.weight)
    assert weights_digest(one) == weights_digest(other)
    with torch.no_grad():
        one.model.bert.embeddings.word_embeddings.weight[0, 0] += 1
    assert weights_digest(one) != weights_digest(other)


def test_predicting_with_weights_that_are_partly_missing_answers_nothing(world: Path) -> None:
    state = load_file(world / "run" / "model" / "model.safetensors")
    name = next(one for one in state if "attention.self.key.weight" in one)
    save_file({key: one for key, one in state.items() if key != name}, world / "run" / "model" / "model.safetensors")
    done = here("predict", world / "run" / "model", world / "dev.json", world / "answers.json")
    assert done.returncode == 1
    assert f"the weights lack {name}" in done.stderr
    assert not (world / "answers.json").exists()


def test_a_fresh_run_knows_nothing_before_it_reads(made: Path) -> None:
    options = {"model": "tiny", "train_file": made / "train.json", "out": made / "new"}
    assert settings_from(options, None).origin is None
