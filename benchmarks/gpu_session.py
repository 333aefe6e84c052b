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
LARGE = "enliple-large-v1"
CAPS = "80GiB,40GiB,24GiB,16GiB,11GiB,8GiB,6GiB,4GiB,2GiB"
BENCH = ["bigqa.cli", "bench", "--device", "cuda", "--out", str(REPORTS)]
FEW = "plain,recompute,selective,8bit-recompute,stochastic-release-recompute"
ADAPTED = "lora,lora-recompute,qlora-recompute"


@dataclass(frozen=True)
class Stage:
    """A part of the session: a module to run, with its words."""

    name: str
    words: tuple[str, ...]
    takes_budget: bool = False
    """Whether the command keeps to a budget of its own, and goes on later."""


def stages(data: Path | None) -> Iterator[Stage]:
    """Yield the stages, the most valuable first."""
    yield Stage("device", ("benchmarks.gpu_device", "--out", str(REPORTS.parent / "gpu-device")))
    yield Stage("tests", ("pytest", "-q", "-m", "gpu", "-p", "no:xdist", "-o", "addopts=", "tests/gpu"))
    grid = (*BENCH, LARGE, "--seq-len", "384", "--global-batch", "64", "--micro-batch", "32,8,1")
    yield Stage("grid", grid, takes_budget=True)
    yield Stage("capped at the prediction", ("benchmarks.gpu_caps", "--at-prediction"), takes_budget=True)
    if data is not None:
        words = ("--device", "cuda", "--out", str(REPORTS.parent / "gpu-compare"), "--train-file", str(data))
        yield Stage("compare", ("benchmarks.compare", *words, "--tokenizer", str(data.with_name("vocab.txt"))))
    yield Stage("caps", ("benchmarks.gpu_caps", "--caps", CAPS), takes_budget=True)
    for name in ("roberta-large", "deberta-v3-large", "modernbert-large", "xlm-roberta-xl", "qwen3-0.6b", "llama-7b"):
        rows = ADAPTED if name == "llama-7b" else f"{FEW},{ADAPTED}" if name == "qwen3-0.6b" else FEW
        words = (str(CONFIGS / name / "config.json"), "--seq-len", "384", "--global-batch", "8", "--micro-batch", "8")
        yield Stage(name, (*BENCH, *words, "--strategies", rows), takes_budget=True)
    yield Stage("profile", ("benchmarks.gpu_device", "--profile", "--out", str(REPORTS.parent / "gpu-device")))


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
    found = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if wheels is None:
        return found
    site = Path(tempfile.gettempdir()) / "bigqa-gpu-site"
    if not site.is_dir():
        words = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(site)]
        subprocess.run([sys.executable, *words, *map(str, sorted(wheels.glob("*.whl")))], check=True)
    return found | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}


def main() -> None:
    """Run the session, then show what it has."""
    parser = argparse.ArgumentParser(description="Measure everything on this GPU; resumable.")
    parser.add_argument("--budget-s", type=float, default=540)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that this Python lacks")
    parser.add_argument("--data", type=Path, help="a KorQuAD JSON with a vocab.txt beside it, for the comparison")
    options = parser.parse_args()
    environment = environment_with(options.wheels)
    probe = [sys.executable, "-c", "import json, torch; print(json.dumps(torch.cuda.is_available()))"]
    found = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    if not (found.returncode == 0 and json.loads(found.stdout)):
        sys.exit("bigqa: no CUDA GPU here: `make gpu` is for a machine that has one")
    file = REPORTS.parent / "gpu-session.json"
    missing = run(stages(options.data), file, options.budget_s, environment, lambda text: print(text, flush=True))
    subprocess.run([sys.executable, "-m", "bigqa.cli", "table", str(REPORTS), "--grade"], env=environment, check=False)
    for name, why in missing.items():
        print(f"{name}: {why}", flush=True)
    sys.exit(OUT_OF_TIME if missing else 0)


if __name__ == "__main__":
    main()
