"""A checkpoint's weights: all of them in the model, whatever their prefix, or refused by name; only a head is new.

Held against the files themselves, and against the library's own loading of what is saved.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_weights import SIZES, State, change, loaded, refusal, save_bert, weights
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    BartForConditionalGeneration,
    BertForQuestionAnswering,
    BertModel,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    ElectraForPreTraining,
    GPT2LMHeadModel,
    T5ForConditionalGeneration,
)

from bigqa.errors import BigqaError
from bigqa.models.sources import load, load_config, resolve


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fine-tuned model's folder."""
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def folder(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "model"))


def renamed(**prefixes: str) -> Callable[[State], State]:
    """Return a change of the prefixes of names: of the backbone (`bert`), of the head (`qa_outputs`)."""

    def new(name: str) -> str:
        top, _, rest = name.partition(".")
        return f"{prefixes['bert']}{rest}" if top == "bert" else f"{prefixes.get('head', '')}{name}"

    return lambda state: {new(name): value for name, value in state.items()}


def assert_same(model: Any, state: State) -> None:
    mine = model.state_dict()
    assert set(mine) == set(state)
    for name, value in state.items():
        assert torch.equal(mine[name], value), name


@pytest.mark.parametrize("name", ["llama-lm", "qwen3-lm", "mistral-lm"])
def test_a_language_model_is_the_backbone_and_stays_so_when_saved(shared: Path, tmp_path: Path, name: str) -> None:
    folder = shared / "cases" / "public" / "01-llama-qwen3-random-weights" / name
    found = loaded(folder)
    theirs = {key.removeprefix("model."): value for key, value in weights(folder).items() if key != "lm_head.weight"}
    ours = {key.partition(".")[2]: value for key, value in found.model.state_dict().items() if "qa_outputs" not in key}
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key].float()) for key in theirs)
    assert set(found.new) == {"qa_outputs.weight", "qa_outputs.bias"}
    assert found.says() == f"weights of {folder}: new and random: qa_outputs; not used: lm_head"
    found.model.save_pretrained(tmp_path)
    assert_same(AutoModelForQuestionAnswering.from_pretrained(tmp_path), found.model.state_dict())


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("", ""),
        ("roberta.", ""),
        ("model.", ""),
        ("transformer.", ""),
        ("module.bert.", "module."),
        ("model.bert.", "model."),
        ("_orig_mod.module.bert.", "_orig_mod.module."),
        ("model.", "model."),
        ("bert.", "module."),
    ],
)
def test_a_prefix_is_mapped_and_saved_as_the_librarys(folder: Path, tmp_path: Path, prefix: str, head: str) -> None:
    state = weights(folder)
    change(folder, renamed(bert=prefix, head=head))
    found = loaded(folder, require_head=True)
    assert_same(found.model, state)
    assert found.new == ()
    assert prefix in ("", "bert.") or f"read as bert.: {prefix}" in str(found.says())
    found.model.save_pretrained(tmp_path / "saved")
    assert set(weights(tmp_path / "saved")) == set(state)


@pytest.mark.parametrize("prefix", ["bert.", "module.bert."])
def test_names_of_tensorflow_are_mapped(folder: Path, tmp_path: Path, prefix: str) -> None:
    state = weights(folder)

    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    change(folder, lambda now: {old(key): value for key, value in renamed(bert=prefix)(now).items()})
    found = loaded(folder)
    assert_same(found.model, state)
    found.model.save_pretrained(tmp_path / "saved")
    assert set(weights(tmp_path / "saved")) == set(state)


def test_names_of_tensorflow_that_the_library_does_not_know_are_mapped(tmp_path: Path) -> None:
    """It maps those of `LayerNorm` by itself; DistilBERT's normalizations have other names."""
    sizes = {"vocab_size": 60, "dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2}
    DistilBertForQuestionAnswering(DistilBertConfig(**sizes)).save_pretrained(tmp_path)
    state = weights(tmp_path)

    def old(name: str) -> str:
        return name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta")

    change(tmp_path, lambda now: {old(key): value for key, value in now.items()})
    assert_same(loaded(tmp_path).model, state)


def test_shards_and_pickles_are_read_whole(folder: Path, tmp_path: Path) -> None:
    state = weights(folder)
    BertForQuestionAnswering.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert_same(loaded(tmp_path / "shards").model, state)
    torch.save(renamed(bert="module.bert.", head="module.")(state), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_same(loaded(folder).model, state)


@pytest.mark.parametrize(
    ("make", "more", "said"),
    [
        (BertModel, {"model_type": "bert"}, "new and random: qa_outputs; not used: pooler"),
        (AutoModelForMaskedLM.from_config, {"model_type": "roberta"}, "new and random: qa_outputs; not used: lm_head"),
        (ElectraForPreTraining, {"model_type": "electra"}, "not used: discriminator_predictions"),
        (DebertaV2ForMaskedLM, {"model_type": "deberta-v2"}, "new and random: qa_outputs"),
        (AutoModelForMaskedLM.from_config, {"model_type": "squeezebert", "embedding_size": 16}, "new and random"),
        (GPT2LMHeadModel, {"model_type": "gpt2", "n_inner": 8}, "new and random: qa_outputs"),
        (BartForConditionalGeneration, {"model_type": "bart", "d_model": 16}, "new and random: qa_outputs"),
        (
            T5ForConditionalGeneration,
            {"model_type": "t5", "d_model": 16, "num_layers": 1},
            "new and random: qa_outputs",
        ),
    ],
    ids=lambda one: one.get("model_type") if isinstance(one, dict) else "",
)
def test_other_tasks_checkpoints_give_their_backbone(
    tmp_path: Path, make: Any, more: dict[str, Any], said: str
) -> None:
    config = AutoConfig.for_model(**(SIZES | more))
    trained = make(config)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.uniform_(-1, 1)
    trained.save_pretrained(tmp_path)
    found = loaded(tmp_path)
    assert said in str(found.says())
    ours = [one for name, one in found.model.named_parameters() if name not in found.new]
    theirs = [*trained.parameters()]
    # By values, not names: that is what loading by names could get wrong.
    sums = {round(float(one.detach().double().sum()), 9) for one in theirs}
    assert len(ours) > 10
    assert all(round(float(one.detach().double().sum()), 9) in sums for one in ours)


def lost(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (lambda state: lost(state, QUERY), f"lack {QUERY};"),
        (lambda state: lost(state, QUERY) | {"bert.encoder.layer.1.attention.self.q.weight": state[QUERY]}, "self.q."),
        (
            lambda state: state | {"bert.encoder.layer.2.output.dense.bias": torch.zeros(16)},
            "layer.2.output.dense.bias",
        ),
        (lambda state: state | {"encoder.layer.2.output.dense.bias": torch.zeros(16)}, "encoder.layer.2.output"),
        (lambda state: state | {"bert.adapter.down.weight": torch.zeros(4)}, "bert.adapter.down.weight"),
        (
            lambda state: state | {"bert.embeddings.position_embeddings.weight": torch.zeros(48, 16)},
            r"position_embeddings.weight has the shape (48, 16) in the weights and (32, 16)",
        ),
        (
            lambda state: state | {"bert.embeddings.word_embeddings.weight": torch.zeros(70, 16)},
            r"word_embeddings.weight has the shape (70, 16)",
        ),
        (lambda state: state | {"qa_outputs.weight": torch.zeros(3, 16)}, "qa_outputs.weight has the shape (3, 16)"),
        (
            lambda state: renamed(bert="question.")(state) | renamed(bert="context.")(state),
            "2 times, under context. and question.",
        ),
        (lambda state: {f"x.{number}": value for number, value in enumerate(state.values())}, "lack bert."),
    ],
)
def test_what_is_amiss_is_named(folder: Path, changed: Callable[[State], State], named: str) -> None:
    change(folder, changed)
    assert named in refusal(folder)


def test_a_weight_that_is_no_number_is_named(folder: Path) -> None:
    """A step from it is NaN all over, and so is the model that would be saved."""
    key = "bert.encoder.layer.0.output.dense.bias"
    change(folder, lambda state: state | {key: state[key].index_fill(0, torch.tensor([3]), float("nan"))})
    assert f"{key} holds NaN or infinity" in refusal(folder)


def test_a_model_of_the_hub_is_named_by_its_id(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BigqaError, match="name it by its id, klue/bert-base"):
        resolve("https://huggingface.co/klue/bert-base/tree/main")
    inner = tmp_path / "models--klue--bert-base" / "snapshots" / "abc"
    inner.parent.mkdir(parents=True)
    folder.rename(inner)
    with pytest.raises(BigqaError, match=f"{inner} does: name that"):
        load_config(resolve(str(inner.parents[1])))


def test_a_head_of_which_a_part_is_missing_answers_nothing(folder: Path) -> None:
    change(folder, lambda state: lost(state, "qa_outputs.bias"))
    assert "its weights lack qa_outputs.bias" in refusal(folder, require_head=True)


def test_a_classifiers_labels_are_not_the_heads(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.num_labels = 5
    config.save_pretrained(folder)
    change(folder, lambda state: {key: value for key, value in state.items() if "qa_outputs" not in key})
    assert loaded(folder).model.qa_outputs.weight.shape == (2, 16)


def test_random_weights_are_said_to_be_so(bert: Path) -> None:
    found = loaded(bert / "config.json")
    assert found.says() == f"weights of {bert / 'config.json'}: new and random: all of them"
    tiny = resolve("tiny")  # a preset, which lies in a folder that nobody has named
    assert load(tiny, load_config(tiny)).says() == "weights of tiny: new and random: all of them"
    with pytest.raises(BigqaError, match="tiny has no weights"):
        load(tiny, load_config(tiny), require_head=True)


@pytest.mark.parametrize("peft", [True, False])
def test_an_adapter_beside_the_weights_is_refused(folder: Path, peft: bool) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/other"}', encoding="utf-8")
    if not peft:
        (folder / "model.safetensors").unlink()
    assert "holds an adapter" in refusal(folder)


def test_quantized_weights_are_refused(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(folder)
    assert "quantized weights" in refusal(folder)
