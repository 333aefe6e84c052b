"""What others measured on real GPUs beside torch on a null GPU. Run: `python -m benchmarks.public_gpu`.

In: the shared folder's public figures (`BIGQA_SHARED`, else beside the checkout). Out: `runs/public-gpu.json` and a
table in README.md. `--table` runs nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import REPORTS, machine
from benchmarks.tables import put_between
from bigqa.files import read_json, write_json
from bigqa.nullgpu.build import libraries_for
from bigqa.nullgpu.cards import NullGpu, find_card
from bigqa.nullgpu.environment import variables
from bigqa.nullgpu.python import ask
from bigqa.nullgpu.torch_build import cuda_build

NAME = "public-gpu"
FILE = REPORTS / f"{NAME}.json"
CARDS = ("A100-80", "H100")
ROOM = 200 * 2**30
"""Memory of a card: more than any has, since what ran on a real one must not run out here."""
REASONS = {
    "cross_entropy": "two of torch's smallest blocks; the cause is not known",
    "BERT-base": "torch 2.2 there, with its kernels of attention; the script was not published whole",
}
"""Of the differences, by how a series begins."""
EQUAL_BYTES = 64
"""The benchmark's figures are MiB with so few decimals that some bytes are lost."""


def measure(folder: Path) -> dict[str, Any]:
    """Run all on each card."""
    python = ask(Path(sys.executable))
    torch = cuda_build(python, install=False)
    libraries = libraries_for(python, torch, install=False)
    paths = () if python.torch == torch else (torch.folder,)
    rows: list[dict[str, Any]] = []
    for card in CARDS:
        gpu = NullGpu(find_card(card), memory_bytes=ROOM, context_bytes=0)
        environment = variables(gpu, libraries, paths, os.environ)
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.public_worker", str(folder)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows += [json.loads(line) for line in done.stdout.splitlines()]
    return {"rows": rows, "torch": torch.version, **machine()}


def table(found: dict[str, Any]) -> str:
    """Return the Markdown table: a line for each series."""
    lines = [
        f"Torch {found['torch']} on the null GPU; public figures are torch's own peaks on real cards.",
        "",
        "| source | series | figures | equal | difference: least, most | why |",
        "|---|---|---:|---:|---:|---|",
    ]
    for series in dict.fromkeys(row["series"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["series"] == series]
        off = [row["null"] - row["public"] for row in rows]
        equal = sum(abs(one) <= EQUAL_BYTES for one in off)
        shifted = statistics.multimode(off)[0]
        if not equal and sum(one == shifted for one in off) > len(off) // 2:
            lines.append(_shifted_line(series, rows, shifted))
            continue
        why = next((text for name, text in REASONS.items() if series.startswith(name)), "") if equal < len(rows) else ""
        lines.append(f"| {rows[0]['source']} | {series} | {len(rows)} | {equal} | {_spread(rows)} | {why} |")
    return "\n".join(lines)


def _shifted_line(series: str, rows: list[dict[str, Any]], shift: int) -> str:
    """Return the line of a series whose figures are one constant away."""
    equal = sum(abs(row["null"] - row["public"] - shift) <= EQUAL_BYTES for row in rows)
    constant = f"{-shift / 2**20:,.2f} MiB"
    why = f"one constant for the series, {constant}, is taken off: the benchmark's process held it besides, it seems"
    return f"| {rows[0]['source']} | {series} | {len(rows)} | {equal} | 0 but for the constant | {why} |"


def _spread(rows: list[dict[str, Any]]) -> str:
    """Return the least and the most difference, as a share and in bytes."""
    by_share = sorted(rows, key=lambda row: row["null"] / row["public"])
    ends = [(row["null"] / row["public"] - 1, row["null"] - row["public"]) for row in (by_share[0], by_share[-1])]
    if all(abs(size) <= EQUAL_BYTES for _, size in ends):
        return "0"
    return ", ".join(
        f"{share:+.2%} ({f'{size / 2**20:+.2f} MiB' if abs(size) >= 2**16 else f'{size:+d} bytes'})"
        for share, size in ends
    )


def main() -> None:
    """Run everything again, or write the table alone."""
    parser = argparse.ArgumentParser(description="Public figures of real GPUs beside the null GPU.")
    parser.add_argument("--table", action="store_true", help="run nothing; write benchmarks/README.md from the file")
    options = parser.parse_args()
    if not options.table:
        shared = Path(os.environ.get("BIGQA_SHARED") or Path(__file__).parents[2] / "shared")
        write_json(FILE, measure(shared / "data" / "public_gpu"))
    put_between(NAME, table(read_json(FILE, "the figures")))


if __name__ == "__main__":
    main()
