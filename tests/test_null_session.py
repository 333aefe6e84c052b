"""`make gpu` from its first line to its last, on a GPU that is not there: in a rented hour nothing is a first time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from null_gpu import ROOT, environment_of

from benchmarks.gpu_session import SMALL, stages
from bigqa.bench.report import read_reports
from bigqa.nullgpu.cards import NullGpu, find_card
from bigqa.sample import FOLDER


def test_a_small_session_has_the_stages_of_a_whole_one(tmp_path: Path) -> None:
    small = list(stages(Path("data.json"), tmp_path / "gpu", SMALL))
    whole = list(stages(Path("data.json"), tmp_path / "gpu"))
    assert [stage.name for stage in small] == [stage.name for stage in whole]
    assert [stage.words[0] for stage in small] == [stage.words[0] for stage in whole]
    assert [stage.takes_budget for stage in small] == [stage.takes_budget for stage in whole]
    config = json.loads((tmp_path / "configs" / "modernbert-large" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2 and len(config.get("layer_types", "ab")) == 2


@pytest.mark.nullgpu
@pytest.mark.slow
def test_make_gpu_from_its_first_line_to_its_last(tmp_path: Path) -> None:
    words = ["--small", "--budget-s", "50000", "--data", str(FOLDER / "train.json"), "--out", str(tmp_path / "gpu")]
    environment = environment_of(NullGpu(find_card("A100-80"))) | {"BIGQA_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "benchmarks.gpu_session", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout[-6000:] + done.stderr[-3000:]
    codes = json.loads((tmp_path / "gpu-session.json").read_text())
    assert set(codes.values()) == {0} and done.returncode == 0, said
    assert len(codes) == len(list(stages(Path("x"), tmp_path / "x", SMALL)))
    reports = read_reports([tmp_path / "gpu"])
    failed = [(report.case.name, report.measured.reason) for report in reports if report.measured.outcome == "failed"]
    assert not failed and any(report.measured.ok for report in reports)
    assert json.loads((tmp_path / "gpu-device" / "device.json").read_text())["cublas_workspace_bytes"] == 8519680
    assert (tmp_path / "gpu-device" / "profile.txt").stat().st_size > 100
    compared = json.loads((tmp_path / "gpu-compare" / "gpu-small-512.json").read_text())
    assert not compared["failed"], compared["failed"]
    assert os.listdir(tmp_path / "gpu")
