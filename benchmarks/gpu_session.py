"""Everything that is to be measured on a CUDA GPU, in one resumable command. Run: `make gpu`.

In: a budget of seconds, and where the machine's own Python lacks packages, a folder of wheels. Out: reports in
`runs/gpu/`, written as they come, the most valuable first; the table and the grade last. What is measured is not
measured again, so the same command goes on where its budget ended.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bigqa.files import read_json, write_json

ROOT = Path(__file__).parents[1]
REPORTS = Path(__file__).parent / "runs" / "gpu"
CONFIGS = Path(__file__).parent / "configs"
CAPS = "80GiB,40GiB,24GiB,16GiB,11GiB,8GiB,6GiB,4GiB,2GiB"
FEW = "plain,recompute,selective,8bit-recompute,stochastic-release-recompute"
ADAPTED = "lora,lora-recompute,qlora-recompute"
BEYOND = {
    "roberta-large": FEW,
    "deberta-v3-large": FEW,
    "modernbert-large": FEW,
    "xlm-roberta-xl": FEW,
    "qwen3-0.6b": f"{FEW},{ADAPTED}",
    "llama-7b": ADAPTED,
}
"""Models beyond BERT -> what is run of them."""


@dataclass(frozen=True)
class Stage:
    """A part of the session: a module to run, with its words."""

    name: str
    words: tuple[str, ...]
    takes_budget: bool = False
    """Whether the command keeps to a budget of its own, and goes on later."""


@dataclass(frozen=True)
class Scale:
    """How large the work of a session is."""

    model: str = "enliple-large-v1"
    grid: tuple[str, ...] = ("--seq-len", "384", "--global-batch", "64", "--micro-batch", "32,8,1")
    caps: str = CAPS
    tests: tuple[str, ...] = ("-m", "gpu")
    compare: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ("--seq-len", "384", "--global-batch", "8", "--micro-batch", "8")
    layers: int | None = None
    """Of the models beyond BERT; none: their own."""
    strategies: str | None = None
    """Of those models; none: as `BEYOND` says."""


SMALL = Scale(
    model="enliple-small",
    grid=("--seq-len", "128", "--global-batch", "4", "--micro-batch", "2", "--strategies", "plain,8bit-recompute"),
    caps="2GiB,1GiB",
    tests=("-m", "gpu and not numbers", "-k", "capped or (predicted and plain)"),
    compare=("--only", "gpu-small", "--turns", "1"),
    beyond=("--seq-len", "64", "--global-batch", "2", "--micro-batch", "1"),
    layers=2,
    strategies="plain,qlora-recompute",
)
"""Every line of a session in minutes: to be rehearsed where no GPU is, before one is rented."""


def stages(data: Path | None, folder: Path = REPORTS, scale: Scale | None = None) -> Iterator[Stage]:
    """Yield the stages, the most valuable first; `folder`: where the reports of grids go."""
    scale = scale or Scale()
    bench = ("bigqa.cli", "bench", "--device", "cuda", "--out", str(folder))
    device = ("benchmarks.gpu_device", "--out", str(folder.parent / "gpu-device"))
    caps = ("benchmarks.gpu_caps", "--reports", str(folder))
    yield Stage("device", device)
    yield Stage("tests", ("pytest", "-q", "-p", "no:xdist", "-o", "addopts=", *scale.tests, "tests/gpu"))
    yield Stage("grid", (*bench, scale.model, *scale.grid), takes_budget=True)
    yield Stage("capped at the prediction", (*caps, "--at-prediction"), takes_budget=True)
    if data is not None:
        words = ("--device", "cuda", "--out", str(folder.parent / "gpu-compare"), "--train-file", str(data))
        vocabulary = ("--tokenizer", str(data.with_name("vocab.txt")))
        yield Stage("compare", ("benchmarks.compare", *words, *vocabulary, *scale.compare))
    yield Stage("caps", (*caps, "--caps", scale.caps), takes_budget=True)
    for name, rows in BEYOND.items():
        config = str(_config(name, folder.parent, scale.layers))
        words = (*scale.beyond, "--strategies", scale.strategies or rows)
        yield Stage(name, (*bench, config, *words), takes_budget=True)
    yield Stage("profile", (*device, "--profile", "--model", scale.model))


def _config(name: str, folder: Path, layers: int | None) -> Path:
    """Return a model's configuration, cut to so many layers."""
    whole = CONFIGS / name / "config.json"
    if layers is None:
        return whole
    cut = folder / "configs" / name / "config.json"
    config = read_json(whole, "the configuration") | {"num_hidden_layers": layers}
    config |= {"layer_types": config["layer_types"][:layers]} if "layer_types" in config else {}
    write_json(cut, config)
    return cut


def run(
    todo: Iterable[Stage], file: Path, budget_s: float, environment: dict[str, str], say: Callable[[str], None]
) -> dict[str, str]:
    """Run what is not done, keeping in a file what ended; return why the others are not done.

    What failed in an earlier session is tried again after all else.
    """
    started, missing = time.perf_counter(), {}
    codes: dict[str, int] = read_json(file, "the session") if file.is_file() else {}
    for stage in sorted(todo, key=lambda stage: stage.name in codes):
        if codes.get(stage.name) == 0:
            continue
        left_s = budget_s - (time.perf_counter() - started)
        if left_s < LEAST_S:
            missing[stage.name] = "no time left; the same command goes on with it"
            continue
        code = _run(stage, left_s, environment, say)
        if code != OUT_OF_TIME:
            write_json(file, codes := codes | {stage.name: code})
        if code != 0:
            missing[stage.name] = "out of time" if code == OUT_OF_TIME else f"failed with exit code {code}"
    return missing


def _run(stage: Stage, left_s: float, environment: dict[str, str], say: Callable[[str], None]) -> int:
    """Run a stage; return its exit code. What it started ends with it: nothing may go on holding the card."""
    more = ["--budget-s", str(max(1, int(left_s) - 20))] if stage.takes_budget else []
    say(f"{stage.name}: python -m {' '.join([*stage.words, *more])}")
    command = [sys.executable, "-m", *stage.words, *more]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(timeout=left_s)
    except subprocess.TimeoutExpired:
        return OUT_OF_TIME
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


LEAST_S = 15
"""That a stage is begun with."""
OUT_OF_TIME = 75
"""Of a command whose budget ended before its work; see `bigqa bench`."""


def environment_with(wheels: Path | None) -> dict[str, str]:
    """Return the environment, with the packages of a folder of wheels put beside the machine's own."""
    inherited = os.environ.get("PYTHONPATH", "")  # where a null GPU's torch is
    found = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{inherited}".rstrip(os.pathsep)}
    if wheels is None:
        return found
    site = Path(tempfile.gettempdir()) / "bigqa-gpu-site"
    if not site.is_dir():
        words = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(site)]
        subprocess.run([sys.executable, *words, *map(str, sorted(wheels.glob("*.whl")))], check=True)
    return found | {"PYTHONPATH": f"{found['PYTHONPATH']}{os.pathsep}{site}"}


def main() -> None:
    """Run the session, then show what it has."""
    parser = argparse.ArgumentParser(description="Measure everything on this GPU; resumable.")
    parser.add_argument("--budget-s", type=float, default=540)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that this Python lacks")
    parser.add_argument("--data", type=Path, help="a KorQuAD JSON with a vocab.txt beside it, for the comparison")
    parser.add_argument("--out", type=Path, default=REPORTS, help="where the reports go; what else is made lies beside")
    parser.add_argument("--small", action="store_true", help="the same stages, each on little: a rehearsal")
    options = parser.parse_args()
    environment = environment_with(options.wheels)
    probe = [sys.executable, "-c", "import json, torch; print(json.dumps(torch.cuda.is_available()))"]
    found = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    if not (found.returncode == 0 and json.loads(found.stdout)):
        sys.exit("bigqa: no CUDA GPU here: `make gpu` is for a machine that has one")
    file, folder = options.out.parent / "gpu-session.json", options.out
    todo = stages(options.data, folder, SMALL if options.small else None)
    missing = run(todo, file, options.budget_s, environment, lambda text: print(text, flush=True))
    subprocess.run([sys.executable, "-m", "bigqa.cli", "table", str(folder), "--grade"], env=environment, check=False)
    for name, why in missing.items():
        print(f"{name}: {why}", flush=True)
    sys.exit(OUT_OF_TIME if missing else 0)


if __name__ == "__main__":
    main()
