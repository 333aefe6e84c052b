"""Traces kept between commands: what changes makes them anew, and what cannot be kept is none the worse."""

import copy
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from commands import here
from transformers import AutoConfig

from bigqa.memory import estimate
from bigqa.memory.estimate import Estimator, MemoryEstimate
from bigqa.memory.events import Stream
from bigqa.memory.traces import make_anew
from bigqa.plan import kept, planner
from bigqa.plan.kept import MODELS, Kept, keeps
from bigqa.plan.planner import estimator_for
from bigqa.strategy import STRATEGIES
from bigqa.tasks.registry import kind_of

ROWS = ("plain", "zero2", "stream")
"""One of each kind of trace."""


def config_of(**changes: Any) -> Any:
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    return AutoConfig.for_model("bert", **sizes, vocab_size=100, max_position_embeddings=32, **changes)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def keeping(config: Any, kind: str = "qa") -> Estimator:
    return estimator_for(config, kind_of(kind), Kept(config, kind_of(kind)))


def estimates(estimator: Estimator, *names: str) -> list[MemoryEstimate]:
    return [estimator.estimate(STRATEGIES[name], 3, 32, accumulating=True) for name in names or ROWS]


def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was traced again")

    for module, name in ((estimate, "trace_step"), (estimate, "trace_micro_batch")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr("bigqa.memory.stream.trace_streamed", never)


def test_what_was_traced_is_not_traced_again_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = estimates(estimator_for(config_of()))
    assert estimates(keeping(config_of())) == plain
    untraced(monkeypatch)
    assert estimates(keeping(config_of())) == plain
    monkeypatch.setattr(planner, "_known", {})
    assert estimates(planner.known_estimator(config_of())) == plain  # as every command asks


def _other_code(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kept, "code", lambda: "another")


def _other_versions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kept, "versions", lambda: {"torch": "another"})


def _deterministic(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)


@pytest.mark.parametrize("change", [_other_code, _other_versions, _deterministic])
def test_another_world_is_another_name(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    config, kind = config_of(), kind_of("qa")
    before = Kept(config, kind)._folder
    assert Kept(copy.deepcopy(config), kind)._folder == before
    change(monkeypatch)
    assert Kept(config, kind)._folder != before


def test_another_model_or_task_is_another_name() -> None:
    eager = config_of()
    eager._attn_implementation = "eager"
    others = [(config_of(), "qa"), (config_of(hidden_dropout_prob=0.0), "qa"), (config_of(), "classify"), (eager, "qa")]
    assert len({Kept(config, kind_of(kind))._folder for config, kind in others}) == len(others)


def test_code_that_is_not_this_packages_is_traced_each_time() -> None:
    """Its changes would not be noticed."""
    assert keeps(kind_of("qa"))
    assert not keeps(type("Words", (type(kind_of("qa")),), {"__module__": "my_tasks"})())


@pytest.mark.parametrize("damage", [b"", b"no such thing", None])
def test_what_cannot_be_read_is_made_anew(cache: Path, damage: bytes | None) -> None:
    found = estimates(keeping(config_of()), "plain")
    for file in cache.glob("traces/*/*"):
        file.write_bytes(file.read_bytes()[:100] if damage is None else damage)
    assert estimates(keeping(config_of()), "plain") == found


def test_what_cannot_be_written_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert estimates(keeping(config_of()), "plain") == estimates(estimator_for(config_of()), "plain")
    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_the_models_asked_of_last_are_kept(cache: Path) -> None:
    for number in range(MODELS + 2):
        folder = cache / "traces" / str(number)
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - 1000 + number,) * 2)
    mine = Kept(config_of(), kind_of("qa"))._folder
    assert {one.name for one in mine.parent.iterdir()} == {mine.name, *map(str, range(3, MODELS + 2))}


def test_a_probe_that_is_asked_again_traces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["probe", "tiny", "--gpu", "T4", "--strategy", "recompute"]
    monkeypatch.setattr(planner, "_known", {})
    first = here(*words)
    monkeypatch.setattr(planner, "_known", {})
    untraced(monkeypatch)
    second = here(*words)
    assert first.returncode == second.returncode == 0
    assert [line for line in first.stdout.splitlines() if "recompute" in line] == [
        line for line in second.stdout.splitlines() if "recompute" in line
    ]


@pytest.mark.parametrize("keep", [make_anew, None], ids=["anew", "kept"])
def test_a_trace_in_which_a_library_is_imported_is_made_again(keep: Any) -> None:
    """What a library makes of its own as it is imported is none of the step's, and must not be kept as a part of it."""
    name, calls = "a_library_of_this_test", []

    def make() -> Stream:
        calls.append(sys.modules.setdefault(name, ModuleType(name)))
        return Stream(flops=len(calls))

    try:
        keep = keep or Kept(config_of(), kind_of("qa"))
        assert keep(Stream, ("a step",), make).flops == len(calls) == 2
        assert keep(Stream, ("another",), make).flops == len(calls) == 3
    finally:
        del sys.modules[name]
