"""`bigqa checkpoint`: what is listed and verified, and what Accelerate, DeepSpeed and transformers make of it."""

import argparse
import json
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
import torch
from accelerate import Accelerator
from forked import in_processes
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering
from typer.testing import CliRunner

from bigqa.checkpoints import conversion, finding, taking
from bigqa.cli.commands import app
from bigqa.engine.loop import checkpoint
from bigqa.engine.processes import Processes
from bigqa.errors import BigqaError
from bigqa.files import write_json
from bigqa.run.fine_tuning import fine_tune
from bigqa.run.folder import settings_from

KINDS = ("exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "full"
    small_runs.train(folder, keep=3)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def _bigqa(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["checkpoint", *map(str, words)])
    return done.exit_code, done.output


def test_what_is_there_is_listed(copy: Path) -> None:
    code, said = _bigqa("list", copy, "--json")
    found = json.loads(said)["checkpoints"]
    assert code == 0 and [one["step"] for one in found] == [6, 4, 2]
    on_disk = sum(file.stat().st_size for file in (copy / "checkpoints/step-00000006").iterdir())
    assert found[0]["size_bytes"] == on_disk and found[0]["plan"]["global_batch"] == small_runs.BATCH
    shutil.copytree(copy / "checkpoints/step-00000004", copy / "best/step-00000004")
    code, said = _bigqa("list", copy)
    assert code == 0 and "4 (best)" in said and "cpu fp32" in said


@pytest.mark.parametrize("name", ["weights.safetensors", "adam.safetensors", "state.json", "manifest.json"])
def test_damage_is_found_and_told_and_the_others_are_whole(copy: Path, name: str) -> None:
    assert _bigqa("verify", copy)[0] == 0
    file = copy / "checkpoints/step-00000004" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, said = _bigqa("verify", copy)
    assert code == 1 and said.count(": whole") == 2 and "step-00000004: damaged: " in said.replace("\n", "")
    assert _bigqa("verify", copy / "checkpoints/step-00000006")[0] == 0
    assert finding.newest_whole(copy).name == "step-00000006"
    file.parent.rename(copy / "checkpoints/step-00000009")
    assert finding.newest_whole(copy).name == "step-00000006"


def test_a_folder_without_any_is_refused_in_a_line(tmp_path: Path) -> None:
    for place, word in ((tmp_path / "no", "is no folder"), (tmp_path, "has no checkpoint")):
        with pytest.raises(BigqaError, match=word):
            finding.paths_of(place)


def test_the_model_of_the_last_step_is_the_one_that_is_handed_over(run: Path, tmp_path: Path) -> None:
    assert _bigqa("convert", run, tmp_path / "now", "--to", "transformers")[0] == 0
    names = {file.name for file in (tmp_path / "now").iterdir()}
    assert names == {file.name for file in (run / "model").iterdir()} - {"README.md"}
    assert {
        name for name in names if (tmp_path / "now" / name).read_bytes() != (run / "model" / name).read_bytes()
    } == set()
    earlier = run / "checkpoints/step-00000002"
    assert _bigqa("convert", earlier, tmp_path / "then", "--to", "transformers")[0] == 0
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "then")
    kept = load_file(earlier / "weights.safetensors")
    assert all(torch.equal(kept[name], one) for name, one in model.named_parameters())
    code, said = _bigqa("convert", run, tmp_path / "now", "--to", "transformers")
    assert code != 0 or "already exists" in said


def test_adapters_are_merged_as_a_run_does_it_and_have_no_other_form(tmp_path: Path) -> None:
    small_runs.train(tmp_path / "lora", strategy="lora", precision="bf16")
    conversion.convert_to("transformers", tmp_path / "lora", tmp_path / "now", one_group=False)
    assert (tmp_path / "now/model.safetensors").read_bytes() == (tmp_path / "lora/model/model.safetensors").read_bytes()
    for form in ("accelerate", "deepspeed"):
        with pytest.raises(BigqaError, match="trains adapters"):
            conversion.convert_to(form, tmp_path / "lora", tmp_path / form, one_group=False)
        assert not (tmp_path / form).exists()


def _groups(model: torch.nn.Module, *, one_group: bool) -> list[dict[str, Any]]:
    """Group parameters as the Trainer's `get_optimizer_grouped_parameters` does."""
    named = dict(model.named_parameters())
    if one_group:
        return [{"params": list(named.values()), "weight_decay": 0.01}]
    without = {name for name in named if name.endswith("bias") or "LayerNorm" in name}
    return [
        {"params": [one for name, one in named.items() if name not in without], "weight_decay": 0.01},
        {"params": [one for name, one in named.items() if name in without], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("one_group", [False, True])
def test_accelerate_goes_on_with_it_and_it_goes_on_from_accelerate(
    run: Path, copy: Path, tmp_path: Path, *, one_group: bool
) -> None:
    path = run / "checkpoints/step-00000004"
    kept = checkpoint.load(path)
    conversion.convert_to("accelerate", path, tmp_path / "state", one_group=one_group)

    def work(processes: Processes) -> dict[str, Any]:
        accelerator: Accelerator = processes.accelerator
        plain = AutoModelForQuestionAnswering.from_pretrained(run / "model")
        optimizer = torch.optim.AdamW(_groups(plain, one_group=one_group), lr=1.0)
        _, optimizer = accelerator.prepare(plain, optimizer)
        accelerator.load_state(tmp_path / "state")
        inner = optimizer.optimizer
        found: dict[str, Any] = {"lr": inner.param_groups[0]["lr"]}
        for name, one in plain.named_parameters():
            found[name] = one.detach().numpy().copy()
            found |= {f"{kind}.{name}": inner.state[one][kind].numpy().copy() for kind in KINDS}
            found["step"] = float(inner.state[one]["step"])
        inner.param_groups[0]["lr"] = 0.0
        for one in plain.parameters():
            one.grad = torch.zeros_like(one)
        inner.step()
        accelerator.save_state(tmp_path / "theirs")
        found["after"] = {name: inner.state[one]["exp_avg"].numpy() for name, one in plain.named_parameters()}
        return found

    (found,) = in_processes(work, 1)
    settings = taking.settings_of(run)
    # Six steps, of which the warm-up is the first tenth: linear, and so two of the six are left.
    assert found["step"] == 4 and found["lr"] == pytest.approx(settings.lr * 2 / 5)
    assert all(np.array_equal(found[name], weight) for name, weight in kept.state.weights.items())
    assert all(np.array_equal(found[name], moment) for name, moment in kept.state.moments.items())
    shutil.rmtree(copy / "checkpoints/step-00000006")
    conversion.convert_from("accelerate", tmp_path / "theirs", copy, step=None, say=print)
    back = checkpoint.load_newest(copy / "checkpoints", pytest.fail)
    assert back is not None and back.step == 5
    assert all(np.array_equal(back.state.moments[f"exp_avg.{name}"], one) for name, one in found["after"].items())
    fine_tune(settings_from({}, copy), resume=True)
    assert small_runs.metrics(copy)[-1]["step"] == 6


def _arguments(folder: Path, out: Path) -> argparse.Namespace:
    return argparse.Namespace(
        input_folder=str(folder), output_folder=str(out), num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def deepspeed() -> types.ModuleType:
    module: types.ModuleType = pytest.importorskip("deepspeed")
    return module


@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_goes_on_with_it_and_it_goes_on_from_deepspeed(
    run: Path, copy: Path, tmp_path: Path, deepspeed: Any, stage: int
) -> None:
    """Weights and moments of DeepSpeed's own engines, and what DeepSpeed's own program makes of what they save."""
    path = run / "checkpoints/step-00000004"
    kept = checkpoint.load(path)
    conversion.convert_to("deepspeed", path, tmp_path / "state", one_group=False)

    def work(processes: Processes) -> dict[str, Any]:
        from deepspeed.checkpoint import ds_to_universal
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        deepspeed.init_distributed("gloo")
        plain = AutoModelForQuestionAnswering.from_pretrained(run / "model")
        config = {
            "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage},
            "checkpoint": {"load_universal": True}, "zero_allow_untested_optimizer": True,
        }  # fmt: skip
        optimizer = torch.optim.AdamW(_groups(plain, one_group=False), lr=1.0)
        engine, *_ = deepspeed.initialize(model=plain, optimizer=optimizer, config=config)
        engine.load_checkpoint(str(tmp_path / "state"))
        found: dict[str, Any] = {"steps": engine.global_steps}
        for name, one in engine.module.named_parameters():
            found[name] = safe_get_full_fp32_param(one).numpy().copy()
            found |= {f"{kind}.{name}": safe_get_full_optimizer_state(one, kind).numpy().copy() for kind in KINDS}
        engine.save_checkpoint(str(tmp_path / "theirs"), tag="last")
        ds_to_universal.main(_arguments(tmp_path / "theirs/last", tmp_path / "universal"))
        return found

    (found,) = in_processes(work, 1)
    assert found["steps"] == 4
    assert all(np.array_equal(found[name], weight) for name, weight in kept.state.weights.items())
    assert all(np.array_equal(found[name], moment) for name, moment in kept.state.moments.items())
    for step in (4, 6):
        shutil.rmtree(copy / f"checkpoints/step-0000000{step}")
    conversion.convert_from("deepspeed", tmp_path / "universal", copy, step=None, say=print)
    back = checkpoint.load_newest(copy / "checkpoints", pytest.fail)
    assert back is not None and back.step == 4
    assert all(torch.equal(back.state.weights[name], weight) for name, weight in kept.state.weights.items())
    assert all(torch.equal(back.state.moments[name], moment) for name, moment in kept.state.moments.items())


class Evil:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.mark,)  # type: ignore[return-value]


def _spoiled(folder: Path, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Spoil a state in one way after the other; yield what is said, and where."""
    whole = torch.load(folder / "optimizer.bin", weights_only=True)
    torch.save(Evil(tmp_path / "mark"), folder / "optimizer.bin")
    yield "cannot be read", "optimizer.bin"
    torch.save(whole | {"state": {0: whole["state"][0]}}, folder / "optimizer.bin")
    yield r"is of \d+ parameters in 2 groups, and the run trains", "optimizer.bin"
    groups = [whole["param_groups"][1], whole["param_groups"][0]]
    torch.save(whole | {"param_groups": groups}, folder / "optimizer.bin")
    yield r"exp_avg of .* is \(.*\), and the run's model has", "optimizer.bin"
    torch.save([1], folder / "optimizer.bin")
    yield "is no optimizer's state", "optimizer.bin"
    (folder / "model.safetensors").write_bytes(b"{}")
    yield "cannot be read", "model.safetensors"


def test_what_is_not_such_a_state_is_refused_and_nothing_of_it_is_run(run: Path, copy: Path, tmp_path: Path) -> None:
    conversion.convert_to("accelerate", run, tmp_path / "state", one_group=False)
    shutil.rmtree(copy / "checkpoints")
    for said, where in _spoiled(tmp_path / "state", tmp_path):
        with pytest.raises(BigqaError, match=said) as refused:
            conversion.convert_from("accelerate", tmp_path / "state", copy, step=3, say=print)
        assert where in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "mark").exists() and not (copy / "checkpoints").exists()
    with pytest.raises(BigqaError, match="no universal checkpoint"):
        conversion.convert_from("deepspeed", tmp_path / "state", copy, step=3, say=print)


def test_a_run_that_is_further_takes_nothing_from_before(run: Path, copy: Path, tmp_path: Path) -> None:
    conversion.convert_to("accelerate", run / "checkpoints/step-00000004", tmp_path / "state", one_group=False)
    with pytest.raises(BigqaError, match="goes on from step-00000006, which is not before step 4"):
        conversion.convert_from("accelerate", tmp_path / "state", copy, step=None, say=print)


@pytest.mark.parametrize("words", [[], ["--to", "accelerate", "--from", "deepspeed"]])
def test_one_direction_is_wanted(run: Path, tmp_path: Path, words: list[str]) -> None:
    code, _ = _bigqa("convert", run, tmp_path / "out", *words)
    assert code != 0 and not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_is_refused(run: Path, copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    deeper = json.loads((run / "model/config.json").read_text())
    write_json(tmp_path / "deeper/config.json", deeper | {"num_hidden_layers": 3 + deeper["num_hidden_layers"]})
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (run / "model" / name).is_file():
            shutil.copy(run / "model" / name, tmp_path / "deeper")
    write_json(
        copy / "config.json",
        config | {"model": str(tmp_path / "deeper/config.json"), "tokenizer": str(tmp_path / "deeper")},
    )
    with pytest.raises(BigqaError, match="another model"):
        conversion.convert_to("transformers", copy, tmp_path / "out", one_group=False)
    assert not (tmp_path / "out").exists()
