"""Released checkpoints: the original code's logits, and refusals that name the key."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from bigqa.errors import BigqaError
from bigqa.models.enliple import convert

CASES = {
    "large_base": ("auto", "qa_head.bin"),
    "large_finetuned": ("auto", None),
    "small_finetuned": ("gelu_new", None),
}


@pytest.fixture
def released(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared / "fixtures" / "enliple" / "small_finetuned", tmp_path / "released"))


def change(folder: Path, **values: torch.Tensor | None) -> None:
    state = torch.load(folder / "model.bin", weights_only=True)
    for name, value in values.items():
        state.pop(name) if value is None else state.update({name: value})
    torch.save(state, folder / "model.bin")


def assert_refused(folder: Path, *texts: str) -> None:
    out = folder.parent / "out"
    with pytest.raises(BigqaError) as caught:
        convert(folder, out, activation="gelu_new")
    for text in texts:
        assert text in str(caught.value)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", CASES)
def test_logits_and_loss_are_those_of_the_original_code(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "fixtures" / "enliple" / name
    activation, head = CASES[name]
    convert(source, tmp_path / "out", activation=activation, qa_head=source / head if head else None)
    expected = json.loads((source / "expected.json").read_text())
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    names = ("input_ids", "token_type_ids", "attention_mask", "start_positions", "end_positions")
    output = model(**{name: torch.tensor(expected[name]) for name in names})
    for ours, theirs in ((output.start_logits, "start_logits"), (output.end_logits, "end_logits")):
        torch.testing.assert_close(ours, torch.tensor(expected[theirs]), rtol=0, atol=1e-5)
    assert output.loss.item() == pytest.approx(expected["loss"], abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_an_empty_line_of_the_vocabulary_keeps_its_id(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "fixtures" / "enliple" / name
    activation, head = CASES[name]
    convert(source, tmp_path / "out", activation=activation, qa_head=source / head if head else None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    lines = (source / "vocab.txt").read_text(encoding="utf-8").split("\n")
    empty = json.loads((source / "expected.json").read_text())["empty_vocab_line_id"]
    assert lines[empty] == ""
    assert tokenizer.convert_tokens_to_ids(lines[empty + 1]) == empty + 1
    assert tokenizer.is_fast


def test_a_missing_key_is_named(released: Path) -> None:
    change(released, **{"bert.encoder.layer.0.ffn.fc1.weight": None})
    assert_refused(released, "bert.encoder.layer.0.intermediate.dense.weight")


def test_an_unknown_key_is_named(released: Path) -> None:
    change(released, **{"bert.encoder.layer.0.adapter.weight": torch.zeros(2)})
    assert_refused(released, "bert.encoder.layer.0.adapter.weight")


def test_a_wrong_shape_is_named(released: Path) -> None:
    change(released, **{"qa_outputs.weight": torch.zeros(2, 7)})
    assert_refused(released, "qa_outputs.weight", "(2, 7)")


def test_a_pickle_that_runs_code_is_refused(released: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (print, ("run",))

    (released / "model.bin").write_bytes(pickle.dumps({"x": Evil()}))
    assert_refused(released, "model.bin", "not a pickle of plain tensors")


def test_a_value_that_is_no_tensor_is_refused(released: Path) -> None:
    torch.save({"bert.x": 3}, released / "model.bin")
    assert_refused(released, "'bert.x' is a int")


def test_a_vocabulary_of_another_size_is_refused(released: Path) -> None:
    with (released / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("하나더\n")
    assert_refused(released, "321", "320")


def test_a_base_checkpoint_without_its_head_is_refused_for_prediction(shared: Path) -> None:
    from bigqa.models.sources import load_config, load_model, resolve

    source = resolve(str(shared / "fixtures" / "enliple" / "large_base"))
    with pytest.raises(BigqaError, match=r"qa_outputs"):
        load_model(source, load_config(source), require_head=True)
    assert load_model(source, load_config(source)).qa_outputs.weight.shape == (2, 32)
