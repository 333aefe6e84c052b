"""Runs many trainings in one process, or in each of several: importing torch takes longer than each of them.

In: a JSON file with a list of jobs, `{"out", "options", "resume"}`, see `benchmarks/strategy_jobs.py`. Out: the run
folders, as `bigqa/train.py` makes them, and in each, by each process, what the run was made of.
"""

import functools
import json
import os
import shutil
import sys
from pathlib import Path

import cpuinfo
from torch import distributed

from benchmarks.built import watched
from bigqa.console import quiet_libraries
from bigqa.engine.processes import Processes
from bigqa.run.fine_tuning import fine_tune
from bigqa.run.folder import settings_from

PATHS = ("train_file", "dev_file", "plan", "nvme")


def main() -> None:
    """Run the jobs of a file, in order."""
    quiet_libraries()
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)  # two seconds for each of DeepSpeed's optimizers
    Processes.close = lambda self: None  # type: ignore[method-assign]  # one group serves all jobs
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        options = {name: Path(value) if name in PATHS else value for name, value in job["options"].items()}
        out = Path(job["out"])
        source = job.get("resume")
        if source and not out.exists():
            shutil.copytree(source, out)
            for later in sorted((out / "checkpoints").iterdir())[1:]:
                shutil.rmtree(later)
        settings = settings_from(options, out) if source else settings_from(options | {"out": out}, None)
        if distributed.is_initialized():
            # As where a group is made: nobody looks at a folder any more when the first process takes it.
            distributed.barrier()
        with watched() as starts:
            fine_tune(settings, resume=bool(source))
        (out / f"built-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(starts[-1].facts), encoding="utf-8")


if __name__ == "__main__":
    main()
