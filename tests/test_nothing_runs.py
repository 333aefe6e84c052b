"""Nothing of a folder is executed or unpickled, and nobody is asked whether it may be."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import here, train_here
from transformers import BertConfig

from bigqa import cli, console
from bigqa.errors import BigqaError, as_a_line
from bigqa.models.sources import load, load_config, load_tokenizer, resolve
from bigqa.sample import FOLDER
from bigqa.tasks.squad import read_questions


class Touches:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """What is there only where something was run."""
    return tmp_path / "it-was-run"


def model(folder: Path, **more: Any) -> Path:
    folder.mkdir()
    values = json.loads(BertConfig.from_pretrained(FOLDER).to_json_string(use_diff=False))
    (folder / "config.json").write_text(json.dumps(values | more))
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, folder)
    return folder


def test_a_pickle_in_the_place_of_weights_is_not_loaded(tmp_path: Path, proof: Path) -> None:
    folder = model(tmp_path / "model")
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Touches(proof)))
    source = resolve(str(folder))
    with pytest.raises(BigqaError, match="cannot be loaded: it is a pickle of more than tensors"):
        load(source, load_config(source))
    (tmp_path / "data.json").write_bytes(pickle.dumps(Touches(proof)))
    with pytest.raises(BigqaError, match="a Python pickle, which could run code"):
        read_questions(tmp_path / "data.json", need_answers=True)
    assert not proof.exists()


def code(folder: Path, proof: Path, kind: str) -> None:
    text = f"from pathlib import Path\nPath({str(proof)!r}).touch()\nclass Own:\n    model_type = 'own'\n"
    (folder / f"{kind}_own.py").write_text(text)


@pytest.mark.parametrize("command", ["train", "predict", "probe"])
def test_code_of_its_own_is_refused_in_a_line_and_not_asked_about(
    tmp_path: Path, proof: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    folder = model(tmp_path / "model", model_type="own", auto_map={"AutoConfig": "configuration_own.Own"})
    code(folder, proof, "configuration")
    words: dict[str, tuple[str | Path, ...]] = {
        "train": ("--model", folder, "--train-file", FOLDER / "dev.json", "--out", tmp_path / "run"),
        "predict": ("predict", folder, FOLDER / "dev.json", tmp_path / "out.json"),
        "probe": ("probe", folder),
    }
    done = (train_here if command == "train" else here)(*words[command])
    assert done.returncode == 1 and "code of its own, which bigqa never runs" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not proof.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_known_model_with_code_beside_it_is_the_librarys(tmp_path: Path, proof: Path) -> None:
    folder = model(tmp_path / "model", auto_map={"AutoConfig": "configuration_own.Own"})
    (folder / "vocab.txt").unlink()
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    code(folder, proof, "configuration")
    code(folder, proof, "tokenization")
    source = resolve(str(folder))
    assert type(load_config(source)) is BertConfig
    with pytest.raises(BigqaError):
        load_tokenizer(source)
    assert not proof.exists()


def test_an_error_that_nobody_foresaw_is_a_line_and_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def app(**_: Any) -> None:
        raise TypeError("first\nsecond")

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(console.tempfile, "tempdir", str(tmp_path))
    done = here()
    [file] = tmp_path.iterdir()
    assert done.returncode == 1
    assert done.stderr == f"bigqa: unforeseen TypeError: first (where, is in {file}; BIGQA_DEBUG=1 shows it)\n"
    assert "Traceback" in file.read_text() and "second" in file.read_text()


@pytest.mark.parametrize("error", [MemoryError("no more"), RuntimeError("can't start new thread")], ids=str)
def test_a_lack_of_memory_before_a_run_is_none_that_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def app(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    done = here()
    assert done.returncode == 1
    assert done.stderr == f"bigqa: the host's memory ran out, or what a process may have of it: {error}\n"


def test_what_a_library_raises_is_a_line_whatever_its_kind() -> None:
    class PanicException(BaseException):
        """As libraries in Rust raise it."""

    for error in (AttributeError("no x"), PanicException("no x"), SystemError("no x\nmore")):
        with pytest.raises(BigqaError, match=r"^the file: no x$"), as_a_line("the file"):
            raise error
    for error in (KeyboardInterrupt(), MemoryError(), SystemExit(3)):
        with pytest.raises(type(error)), as_a_line("the file"):
            raise error
