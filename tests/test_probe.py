"""`bigqa probe` as a person types it, and its plan carried out as printed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from bs4 import BeautifulSoup
from commands import bigqa, here, run, train_here

from bigqa.language import VARIABLE
from bigqa.sample import FOLDER

ROOT = Path(__file__).parents[1]
LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


def as_json(*words: str | Path) -> Any:
    done = here(*words, "--json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def test_the_table_the_plan_in_words_and_the_command() -> None:
    done = bigqa("probe", "tiny", "--gpu", "T4")
    assert done.returncode == 0, done.stderr
    for text in ("strategy", "tier", "GPU peak / limit", "host peak", "samples/s", "verdict", "Plan: ", "Next: "):
        assert text in done.stdout
    assert "accelerate launch --config_file plan.accelerate.yaml -m bigqa.train --plan plan.json" in done.stdout
    assert "predictions" in done.stdout  # never presented as measured
    assert done.stderr == ""


def test_the_plan_runs_as_it_was_printed(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    page = tmp_path / "page.html"
    done = here("probe", "tiny", "--gpu", "none", "--out", plan, "--html", page)
    assert done.returncode == 0, done.stderr
    assert "<table>" in page.read_text(encoding="utf-8") and "http" not in page.read_text(encoding="utf-8")
    [line] = [line.strip() for line in done.stdout.splitlines() if "accelerate launch" in line]
    words = line.replace("FILE", str(FOLDER / "train.json")).replace("RUN", str(tmp_path / "run")).split()
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    ran = run([*launcher, "--limit", "20", "--max-steps", "2"], BIGQA_CACHE=str(tmp_path / "cache"))
    assert ran.returncode == 0, ran.stderr
    chosen = json.loads(plan.read_text(encoding="utf-8"))
    carried_out = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    assert carried_out["strategy"] == chosen["settings"]["strategy"]
    assert carried_out["micro_batch"] == chosen["settings"]["micro_batch"]


@pytest.mark.parametrize("name", ["cpu-8bit-recompute", "lora"])
def test_a_named_strategy_trains_and_resumes(tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    words = ["--model", "tiny", "--train-file", FOLDER / "train.json", "--limit", "12", "--device", "cpu"]
    done = train_here(*words, "--strategy", name, "--max-steps", "2", "--global-batch", "4", "--out", out)
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    if name == "lora":  # merged: what is saved is a plain model
        answered = here("predict", out / "model", FOLDER / "dev.json", tmp_path / "answers.json")
        assert answered.returncode == 0, answered.stderr


def test_how_much_is_enough() -> None:
    rows = {row["name"]: row for row in as_json("probe", "enliple-large-v1", "--need")}
    assert rows["recompute"]["published_bytes"] < rows["plain"]["published_bytes"]
    # Where activations hardly count, gradients that several micro-batches add up weigh as much: a percent.
    assert all(row["least_bytes"] <= 1.01 * row["published_bytes"] for row in rows.values())
    # 330M parameters x 16 bytes of states are 5.3 GB: no card of 4 GB would do, and every one of the table does.
    assert 5.3e9 < rows["plain"]["least_bytes"] < 7e9
    assert "T4" in rows["plain"]["cards"] and "T4" not in rows["stochastic"]["cards"]


def test_what_is_enough_is_said_in_words() -> None:
    done = here("probe", "enliple-large-v1", "--need")  # whose traces are there
    assert done.returncode == 0, done.stderr
    for text in ("Changing nothing: ", "Changing rounding only: ", "Changing what is learned: ", "(plain)."):
        assert text in done.stdout
    assert "every card of the table" in done.stdout
    assert "every card with bf16" in done.stdout
    assert "predictions" in done.stdout
    figures = re.findall(r": ([\d.]+ [GM]iB)(?: is enough)? \((\S+)\)\.$", done.stdout, re.MULTILINE)
    assert len(figures) == 4
    pages = [page.read_text(encoding="utf-8") for page in ROOT.glob("README*.md")]  # none beside an installed package
    assert [figure for figure in figures for page in pages if not all(words in page for words in figure)] == []


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="beside an installed package")
@pytest.mark.parametrize(("page", "language"), [("README.md", "en"), ("README.ko.md", "ko")])
def test_what_the_readmes_show_is_what_is_printed(page: str, language: str) -> None:
    shown = re.findall(r"(?s)```text\n(.*?)\n```", (ROOT / page).read_text(encoding="utf-8"))
    with patch.dict("os.environ", {VARIABLE: language}):
        printed = here("probe", "enliple-large-v1", "--need").stdout.splitlines()
    [lines] = [block.splitlines() for block in shown]
    assert len(lines) == 6
    assert [
        line for line, real in zip(lines, printed, strict=False) if not real.startswith(line.removesuffix("..."))
    ] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpu", "none", "--gpus", "4"), "--gpus and --nodes are for GPUs"),
        (("--gpu", "none", "--nodes", "2"), "--gpus and --nodes are for GPUs"),
        (("--task", "korquad2"), "--train-file"),
        (("--gpu", "RTX 3060 Ti"), "no GPU RTX 3060 Ti"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(words: tuple[str, ...], said: str) -> None:
    done = here("probe", "tiny", *words)
    assert done.returncode in (1, 2) and said in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_several_machines_are_launched_with_rank_and_address(tmp_path: Path) -> None:
    """As Accelerate reads it: it takes no configuration of several machines without an address."""
    plan = tmp_path / "plan.json"
    cards = ["--gpu", "A100-40", "--gpus", "4", "--nodes", "2", "--host-memory", "64GiB"]
    done = here("probe", "enliple-large-v1", *cards, "--out", plan)
    assert done.returncode == 0, done.stderr
    assert "--machine_rank RANK --main_process_ip ADDRESS" in done.stdout and "--tokenizer VOCAB" in done.stdout
    config = load_config_from_file(str(tmp_path / "plan.accelerate.yaml"))
    assert (config.num_machines, config.num_processes, config.main_process_port) == (2, 8, 29500)
    assert config.main_process_ip


def test_training_data_tell_what_shorter_windows_lose(tmp_path: Path) -> None:
    words = ["probe", "tiny", "--gpu", "none", "--train-file", FOLDER / "dev.json", "--seq-len", "256"]
    assert as_json(*words)["workload"]["num_windows"] == 240


def test_an_offload_folder_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = as_json("probe", "tiny", "--gpu", "T4", "--nvme", tmp_path, "--strategy", "zero3-nvme")
    [row] = [candidate for candidate in found["candidates"] if candidate["strategy"] == "zero3-nvme"]
    assert row["disk_bytes"] > 0 and found["hardware"]["disk_write_bytes_per_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_precision_asked_for_is_kept_to() -> None:
    rows = {
        c["strategy"]: c
        for c in as_json("probe", "tiny", "--gpu", "T4", "--tier", "0", "--precision", "fp32")["candidates"]
    }
    assert rows["recompute"]["axes"]["precision"] == "fp32"
    refused = as_json("probe", "tiny", "--gpu", "T4", "--tier", "0", "--precision", "bf16")["candidates"]
    assert all(
        c["reason"] == "T4 has no bf16"
        for c in refused
        if c["axes"]["precision"].startswith("bf16") and c["axes"]["device"] == "cuda"
    )


def test_tiers_limit_what_may_change() -> None:
    found = as_json("probe", "tiny", "--gpu", "3090", "--tier", "0")
    assert {candidate["tier"] for candidate in found["candidates"]} == {0}


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["tiny", "--gpu", "K80"], 1, "no GPU K80 in the table"),
        (
            ["tiny", "--gpu-memory", "8GiB", "--gpu", "T4", "--host-memory", "lots"],
            2,
            "--host-memory: 'lots' is not a size",
        ),
        (["tiny", "--strategy", "magic"], 2, "no strategy magic; choose one of plain"),
        (["tiny", "--seq-len", "4096"], 1, "positions"),
        (["no-such-model"], 1, "no model no-such-model"),
    ],
)
def test_refusals_are_one_line(words: list[str], code: int, text: str) -> None:
    done = here("probe", *words)
    assert done.returncode == code
    assert text in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_where_nothing_fits_no_plan_is_written(tmp_path: Path) -> None:
    done = here("probe", "tiny", "--gpu", "none", "--host-memory", "100MiB", "--out", tmp_path / "plan.json")
    assert done.returncode == 3 and list(tmp_path.iterdir()) == []
    [said] = [line for line in done.stdout.splitlines() if "Nothing fits" in line]
    assert "The closest is cpu-" in said and "of host memory" in said and "100 MiB are there" in said
    assert "What would make it fit" in done.stdout


def test_what_is_short_is_said_to_the_byte() -> None:
    """The shortfall that is named, given as memory, makes it fit."""
    words = ["probe", "enliple-large-v1", "--gpu", "none", "--strategy", "cpu-8bit-recompute"]
    done = here(*words, "--host-memory", "700MiB")
    assert done.returncode == 3
    needed = re.search(r"it needs ([\d.]+) GiB of host memory", done.stdout)
    assert needed is not None
    enough = f"{float(needed[1]) + 0.01}GiB"
    assert here(*words, "--host-memory", enough).returncode == 0


def test_the_json_document() -> None:
    found = as_json("probe", "tiny", "--gpu", "T4")
    assert found["hardware"]["gpu"]["name"] == "T4" and found["hardware"]["cpu"]["cores"] >= 1
    assert found["model"] == {"name": "tiny", "parameters": found["model"]["parameters"]}
    chosen = [row for row in found["candidates"] if row["strategy"] == found["choice"]]
    assert len(chosen) == 1 and chosen[0]["fits"] and chosen[0]["reason"] == ""
    for row in found["candidates"]:
        if row["breakdown"] is None:
            continue
        assert row["peak_allocated_bytes"] <= row["peak_reserved_bytes"]
        if row["axes"]["device"] == "cuda":
            assert sum(row["breakdown"].values()) - row["breakdown"]["context"] == row["peak_allocated_bytes"]
            assert row["peak_gpu_bytes"] == row["peak_reserved_bytes"] + row["breakdown"]["context"]
        assert row["step_s"] == pytest.approx(row["micro_batch"] * row["grad_accum"] / row["samples_per_s"])
        assert row["disk_bytes"] >= 0 and row["peak_host_bytes"] > 0


CLICK = "<script>document.querySelectorAll('th button')[6].click()</script></body>"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert here("probe", "tiny", "--gpu", "T4", "--html", page).returncode == 0
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", CLICK), encoding="utf-8")  # as a person clicks on "run"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = run([str(BROWSER), *flags, page.as_uri()])
    assert done.returncode == 0, done.stderr
    soup = BeautifulSoup(done.stdout, "lxml")
    runs = [float(row.find_all("td")[6]["data-key"]) for row in soup.select("tbody tr")]
    assert len(runs) > 16 and runs == sorted(runs)
    assert len(soup.select("#bars .track")) > 16
    areas = [area.title.string for area in soup.select("#timeline polygon") if area.title is not None]
    assert areas == ["weights", "optimizer", "gradients", "activations", "temporaries"]
    [peak] = soup.select("#timeline .peak")
    heights = [
        float(pair.split(",")[1]) for area in soup.select("#timeline polygon") for pair in area["points"].split()
    ]
    assert float(peak["cy"]) == pytest.approx(min(heights), abs=0.1)


def test_seven_billion_parameters_need_no_memory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B), encoding="utf-8")
    words = ["probe", tmp_path / "config.json", "--gpu", "A100-80", "--seq-len", "512", "--tier", "1", "--json"]
    words += ["--strategy", "stochastic"]
    words += ["--host-memory", "128GiB"]  # its weights are loaded in fp32, and its masters are copies
    with (tmp_path / "answer.json").open("w") as answer:
        command = [sys.executable, "-m", "bigqa.cli", *map(str, words)]
        probe = subprocess.Popen(command, stdout=answer, env=os.environ)
        _, status, used = os.wait4(probe.pid, 0)
    assert status == 0
    rows = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))["candidates"]
    weights = {c["strategy"]: c["breakdown"]["weights"] for c in rows if c["breakdown"]}
    assert weights["stochastic"] == pytest.approx(2 * 6.6e9, rel=0.02)
    assert used.ru_maxrss * 1024 < 1.5e9
