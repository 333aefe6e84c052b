"""Every type of model that the library has a question-answering head for: planned, trained, or refused in a line."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import here, train_here
from hand_made import RATES
from transformers import AutoConfig

from benchmarks import model_types
from benchmarks.common import read_report
from benchmarks.model_types import FOLDER, NAME, PAGE
from benchmarks.small_types import kinds
from bigqa.errors import BigqaError
from bigqa.machine.hardware import planned_gpu
from bigqa.models.sources import load_config, resolve
from bigqa.plan.candidates import Candidate, Workload
from bigqa.plan.machine import Machine
from bigqa.plan.need import need
from bigqa.plan.planner import Planner, estimator_for
from bigqa.plan.question import Question
from bigqa.sample import FOLDER as FOLDER_OF_SAMPLE
from bigqa.show import markers
from bigqa.units import GIB

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 431}
COUNTED = {
    "deberta-v3-xsmall": 70_682_112,
    "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160,
    "mdeberta-v3-base": 278_218_752,
}
"""Parameters without a head, as KerasNLP publishes them beside its copies of the weights."""
CONFIGS = sorted((Path(__file__).parent / "configs").glob("*.json"))
REPORTS = {file.stem: read_report(file) or {} for file in FOLDER.glob("*.json")}


def planned(config: Any, names: list[str] | None, **workload: int) -> dict[str, Candidate]:
    known: dict[str, Any] = {"host_bytes": 64 * GIB, "host_cores": 8, "cpu_bf16": True, "rates": {"cpu": RATES}}
    machine = Machine(gpu=planned_gpu("A100-80", None), **known)
    found = Planner(estimator_for(config), Workload.model_validate(workload), machine).candidates(names)
    return {row.name: row for row in found}


def test_a_row_that_cannot_be_had_is_a_row_that_says_why() -> None:
    """FNet's Fourier transform is of fp32: the other precision ended the whole table."""
    config = AutoConfig.for_model("fnet", **SMALL, max_position_embeddings=130)
    rows = planned(config, ["plain", "plain-fp32", "cpu-fp32"], seq_len=64, global_batch=2)
    assert {name for name, row in rows.items() if row.verdict == "fits"} == {"plain-fp32", "cpu-fp32"}
    assert rows["plain"].verdict == "not possible" and "BFloat16" in rows["plain"].reason


def test_what_cannot_be_had_is_told_beside_what_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQA_WORKERS", "1")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "fnet", "max_position_embeddings": 130} | SMALL), encoding="utf-8")
    rows = need(Question(model=str(file), seq_len=64, global_batch=2))
    assert [row.name for row in rows if not row.reason] == ["plain-fp32"] == [rows[0].name]
    told = here("probe", file, "--seq-len", "64", "--global-batch", "2", "--need").stdout
    assert "plain: not possible: " in told and "is enough (plain-fp32)" in told


def test_a_model_that_wants_more_than_text_is_refused_in_a_line() -> None:
    config = AutoConfig.for_model("lxmert", **SMALL, num_attention_heads=4, l_layers=1, x_layers=1, r_layers=1)
    with pytest.raises(BigqaError, match="windows of text alone: `visual_feats`"):
        estimator_for(config).prepare()


def test_a_strategy_that_a_model_cannot_have_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    file, out = tmp_path / "config.json", tmp_path / "run"
    file.write_text(json.dumps({"model_type": "fnet", "max_position_embeddings": 130} | SMALL), encoding="utf-8")
    words = ["--model", file, "--tokenizer", FOLDER_OF_SAMPLE, "--train-file", FOLDER_OF_SAMPLE / "train.json"]
    words += ["--device", "cpu", "--strategy", "cpu", "--precision", "bf16", "--seq-len", "64", "--out", out]
    done = train_here(*words, "--doc-stride", "16", "--max-query-length", "24")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "this strategy cannot be had: " in done.stderr and "BFloat16" in done.stderr and not out.exists()


def test_every_type_of_the_library_is_in_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [kind for kind in kinds() if kind not in REPORTS and kind not in page.rpartition("not tried yet")[2]] == []


def test_the_table_is_what_its_reports_give() -> None:
    assert markers.between(PAGE.read_text(encoding="utf-8"), NAME) == model_types.table(FOLDER).strip("\n")


def test_what_is_not_refused_has_learned_and_was_packed_as_predicted() -> None:
    for kind, found in REPORTS.items():
        if "refused" not in found:
            first, last = found["learned"]["plain"]
            assert last < first, kind
            assert found["packs"] == found["predicts_packed"], kind


@pytest.mark.parametrize("name", ["longformer-base-4096", "gpt2-xl"])
def test_a_published_configuration_is_planned(name: str) -> None:
    """The first reads its mask and has a list of windows; the layers of the second are no `nn.Linear`."""
    [file] = [file for file in CONFIGS if file.stem == name]
    rows = planned(load_config(resolve(str(file))), ["recompute", "lora"], seq_len=128, global_batch=2)
    assert {row.verdict for row in rows.values()} == {"fits"}


def test_forty_published_configurations_have_a_head() -> None:
    assert len(CONFIGS) >= 40
    assert {load_config(resolve(str(file))).model_type for file in CONFIGS} <= set(kinds())


@pytest.mark.parametrize("name", COUNTED)
def test_a_published_configuration_is_of_the_size_that_others_count(name: str) -> None:
    config = load_config(resolve(str(CONFIGS[0].parent / f"{name}.json")))
    assert estimator_for(config).num_parameters == COUNTED[name] + 2 * (config.hidden_size + 1)


def test_a_type_without_the_head_is_refused_with_those_that_it_has() -> None:
    done = here("probe", CONFIGS[0].parent / "causal" / "gemma-2b.json")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "gemma have no question-answering head; they have a sequence-classification head and a " in done.stderr


@pytest.mark.slow
def test_a_causal_model_without_the_head_is_planned_for_another_task() -> None:
    done = here("probe", CONFIGS[0].parent / "causal" / "gemma-2b.json", "--task", "lm", "--gpu", "A100-80", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["candidates"]


@pytest.mark.slow
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_row_of_a_published_configuration_is_judged(file: Path) -> None:
    rows = planned(load_config(resolve(str(file))), None, seq_len=256)
    assert len(rows) > 30
    impossible = {row.reason for row in rows.values() if row.verdict == "not possible"}
    if file.stem == "reformer-wiki":  # its positions are of windows of half a million tokens
        assert all(row.memory is None for row in rows.values()) and impossible
    else:
        assert sum(row.memory is not None for row in rows.values()) > 15, impossible


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_every_type_is_trained_or_refused_in_a_line(kind: str) -> None:
    found = model_types.in_a_fork(kind)
    assert found.get("refused") == REPORTS[kind].get("refused")
    if "refused" not in found:
        first, last = found["learned"]["plain"]
        assert last < first
        assert found["packs"] == found["predicts_packed"]
