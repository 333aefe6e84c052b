"""It learns real Korean text: 32 questions of KorQuAD, from random weights, by heart. `make slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_thirty_two_questions_are_learned_by_heart(shared: Path, tmp_path: Path) -> None:
    data = json.loads((shared / "data" / "korquad1" / "KorQuAD_v1.0_dev.json").read_text(encoding="utf-8"))
    kept = 0
    for article in data["data"]:
        for part in article["paragraphs"]:
            part["qas"] = part["qas"][: max(0, 32 - kept)]
            kept += len(part["qas"])
    file = tmp_path / "first.json"
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    vocabulary = shared / "data" / "vocab" / "kobigbird_vocab.txt"
    run = tmp_path / "run"
    command = [sys.executable, "-m", "bigqa.cli", "train", "--model", "enliple-small", "--tokenizer", str(vocabulary)]
    command += ["--train-file", str(file), "--dev-file", str(file), "--out", str(run), "--device", "cpu"]
    command += ["--seq-len", "384", "--epochs", "100", "--lr", "3e-4", "--dropout", "0", "--save-every", "1000"]
    environment = os.environ | {"BIGQA_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=environment, check=True)
    scores = json.loads((run / "report.json").read_text(encoding="utf-8"))["scores"]
    assert scores["total"] == 32
    assert scores["exact_match"] >= 95
