"""Numbers out of range: every numeric option of the commands, and every field of the records."""

import inspect
import json
import os
import typing
import unicodedata
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from commands import here, train_here
from small_runs import options
from typer.models import ArgumentInfo

from bigqa.cli import app
from bigqa.console import _on_the_disk
from bigqa.errors import BigqaError, UsageError
from bigqa.plan.question import Question
from bigqa.ranges import RANGES, of_environment, option_of, size
from bigqa.rehearse.planned import read_planned
from bigqa.run.folder import begin, settings_from
from bigqa.settings import Rung, Settings, make_settings, read_settings
from bigqa.tasks.windows import Lengths

NO_NUMBERS = ("", " ", "nan", "inf", "-inf", "1e999", "four", "넷", "４", "٤", "²", "1_0", "0x10", "9" * 5000, "1,,2")
NO_SIZES = ("0GiB", "-1GiB", "1.2.3GiB", "4 GiB of it", "9999999TiB")
LISTS = ("--seq-len", "--micro-batch", "--caps")
"""Of `bench`: nothing at all is the default there."""


class Option(NamedTuple):
    """An option of a command."""

    words: tuple[str, ...]
    """That name the command."""
    name: str
    kinds: set[Any]
    """Of its values, by their annotation."""
    read: Any
    """What reads it, with the name of its range; none where typer does."""
    is_argument: bool


def options_of(group: typer.Typer, words: tuple[str, ...] = ()) -> Iterator[Option]:
    """Yield every option and argument of every command."""
    for command in group.registered_commands:
        assert command.callback is not None
        own = command.name or command.callback.__name__
        for name, hint in typing.get_type_hints(inspect.unwrap(command.callback), include_extras=True).items():
            kind, *more = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
            declared = next(iter(more[0].param_decls or ()), option_of(name)) if more else name
            read = more[0].parser if more else None
            is_argument = bool(more) and isinstance(more[0], ArgumentInfo)
            declared = (more[0].metavar or declared) if is_argument else declared
            yield Option((*words, own), declared, {kind, *typing.get_args(kind)}, read, is_argument)
    for below in group.registered_groups:
        assert below.typer_instance is not None and below.name is not None
        yield from options_of(below.typer_instance, (*words, below.name))


OPTIONS = [*options_of(app)]
NUMERIC = [option for option in OPTIONS if option.read is not None]


def out_of(name: str) -> tuple[str, ...]:
    """Return what is no number of a range: what lies outside of it, and what is none at all."""
    if name == "memory":
        return (*NO_SIZES, *NO_NUMBERS)
    found = RANGES[name]
    below = found.low if found.low_open else found.low - 1
    above = found.high if found.high_open else found.high + 1
    return (str(below), str(above), str(-(10**30)), str(10**30), *(("2.5",) if found.whole else ()), *NO_NUMBERS)


def test_every_numeric_option_has_a_range() -> None:
    assert [option for option in OPTIONS if option.kinds & {int, float} and option.read is None] == []
    names = {(option.words, option.name) for option in NUMERIC}
    assert {(("train",), "--num-processes"), (("data", "inspect"), "--seq-len"), (("bench",), "--caps")} <= names
    assert len(names) >= 36


@pytest.mark.parametrize("option", NUMERIC, ids=lambda option: f"{option.words[-1]}{option.name}")
def test_a_number_out_of_range_is_a_usage_error(option: Option) -> None:
    """By what reads it; and the first of them by the whole command."""
    first, *more = out_of(option.read.range_of)
    given = [first] if option.is_argument else [option.name, first]
    done = here(*option.words, *given)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"bigqa: {option.name}: "), done.stderr
    for bad in more:
        if bad or option.name not in LISTS:
            with pytest.raises(UsageError, match=f"^{option.name}: ") as refused:
                option.read(bad)
            assert len(str(refused.value)) < 200, bad


def test_the_ends_of_a_range_belong_to_it() -> None:
    for option in NUMERIC:
        found = RANGES[option.read.range_of]
        unit = "s" if option.read.range_of == "until" else ""
        for end, is_open in ((found.low, found.low_open), (found.high, found.high_open)):
            if is_open:
                with pytest.raises(UsageError):
                    option.read(f"{end}{unit}")
            else:
                assert str(option.read(f"{end}{unit}")).strip("(,)") in (str(end), str(float(end)))


def test_every_number_of_a_record_has_a_range() -> None:
    for record in (Settings, Rung, Lengths):
        for name, field in record.model_fields.items():
            kinds = {field.annotation, *typing.get_args(field.annotation)}
            assert name in RANGES or not kinds & {int, float}, f"{record.__name__}.{name}"
    for one in fields(Question):
        assert one.name in RANGES or "int" not in str(one.type), one.name


def test_what_a_file_or_a_program_gives_is_within_the_same_ranges(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begin(make_settings(**options(run)), {})
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    for name, value in {"lr": float("nan"), "epochs": float("inf"), "micro_batch": 0, "keep": -1}.items():
        (run / "config.json").write_text(json.dumps(config | {name: value}), encoding="utf-8")
        with pytest.raises(BigqaError, match=f"{option_of(name)}: not a"):
            settings_from({}, run)
    for bad in ({"seq_len": 0}, {"nodes": -1}, {"tier": 3}, {"gpus": 0}, {"global_batch": 10**12}):
        with pytest.raises(UsageError, match="is not a whole number from"):
            Question(model="tiny", **bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--x"):
        size("--x")("1e5GiB")


def test_the_environment_has_ranges_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("0", "-1", "²", "two", "99999"):
        monkeypatch.setenv("BIGQA_WORKERS", bad)
        with pytest.raises(UsageError, match="BIGQA_WORKERS"):
            of_environment("BIGQA_WORKERS", "threads", 2)
    monkeypatch.setenv("BIGQA_WORKERS", "")
    assert of_environment("BIGQA_WORKERS", "threads", 2) == 2


def test_a_word_that_no_command_knows_is_one_line() -> None:
    for words in (("trian",), ("train", "--nope"), ("train", "--lr"), ("predict",), ("rehearse", "--bound", "x")):
        done = here(*words)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
        assert done.stderr.startswith("bigqa: ")
    assert train_here("--nope").returncode == 2
    helped = here("data")
    assert helped.returncode == 2 and "inspect" in helped.stderr + helped.stdout


def test_an_empty_word_is_no_folder() -> None:
    """Of a variable that is not set: as a path it was the folder that the command runs in."""
    for words in (("data", "inspect", "", "tiny"), ("train", "--model", ""), ("",)):
        done = here(*words)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
        assert "empty word" in done.stderr and "variable" in done.stderr
    assert train_here("--out", "").returncode == 2
    assert "empty word" not in here("rehearse", "--gpu", "no-such-card", "--", "python", "").stderr


@pytest.mark.parametrize("words", [("~/data.json", "tiny"), ("none.json", "--tokenizer=~/vocab", "tiny"), ("x", "~/m")])
def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    """A shell leaves "~" as it is within quotes, and behind an option's "="."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done = here("data", "inspect", *words)
    assert done.returncode == 1 and str(tmp_path / "home") in done.stderr and "~" not in done.stderr


def test_where_no_home_is_nothing_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    done = here("launch-files", "~/files")
    assert done.returncode == 2 and "HOME" in done.stderr and not list(tmp_path.iterdir())


def test_hangul_is_found_as_a_mac_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    apart = Path(unicodedata.normalize("NFD", "자료/한강.json"))
    apart.parent.mkdir()
    apart.touch()
    words = ["자료/한강.json", "--out=자료/새것", str(tmp_path / "자료"), "없다/한강.json", "강", "--", "자료"]
    found = [
        str(apart),
        f"--out={apart.parent}/새것",
        str(tmp_path / apart.parent),
        "없다/한강.json",
        "강",
        "--",
        "자료",
    ]
    assert _on_the_disk(words) == found
    done = here("data", "inspect", "자료/한강.json", "tiny")
    assert done.returncode == 1 and "data file is empty" in done.stderr


def test_another_programs_words_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--out=~/a", "~x", "a~/b", "--", "python", "~/script.py"]
    monkeypatch.setenv("HOME", "/home/me")
    assert _on_the_disk(words) == ["--out=/home/me/a", "~x", "a~/b", "--", "python", "~/script.py"]


def test_what_a_file_says_is_repeated_in_short(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"x" * 3000: 1}), encoding="utf-8")
    with pytest.raises(BigqaError, match="not a bigqa run's config") as raised:
        read_settings(config)
    assert len(str(raised.value)) < 1000


def test_a_plan_of_more_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    memory = {"allocated_bytes": 10**400, "device_bytes": 1}
    plan.write_text(json.dumps({"settings": {}, "predicted": {"memory": memory}}), encoding="utf-8")
    with pytest.raises(BigqaError, match="allocated_bytes"):
        read_planned(plan)
