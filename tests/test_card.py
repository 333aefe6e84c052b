"""What a run hands over beside the weights: a model card, an adapter that PEFT loads, and a repository of the hub."""

import base64
import json
import re
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from commands import here, train_here
from safetensors.torch import load_file
from tables import write_tsv
from transformers import AutoModelForSequenceClassification

from bigqa.language import VARIABLE
from bigqa.models.sources import load_config, load_model, load_tokenizer, resolve
from bigqa.run import card, folder, launcher
from bigqa.run.card import command
from bigqa.settings import make_settings
from bigqa.strategy import STRATEGIES
from bigqa.tasks.heads import CLASSES

REPOSITORY = "someone/comments"


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a commit wants: files come within it, large ones by LFS before it."""

    files: dict[str, bytes]
    lfs: dict[str, bytes]
    known: bool

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _give(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _address(self) -> str:
        host, port = self.server.server_address[:2]
        return f"http://{host!s}:{port}"

    def do_GET(self) -> None:
        if "whoami" in self.path:
            self._give(
                {"name": "someone", "type": "user"} if self.known else {"error": "?"}, 200 if self.known else 401
            )
        else:
            self._give({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        self.lfs[self.path.rpartition("/")[2]] = self._body()
        self._give({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/validate-yaml"):
            self._give({"errors": [], "warnings": []})
        elif self.path.endswith("/repos/create"):
            self._give({"url": f"{self._address()}/{REPOSITORY}"})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            kinds = {one["path"]: "lfs" if one["path"].endswith(".safetensors") else "regular" for one in asked}
            self._give(
                {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in kinds.items()]}
            )
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": oid, "size": size, "actions": {"upload": {"href": f"{self._address()}/lfs/{oid}"}}}
                for oid, size in ((one["oid"], one["size"]) for one in json.loads(body)["objects"])
            ]
            self._give({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    self.files[line["value"]["path"]] = self.lfs[line["value"]["oid"]]
            address = f"{self._address()}/{REPOSITORY}/commit/1"
            self._give({"commitUrl": address, "commitOid": "1" * 40, "pullRequestUrl": None})
        else:
            self._give({"error": "not found"}, 404)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"files": {}, "lfs": {}, "known": True})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("comments")
        patch.setenv("BIGQA_CACHE", str(place / "cache"))
        yield write_tsv(place / "comments.tsv", 24)


def run(data: Path, out: Path, *more: Any) -> Any:
    words = ["--task", "classify", "--model", "tiny", "--train-file", data, "--dev-file", data, "--out", out]
    words += ["--device", "cpu", "--precision", "fp32", "--seq-len", "32", "--max-steps", "2", "--global-batch", "8"]
    return train_here(*words, "--no-check", *more)


def test_the_result_tells_what_it_is_and_goes_to_the_hub(data: Path, tmp_path: Path, hub: type[Hub]) -> None:
    out = tmp_path / "run"
    done = run(data, out, "--push-to-hub", REPOSITORY, "--class-weights", "balanced")
    assert done.returncode == 0 and "on the hub: http://127.0.0.1" in done.stdout, done.stderr
    here = {path.name: path.read_bytes() for path in (out / "model").iterdir()}
    assert hub.files == here and hub.lfs  # weights by LFS
    text = (out / "model" / "README.md").read_text("utf-8")
    head, body = text.split("---\n")[1:]
    assert yaml.safe_load(head)["pipeline_tag"] == "text-classification"
    report = json.loads((out / "report.json").read_text("utf-8"))
    digest = report["settings"]["origin"]["train_file"]
    for said in (
        f"| train file | comments.tsv, blake2b {digest} |", "| total | 24 |", "| global_batch | 8 |",
        "| precision | fp32 |", f"macro F1 {report['scores']['macro_f1']:.2f}", "--class-weights balanced",
    ):  # fmt: skip
        assert said in body, said
    assert str(tmp_path) not in text and str(data.parent) not in text


def test_a_card_is_in_the_language_of_who_ran_it(data: Path, tmp_path: Path) -> None:
    with patch.dict("os.environ", {VARIABLE: "ko"}):
        done = run(data, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    _, head, body = text.split("---\n")
    assert yaml.safe_load(head) == {
        "library_name": "transformers", "pipeline_tag": "text-classification", "tags": ["bigqa"],
    }  # fmt: skip
    prose = [line for line in body.split("```")[0].splitlines() if re.search("[A-Za-z가-힣]", line)]
    settings = {*card.RECIPE, *json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))["scores"]}
    told = [line for line in prose if line.strip("| ").split(" |")[0] not in settings]
    assert len(told) > 15 and [line for line in told if not re.search("[가-힣]", line)] == []
    assert "| global_batch | 8 |" in body and shlex.split(body.split("```")[1])[:2] == ["bigqa", "train"]


def test_who_is_not_known_to_the_hub_is_told_before_training(data: Path, tmp_path: Path, hub: type[Hub]) -> None:
    hub.known = False
    done = run(data, tmp_path / "run", "--push-to-hub", REPOSITORY)
    assert done.returncode == 1 and "the hub does not let you in" in done.stderr and "hf auth login" in done.stderr
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("model"))
    done = run(data, tmp_path / "run", "--push-to-hub", "a/b/c")
    assert done.returncode == 2 and "--push-to-hub a/b/c" in done.stderr and done.stderr.count("\n") == 1


def test_the_cards_command_makes_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line's own parser reads the command back."""
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / name).write_text("text\tlabel\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    asked: dict[str, Any] = {"task": "classify", "lr": 0.001, "keep_best": True, "eval_every": 0, "check": False,
                             "layer_decay": 0.9, "task_options": {"text": "a b"}, "max_steps": 3, "seq_len": 64,
                             "strategy": STRATEGIES["lora"], "precision": "fp32", "device": "cpu"}  # fmt: skip
    first = make_settings(model="tiny", train_file=tmp_path / "a.tsv", dev_file=tmp_path / "b.tsv", out="RUN", **asked)
    read: list[Any] = []
    take = folder.settings_from
    monkeypatch.setattr(folder, "settings_from", lambda *given: read.append(take(*given)) or read[-1])
    monkeypatch.setattr(launcher, "launch", lambda *_, **__: 0)
    words = shlex.split(command(first))
    assert words[0] == "bigqa" and here(*words[1:]).returncode == 0
    [second] = read
    recipe = {"lr", "eval_every", "keep_best", "check", "layer_decay", "max_steps", "task", "task_options", "seq_len",
              "global_batch", "epochs", "precision", "seed", "model", "warmup"}  # fmt: skip
    assert {name: getattr(first, name) for name in recipe} == {name: getattr(second, name) for name in recipe}
    assert second.train_file == Path("a.tsv") and second.strategy.adapters == "lora"


def test_peft_loads_the_adapter_beside_its_model(data: Path, tmp_path: Path) -> None:
    """The base model with the adapter says what the merged model says."""
    peft = pytest.importorskip("peft")
    source, base = resolve("tiny"), tmp_path / "base"
    config = load_config(source, CLASSES)
    config.update({"id2label": {0: "blame", 1: "fact", 2: "praise"}, "problem_type": "single_label_classification"})
    load_model(source, config, head=CLASSES).save_pretrained(base)
    load_tokenizer(source).save_pretrained(base)
    out = tmp_path / "run"
    done = run(data, out, "--model", base, "--strategy", "lora", "--lr", "1e-2")
    assert done.returncode == 0, done.stderr
    merged = AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    plain = AutoModelForSequenceClassification.from_pretrained(base).eval()
    ids = torch.tensor([[2, 40, 41, 42, 3]])
    with torch.no_grad():
        wanted, before = merged(input_ids=ids).logits, plain(input_ids=ids).logits
        adapted = peft.PeftModel.from_pretrained(plain, out / "adapter").eval()
        found = adapted(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (before - wanted).abs().max() > 1e-3
    assert len(load_file(out / "adapter" / "adapter_model.safetensors")) > 30
