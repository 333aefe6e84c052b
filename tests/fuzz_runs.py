"""Settings, plans, checkpoints, reports and options that are spoiled, and what reads them; see `fuzzing`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from commands import here
from fuzzing import VALUES, Kind, Spoiling, damaged, dumped, spoiled, spoilings

from bigqa.bench.report import read_report
from bigqa.console import UNFORESEEN
from bigqa.engine.loop import manifest
from bigqa.engine.loop.checkpoint import load_newest, save
from bigqa.engine.optim.update import State
from bigqa.errors import BigqaError
from bigqa.rehearse.planned import plan_lines, read_planned
from bigqa.run.folder import settings_from
from bigqa.sample import FOLDER
from bigqa.settings import make_settings, read_settings
from bigqa.strategy import STRATEGIES


def _settings() -> dict[str, Any]:
    rung = {"name": "cpu", "strategy": STRATEGIES["cpu"].model_dump(mode="json"), "micro_batch": 1}
    made = make_settings(
        model="tiny", train_file=FOLDER / "train.json", out="run", strategy=STRATEGIES["cpu"], ladder=[rung]
    )
    return made.model_dump(mode="json")


SETTINGS = _settings()
PLAN = {
    "schema": 1, "strategy": "cpu", "num_gpus": 1,
    "gpu": {"name": "T4", "total_bytes": 10**10, "model": {"memory_mib": 15360}},
    "settings": {name: SETTINGS[name] for name in ("model", "strategy", "seq_len", "micro_batch", "ladder")},
    "predicted": {"memory": {"allocated_bytes": 1, "reserved_bytes": 2, "device_bytes": 3}},
}  # fmt: skip


def _of_settings(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    content = dumped(SETTINGS)
    (folder / "config.json").write_bytes(
        damaged(content, drawn) if which % 6 == 0 else dumped(spoiled(SETTINGS, drawn))
    )
    options: list[dict[str, Any]] = [{}, {"strategy": "cpu-fp32"}, {"keep": 3}, {"dev_file": FOLDER / "dev.json"}]
    return lambda: (read_settings(folder / "config.json"), settings_from(options[which % 4], folder))


def _of_plan(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    file = folder / "plan.json"
    file.write_bytes(damaged(dumped(PLAN), drawn) if which % 6 == 0 else dumped(spoiled(PLAN, drawn)))

    def read() -> None:
        if which % 2:
            found = read_planned(file)
            plan_lines(found, fits=False)
            assert (found.card, found.memory_bytes, found.num_gpus) is not None
        else:
            settings_from({"plan": file, "train_file": FOLDER / "train.json", "out": folder / "run"}, None)

    return read


def _of_checkpoint(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    weights = {"a.weight": torch.ones(2, 3), "b.bias": torch.zeros(2)}
    moments = {f"{kind}.{name}": value for kind in ("exp_avg", "exp_avg_sq") for name, value in weights.items()}
    save(folder, 3, State(weights=weights, moments=moments), {"seed": 1})
    path = folder / "step-00000003"
    name = ("state.json", "weights.safetensors", "adam.safetensors", manifest.FILE)[which % 4]
    content = (path / name).read_bytes()
    is_json = name.endswith(".json") and which % 3
    (path / name).write_bytes(dumped(spoiled(json.loads(content), drawn)) if is_json else damaged(content, drawn))
    if name != manifest.FILE and which % 5:  # sealed again: whoever edits a file may do that as well
        (path / manifest.FILE).unlink()
        manifest.write(path, {}, {"seed": 1}, 3, {})
    elif is_json and which % 7:
        said = json.loads((path / name).read_bytes())
        if isinstance(said, dict):
            said.pop("seal", None)
            (path / name).write_bytes(dumped(said | {"seal": manifest._seal(said)}))

    def read() -> None:
        said: list[str] = []
        found = load_newest(folder, said.append)
        assert all("\n" not in line for line in said) and (found is not None or said)
        if found is None:
            raise BigqaError(said[0])
        assert isinstance(found.step, int) and dict(found.settings) is not None and dict(found.state.extras) is not None
        for tensors in (found.state.weights, found.state.moments):
            assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())

    return read


REPORT = json.loads(
    next((Path(__file__).parents[1] / "benchmarks/runs/cpu").glob("*.json")).read_text(encoding="utf-8")
)


def _of_report(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    file = folder / "report.json"
    file.write_bytes(dumped(spoiled(REPORT, drawn)) if which % 4 else damaged(dumped(REPORT), drawn))
    return lambda: read_report(file)


NONE = str(FOLDER / "no-such-file.json")
COMMANDS = [
    ["train", "--model", "tiny", "--train-file", NONE, "--out", "run"],
    ["predict", str(FOLDER / "no-model"), NONE, "out.json"],
    ["evaluate", NONE, NONE],
    ["data", "inspect", NONE, "tiny"],
    ["probe", "no-such-model"],
    ["bench", "no-such-model", "--out", "bench"],
    ["rehearse", "--gpu", "T4"],
    ["table", "no-such-folder"],
    ["convert", "enliple", "no-such", "out"],
    ["launch-files", "/dev/null/x"],
]
OPTIONS = [
    "--seed",
    "--epochs",
    "--max-steps",
    "--global-batch",
    "--micro-batch",
    "--seq-len",
    "--doc-stride",
    "--max-query-length",
    "--lr",
    "--warmup",
    "--weight-decay",
    "--dropout",
    "--precision",
    "--strategy",
    "--plan",
    "--nvme",
    "--device",
    "--save-every",
    "--keep",
    "--limit",
    "--num-processes",
    "--resume",
    "--tokenizer",
    "--dev-file",
    "--model",
    "--nbest",
    "--null-threshold",
    "--metric",
    "--json",
    "--gpu",
    "--gpu-memory",
    "--gpus",
    "--nodes",
    "--host-memory",
    "--tier",
    "--steps",
    "--caps",
    "--budget-s",
    "--case-s",
    "--heap",
    "--format",
    "--check",
    "--bound",
    "--true",
    "--task",
    "--all",
]


def _of_options(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    words = [*COMMANDS[which % len(COMMANDS)]]
    for _, where, what in drawn:
        value = VALUES[what]
        text = value if isinstance(value, str) else json.dumps(value)
        words += [OPTIONS[where % len(OPTIONS)], text.encode("utf-8", "replace").decode().replace("\0", "")]

    def read() -> None:
        done = here(*words)
        assert done.returncode in (0, 1, 2), done
        assert len(done.stderr.strip().splitlines()) <= 1 and UNFORESEEN not in done.stderr, (words, done.stderr)
        assert done.returncode == 0 or done.stderr.startswith("bigqa: "), (words, done)

    return read


KINDS: dict[str, Kind] = {
    "settings": (_of_settings, spoilings()),
    "plan": (_of_plan, spoilings()),
    "checkpoint": (_of_checkpoint, spoilings()),
    "report": (_of_report, spoilings()),
    "options": (_of_options, spoilings(2)),
}
