"""`python -m benchmarks.torture`: break runs, those that are not in the report yet, and write each one down.

In: a seed, how many cases. Out: `benchmarks/runs/torture.jsonl`, a line for each; what is there is not run again, so it
is resumable. `--only N` runs one case again and shows all of it. A process imports everything, and forks.
"""

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import REPORTS
from benchmarks.torture.cases import drawn
from benchmarks.torture.places import has_groups, own_mounts

FILE = REPORTS / "torture.jsonl"
SEED, CASES, LANES = 25, 1150, 2


def read(file: Path = FILE) -> list[dict[str, Any]]:
    """Return the cases that are there."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


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
    for case in (drawn(asked.seed, one, has) for one in numbers):
        try:
            found = rig.run(case)
        except Exception:
            found = case.told | {"met": False, "outcome": "wrong", "wrong": [f"the rig: {traceback.format_exc()}"]}
        with asked.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found, ensure_ascii=False) + "\n")
        print(line_of(found), flush=True)


def line_of(found: dict[str, Any]) -> str:
    """Return a case as a line."""
    pair = f"{found['first']} > {found['then']}"
    what = f"{found['number']:4} {found['kind']:18} {found['phase']:10} {pair:50} {found['outcome']:8}"
    met = "" if found["met"] else " (not met)"
    figures = f" {found.get('codes')} {found.get('spent_s')} s"
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
    asked = parser.parse_args(words)
    there = {one["number"] for one in read(asked.out) if one["seed"] == asked.seed}
    wanted = asked.only or [number for number in range(asked.cases) if number not in there]
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="bigqa-torture-") as name:
        folder = asked.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        run_all(wanted, asked, folder)
    print(Counter(one["outcome"] for one in read(asked.out)))


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

    pids = [fork(lambda number=number: work(number)) for number in range(lanes)]  # type: ignore[misc]
    for pid in pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
