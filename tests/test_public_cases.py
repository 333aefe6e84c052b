"""What others reported of their tools, tried on this one: each case's own script, and its right answer.

The scripts run commands of minutes, so all but the first test are slow. What a case is an example of is held, in much
less time, by the tests that `KINDS` names.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bigqa.sample import FOLDER

TABLE = "GPU figures are predictions"
"""What stands below a table of `bigqa probe`: no row has ended it."""


def said(*words: str) -> Callable[[str], bool]:
    return lambda output: all(word in output for word in words)


def probed(output: str) -> bool:
    """Whether each model that the script names has got its table."""
    lines = output.splitlines()
    return len(lines) == 18 and all(TABLE in line for line in lines[1::2])


def one_of_two(output: str) -> bool:
    return output.count("is in use by a run on ") == 1 and re.search(r"^40 .*metrics\.jsonl", output, re.M) is not None


def stopped(output: str) -> bool:
    """Whether it was no lack of memory: it ended by the signal, or had not yet when the script looked."""
    return "cpu-recompute" not in output and ("ended rc=130" in output or "after 8 s: running" in output)


RIGHT: dict[str, Callable[[str], bool]] = {
    "01": lambda output: output.count("in model: True") == 3 and "not used: lm_head" in output,
    "02": said('"num_processes": 2'),
    "03": stopped,
    "04": said('"ceiling_em": 100.0', "step 2/2", "model: "),
    "07": probed,
    "09": said(TABLE),
    "13": one_of_two,
    "14": said("bigqa: the tokenizer gives the last special token of a pair token type 2", "has 2 (0 to 1)"),
    "16": said("step 2/2", "model: "),
    "18": lambda output: (
        output.count("counts unanswerable") == 2 and re.search(r"squad2 .* 50\.00", output) is not None
    ),
    "19": lambda output: output.count("counts questions") == 4 and output.count("a Git LFS pointer") == 1,
    "21": said("bigqa: ", "--num-processes"),
}
KINDS = {
    "01": ["test_weights.py::test_a_language_model_is_the_backbone_and_stays_so_when_saved"],
    "02": ["test_processes.py::test_without_a_gpu_processes_that_were_asked_for_none_are_one_run"],
    "03": ["test_workers.py::test_a_stop_starts_nothing_anew", "test_signals.py::test_signals_at_random_moments"],
    "04": ["test_tokenizers.py::test_a_tokenizer_saved_after_use_loses_no_answer"],
    "07": ["test_model_types.py::test_a_published_configuration_is_planned"],
    "09": ["test_model_types.py::test_a_published_configuration_is_planned"],
    "13": ["test_lock.py::test_a_run_and_its_resume_and_another_start"],
    "14": ["test_tokenizers.py::test_token_types_that_the_model_has_not_are_refused_before_data_is_read"],
    "16": ["test_terminals.py::test_signs_that_an_encoding_lacks_are_spelled_out"],
    "18": ["test_impossible.py::test_the_public_case"],
    "19": ["test_containers.py::test_the_public_cases"],
    "21": ["test_ranges.py::test_a_number_out_of_range_is_a_usage_error"],
}


def test_every_case_has_its_right_answer_and_a_test_of_its_kind(shared: Path) -> None:
    numbers = {folder.name[:2] for folder in (shared / "cases" / "public").iterdir()}
    assert numbers == set(RIGHT) == set(KINDS)
    for file, _, name in (one.partition("::") for kinds in KINDS.values() for one in kinds):
        assert f"\ndef {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), name


@pytest.mark.slow
@pytest.mark.parametrize("number", RIGHT)
def test_a_public_case(shared: Path, tmp_path: Path, number: str) -> None:
    [folder] = (shared / "cases" / "public").glob(f"{number}-*")
    command = tmp_path / "bigqa"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bigqa.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    names = {"BIGQA": str(command), "PYTHON": sys.executable, "SAMPLE": str(FOLDER), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(folder / "run.sh")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=os.environ | names,
    )
    print(done.stdout)
    assert "Traceback" not in done.stdout and RIGHT[number](done.stdout), done.stdout
