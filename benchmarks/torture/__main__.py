"""`python -m benchmarks.torture`: break runs, those that are not in the report yet, and write each one down.

In: a seed, how many cases. Out: `benchmarks/runs/torture.jsonl`, a line for each; what is there is not run again, so it
is resumable. `--only N` runs one case again and shows all of it. A process imports everything, and forks.
"""

import argparse
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.torture.cases import drawn, sampled
from benchmarks.torture.gpu import environment
from benchmarks.torture.places import has_groups, own_mounts
from bigqa.nullgpu.environment import on_null_gpu
from bigqa.table.torture import FILE, read_faults, torture_markdown
from bigqa.versions import commit

SEED, CASES, LANES = 25, 1150, 2
DRAWN = {False: drawn, True: sampled}
"""By whether it is a sample."""


def prepared(folder: Path) -> None:
    """Write the data and the model of all runs."""
    from bigqa.sample import FOLDER

    texts = json.loads((FOLDER / "train.json").read_text(encoding="utf-8"))["data"]
    for name, some in (("train", texts[:2]), ("dev", texts[2:3])):
        (folder / f"{name}.json").write_text(json.dumps({"data": some}, ensure_ascii=False), encoding="utf-8")
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8")) | small
    (folder / "model.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer").mkdir(exist_ok=True)
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copyfile(FOLDER / name, folder / "tokenizer" / name)


def lane(number: int, numbers: list[int], asked: argparse.Namespace, folder: Path, has: frozenset[str]) -> None:
    """Run cases one after the other, each in forks of this process."""
    from benchmarks.torture.forks import adopt_orphans
    from benchmarks.torture.trial import Rig

    adopt_orphans()
    rig = Rig(folder, mounts="root" in has, groups="groups" in has, lane=number)
    for case in (DRAWN[asked.sample](asked.seed, one) for one in numbers):
        try:
            found = rig.run(case)
        except Exception:
            found = case.told | {"met": False, "outcome": "wrong", "wrong": [f"the rig: {traceback.format_exc()}"]}
        found["commit"] = commit() or ""
        with asked.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found, ensure_ascii=False) + "\n")
        print(line_of(found), flush=True)


def line_of(found: dict[str, Any]) -> str:
    """Return a case as a line."""
    pair = f"{found['first']} > {found['then']}"
    what = f"{found['number']:4} {found['kind']:18} {found['phase']:10} {pair:50} {found['outcome']:8}"
    met = "" if found["met"] else " (not met)"
    figures = f" {found.get('codes')} {found.get('spent_s')} s {found.get('damage', '')} {found.get('said', '')}"
    return what + met + figures + "".join(f"\n     WRONG {problem}" for problem in found["wrong"])


def main(words: list[str] | None = None) -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--only", type=int, action="append", help="run this case alone")
    parser.add_argument("--lanes", type=int, default=LANES, help="cases at once")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--folder", type=Path, help="where runs lie, and those that nobody breaks stay")
    parser.add_argument("--sample", action="store_true", help="cases that are quickly run instead")
    parser.add_argument("--quiet", action="store_true", help="print no table at the end")
    parser.add_argument("--table", action="store_true", help="run nothing; print what came of the cases that are there")
    asked = parser.parse_args(words)
    if not asked.table:
        run_missing(asked)
    if not asked.quiet:
        print(torture_markdown(read_faults(asked.out)))


def run_missing(asked: argparse.Namespace) -> None:
    """Run the cases that are asked for and not there, those on a GPU that is not there in a process that sees it."""
    on_gpu = environment() if not on_null_gpu() else dict(os.environ)
    has = frozenset({"gpu"} if on_gpu else ()) | (frozenset(("root", "groups")) if os.geteuid() == 0 else frozenset())
    there = {one["number"] for one in read_faults(asked.out, met=False) if one["seed"] == asked.seed}
    numbers = asked.only or [number for number in range(asked.cases) if number not in there]
    cases = [DRAWN[asked.sample](asked.seed, number) for number in numbers]
    left_out = [case for case in cases if case.lacks(has)]
    if left_out:
        kinds = ", ".join(sorted({f"{case.kind} on {case.first.device}" for case in left_out}))
        print(f"{len(left_out)} cases are left out: this machine has no root, or no null GPU ({kinds})")
    cases = [case for case in cases if case not in left_out]
    with folder_of(asked) as folder:
        mine = [case.number for case in cases if case.on_gpu == on_null_gpu()]
        if mine:
            run_all(mine, asked, folder)
        others = [str(case.number) for case in cases if case.on_gpu and not on_null_gpu()]
        if others:
            given = ["--seed", asked.seed, "--lanes", asked.lanes, "--out", asked.out, "--folder", folder / "gpu"]
            words = [*map(str, given), *(word for number in others for word in ("--only", number))]
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.torture", *words, "--quiet"]
            subprocess.run(command, env=on_gpu, check=False)


@contextlib.contextmanager
def folder_of(asked: argparse.Namespace) -> Iterator[Path]:
    """Make the folder of all runs; one that was not asked for goes at the end, and not as a fork of this one ends."""
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
        yield asked.folder
        return
    folder = Path(tempfile.mkdtemp(prefix="bigqa-torture-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_all(wanted: list[int], asked: argparse.Namespace, folder: Path) -> None:
    """Run cases in lanes."""
    from bigqa.console import quiet_libraries

    has = frozenset(name for name, there in (("root", own_mounts()), ("groups", has_groups())) if there)
    quiet_libraries()
    from benchmarks.torture.forks import fork, import_all

    import_all()
    prepared(folder)
    gc.collect()
    gc.freeze()  # a fork's collector would write to every object
    lanes = min(asked.lanes, len(wanted))

    def work(number: int) -> None:
        lane(number, wanted[number::lanes], asked, folder, has)
        sys.stdout.flush()
        os._exit(0)

    for pid in [fork(lambda number=number: work(number)) for number in range(lanes)]:  # type: ignore[misc]
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
