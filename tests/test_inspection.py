"""What `data inspect` finds in KorQuAD 1.0, against the figures of the published scripts' own rules."""

from pathlib import Path

import pytest

from bigqa.models.sources import load_tokenizer, resolve
from bigqa.tasks.inspection import inspect_file
from bigqa.tasks.windows import Lengths


@pytest.mark.parametrize(
    ("vocabulary", "windows", "published", "ours"),
    [
        pytest.param("kobigbird", 6527, (98.75, 99.84), (98.96, 99.88), marks=pytest.mark.slow),
        pytest.param("mbert_cased", 7044, (83.65, 98.00), (84.29, 98.22), marks=pytest.mark.slow),
        ("koelectra_repo", 6199, (70.85, 96.22), (71.44, 96.56)),
    ],
)
def test_windows_and_ceilings(
    shared: Path, vocabulary: str, windows: int, published: tuple[float, float], ours: tuple[float, float]
) -> None:
    file = shared / "data" / "vocab" / f"{vocabulary}_vocab.txt"
    tokenizer = load_tokenizer(resolve("enliple-small", tokenizer=str(file)))
    data = shared / "data" / "korquad1" / "KorQuAD_v1.0_dev.json"
    found = inspect_file(data, tokenizer, Lengths())
    assert found["counts"] == {"articles": 140, "paragraphs": 960, "questions": 5774, "answers": 5774}
    at_512 = found["seq_512"]
    assert at_512["windows"] == windows
    assert at_512["answers_out_of_reach_share"] == 0
    assert (at_512["published_ceiling_em"], at_512["published_ceiling_f1"]) == pytest.approx(published, abs=0.01)
    # Offsets keep what the alignment of the published scripts loses, so our ceiling is the higher one.
    assert (at_512["ceiling_em"], at_512["ceiling_f1"]) == pytest.approx(ours, abs=0.01)
    assert found["seq_384"]["padding_share"] < at_512["padding_share"]
