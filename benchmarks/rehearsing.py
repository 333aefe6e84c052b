"""Scripts that are not ours, rehearsed on three cards. Run: `python -m benchmarks.rehearsing`; resumable.

In: the scripts of `rehearsed/`. Out: `runs/rehearsals/`: a report for each script and card, what the terminal showed in
80 and 120 columns, a page for each script; and a table in README.md. `--table` runs nothing.
"""

import argparse
import io
import json
import os
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.common import REPORTS, read_report, write_report
from benchmarks.null_cells import CONFIGS
from benchmarks.tables import put_between
from bigqa.cli.rehearse import rehearse as command
from bigqa.console import console
from bigqa.errors import BigqaError
from bigqa.rehearse import run as running
from bigqa.rehearse.report import Rehearsal
from bigqa.rehearse.run import rehearse
from bigqa.units import GIB

NAME = "rehearsals"
FOLDER = REPORTS / NAME
SCRIPTS = Path(__file__).parent / "rehearsed"
CARDS = ("T4", "A10G", "A100-40")
COLUMNS = {"T4": 80, "A10G": 120, "A100-40": 120}
"""Of the terminal that a card's run is shown in."""
PAGE_OF = "A10G"
LLAMA = "llama-7b"


@dataclass(frozen=True)
class Row:
    """A command."""

    what: str
    words: tuple[str, ...]
    script: str
    gpus: int = 1


ROWS = {
    "trainer": Row("transformers' Trainer, BERT-large, 16 x 384", ("python",), "trainer.py"),
    "loop": Row("a plain loop, GPT-2 medium, 4 x 1,024", ("python",), "loop.py"),
    "qlora": Row("PEFT, QLoRA of a Llama of 7B, 4 x 2,048", ("python",), "qlora.py"),
    "zero3": Row("DeepSpeed ZeRO-3 of two, XLM-R-large, 8 x 512", ("deepspeed", "--num_gpus", "2"), "zero3.py", 2),
    "accelerate": Row(
        "accelerate launch of two, RoBERTa-large, 16 x 256",
        ("accelerate", "launch", "--num_processes", "2", "--mixed_precision", "fp16"),
        "accelerated.py",
        2,
    ),
}  # fmt: skip


def run(name: str, card: str) -> dict[str, Any]:
    """Rehearse a script on a card, as the command does. Returns: its exit code, and what was found."""
    row, page = ROWS[name], FOLDER / f"{name}.html"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        words = [*row.words, str(SCRIPTS / row.script)]
        if name == "qlora":
            write_empty_model(CONFIGS / LLAMA / "config.json", folder / LLAMA)
            words.append(str(folder / LLAMA))
        options = ["--gpu", card, "--gpus", str(row.gpus), *(["--html", str(page)] if card == PAGE_OF else [])]
        begun = time.monotonic()
        code, shown, found = _rehearsed([*options, "--", *words], folder, COLUMNS[card])
        _write(FOLDER / f"{name}-{card}.txt", _without_folders(shown, folder))
        if card == PAGE_OF and page.is_file():
            _write(page, _without_folders(page.read_text(encoding="utf-8"), folder))
    runs = [one.as_json() for one in found]
    return {"exit_code": code, "seconds": round(time.monotonic() - begun, 1), "runs": runs}


def _rehearsed(words: list[str], folder: Path, columns: int) -> tuple[int, str, list[Rehearsal]]:
    """Run `bigqa rehearse` in a folder. Returns: its exit code, what it shows in so many columns, what it found."""
    found: list[Rehearsal] = []

    def kept(*args: Any, **options: Any) -> Rehearsal:
        found.append(rehearse(*args, **options))
        return found[-1]

    app = typer.Typer()
    app.command()(command)
    screen = io.StringIO()
    here, file, code = Path.cwd(), console.file, 0
    os.chdir(folder)
    console.file, console.width = screen, columns
    try:
        with patch.object(running, "rehearse", kept):
            code = app(words, standalone_mode=False) or 0
    except BigqaError as error:
        code = error.exit_code
        print(error, file=screen)
    finally:
        console.file = file
        os.chdir(here)
    return code, screen.getvalue(), found


def _without_folders(text: str, folder: Path) -> str:
    return text.replace(f"{SCRIPTS}{os.sep}", "").replace(f"{folder}{os.sep}", "")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")


def write_empty_model(config_file: Path, folder: Path) -> None:
    """Write a model folder whose weights are a hole in a file: bf16 zeros, which take no disk."""
    config = AutoConfig.from_pretrained(config_file)
    with torch.device("meta"):
        shapes = {name: list(one.shape) for name, one in AutoModelForCausalLM.from_config(config).state_dict().items()}
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header |= {name: {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}}  # type: ignore[dict-item]
        at += size
    text = json.dumps(header).encode()
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def table() -> str:
    """Return the Markdown table: a line for each script."""
    lines = [f"| script | {' | '.join(CARDS)} | seconds |", "|---|" + "---|" * len(CARDS) + "---:|"]
    for name, row in ROWS.items():
        reports = [read_report(FOLDER / f"{name}-{card}.json") for card in CARDS]
        cells = [_cell(report) if report else "-" for report in reports]
        times = [report["seconds"] for report in reports if report]
        spread = f"{min(times):.0f}-{max(times):.0f}" if times else "-"
        lines.append(f"| `{row.script}`: {row.what} | {' | '.join(cells)} | {spread} |")
    return "\n".join(lines)


def _cell(report: dict[str, Any]) -> str:
    """Return "fits: 10.48 allocated, 10.64 reserved, 10.89 of the card (exit code 0)"."""
    if not report["runs"]:
        return f"failed (exit code {report['exit_code']})"
    (run,) = report["runs"]
    sizes = [f"{run[f'{kind}_bytes'] / GIB:.2f}" for kind in ("allocated", "reserved", "nvml")]
    peaks = " / ".join(sizes) + " GiB"
    if run["fits"]:
        return f"fits: {peaks} (exit code {report['exit_code']})"
    short = run["shortage"]
    return f"out of memory, {short['phase']} of step {short['step']}: {peaks} (exit code {report['exit_code']})"


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description="Scripts that are not ours, on GPUs that are not there.")
    parser.add_argument("--scripts", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--cards", nargs="+", choices=CARDS, default=list(CARDS))
    parser.add_argument("--table", action="store_true", help="run nothing; write benchmarks/README.md from the reports")
    options = parser.parse_args()
    for name in () if options.table else options.scripts:
        for card in options.cards:
            file = FOLDER / f"{name}-{card}.json"
            if not file.is_file():
                found = run(name, card)
                write_report(file, {"script": ROWS[name].script, "card": card, "gpus": ROWS[name].gpus}, found)
                print(f"{name} on {card}: exit code {found['exit_code']} ({found['seconds']:.0f} s)", flush=True)
    put_between(NAME, table())


if __name__ == "__main__":
    main()
