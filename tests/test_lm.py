"""Language models: the loss in pieces, answers alone, conversations kept apart, and a run that learns to answer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import here, train_here
from tables import write_jsonl
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, pipeline

from bigqa.engine.attention import kernels
from bigqa.engine.attention.packing import can_pack
from bigqa.errors import BigqaError
from bigqa.models.sources import load_tokenizer, resolve
from bigqa.sample import FOLDER
from bigqa.tasks.lm import head_loss
from bigqa.tasks.lm.conversations import Told, read_conversations, rows_of
from bigqa.tasks.lm.task import LanguageModel

TEMPLATE = (
    "{% for m in messages %}{{ '1' if m['role'] == 'assistant' else '0' }} {{ m['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}1 {% endif %}"
)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
PAIRS = {"봄 ?": "산", "해 ?": "강", "별 ?": "섬"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = load_tokenizer(resolve("tiny"))
    found.chat_template = TEMPLATE
    return found


@pytest.mark.parametrize("elements", [1, 40, 10**6])
@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_in_pieces_is_the_whole_one(elements: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "PIECE_ELEMENTS", elements)
    torch.manual_seed(0)
    leaves = [torch.randn(7, 5), torch.randn(11, 5), torch.randn(11)][: 3 if bias else 2]
    label, share = torch.randint(0, 11, (7,)), torch.rand(7)

    def results(whole: bool) -> list[torch.Tensor]:
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        hidden, weight, *rest = inputs
        added = rest[0] if rest else None
        if whole:
            losses = functional.cross_entropy(functional.linear(hidden, weight, added), label, reduction="none")
        else:
            losses = head_loss.head_losses(hidden, weight, added, label)
        (losses * share).sum().backward()
        return [losses.detach(), *(one.grad for one in inputs if one.grad is not None)]

    for one, other in zip(results(False), results(True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_logits_are_never_there_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    linear = functional.linear
    monkeypatch.setattr(functional, "linear", lambda *args: sizes.append(args[0].shape[0]) or linear(*args))
    for vocabulary in (2**10, 2**16):
        monkeypatch.setattr(head_loss, "PIECE_ELEMENTS", 2**17)
        sizes.clear()
        weight = torch.randn(vocabulary, 2, requires_grad=True)
        head_loss.head_losses(torch.randn(300, 2), weight, None, torch.zeros(300, dtype=torch.long)).sum().backward()
        assert max(sizes) * vocabulary <= 2**17 and sum(sizes) == 2 * 300


def llama(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **SIZES)
    return LlamaForCausalLM(config).eval()


def test_losses_are_the_librarys_padded_and_packed(tokenizer: Any) -> None:
    model, task = llama(tokenizer), LanguageModel(0, False)
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"input_ids": torch.randint(4, 100, (n,), generator=generator).tolist(), "answer": [0] * 3 + [1] * (n - 3)}
        for n in (9, 20, 5)
    ]  # fmt: skip

    def alone(row: Any) -> torch.Tensor:
        ids = torch.tensor(row["input_ids"])[None]
        label = ids.masked_fill(torch.tensor(row["answer"])[None] == 0, -100)
        return model(input_ids=ids, labels=label).loss * sum(row["answer"])

    wanted = torch.stack([alone(row) for row in rows])
    wanted.sum().backward()
    gradient = model.lm_head.weight.grad.clone()
    assert kernels.use(model) and can_pack(model, task, 32)
    for batch in (task.collate(rows), task.pack(rows)):
        model.zero_grad()
        (found,) = task.logits(model, batch)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        task.loss_sum(model, batch).backward()
        torch.testing.assert_close(model.lm_head.weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_adapters_leave_the_words_as_they_are(tokenizer: Any) -> None:
    """The head of a language model is old and large: neither trained nor adapted, unlike a classifier's."""
    pytest.importorskip("peft")
    from bigqa.engine import adapters

    model, task = llama(tokenizer), LanguageModel(0, False)
    adapters.apply(model, "lora")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained) and not any("lm_head" in name for name in trained)
    rows = [{"input_ids": [5, 6, 7, 8], "answer": [0, 0, 1, 1]}]
    task.loss_sum(model, task.collate(rows)).backward()
    assert model.lm_head.weight.grad is None
    adapters.merge(model)
    assert not any("lora_" in name for name in model.state_dict())


def test_a_plan_for_a_language_model_knows_no_whole_logits(tokenizer: Any) -> None:
    """A vocabulary of 100 times as many words costs its embedding and head, and no logits of every token."""
    from transformers import AutoConfig

    from bigqa.plan.planner import estimator_for
    from bigqa.strategy import Strategy
    from bigqa.tasks.registry import kind_of

    def activations(vocabulary: int) -> int:
        config = AutoConfig.for_model("llama", vocab_size=vocabulary, max_position_embeddings=512, **SIZES)
        found = estimator_for(config, kind_of("lm"))
        memory = found.estimate(Strategy(precision="fp32", device="cpu"), 8, 512, accumulating=False)
        return memory.by_category["activations"] + memory.by_category["temporaries"]

    few, many = activations(2_000), activations(100_000)
    assert many - few < 8 * 512 * 98_000 * 4 / 4  # of whole logits, one copy would be four times as much


def learned(path: Path, tokenizer: Any, seq_len: int = 64, *, drop: bool = False) -> tuple[list[str], Told]:
    told = Told()
    rows = list(rows_of(read_conversations(path, tokenizer), tokenizer, seq_len, drop=drop, told=told))
    texts = [[i for i, is_answer in zip(row["input_ids"], row["answer"], strict=True) if is_answer] for row in rows]
    return [tokenizer.decode(ids).replace(" .", ".") for ids in texts], told


def test_answers_alone_are_learned(tokenizer: Any, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "봄 ?"}, {"role": "assistant", "content": "산"},
        {"role": "user", "content": "해 ?"}, {"role": "assistant", "content": "강"},
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "c.jsonl", [{"messages": messages}, {"prompt": "봄 ?", "completion": " 산 ."}])
    found, _ = learned(path, tokenizer)
    assert found == ["산. 강. [SEP]", "산. [SEP]"]


def test_what_is_too_long_is_cut_or_left_out_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    values: list[dict[str, object]] = [{"prompt": "봄 " * n, "completion": " 산 산"} for n in (1, 4, 9)]
    path = write_jsonl(tmp_path / "c.jsonl", values)
    found, told = learned(path, tokenizer, 5)
    assert found == ["산 산 [SEP]", "산"] and (told.all, told.longer, told.left_out) == (3, 2, 1)
    found, told = learned(path, tokenizer, 5, drop=True)
    assert found == ["산 산 [SEP]"] and told.left_out == 2


FAULTS: dict[str, dict[str, object]] = {
    'has neither "messages" nor "prompt"': {"text": "봄"},
    "'completion' is empty": {"prompt": "봄", "completion": ""},
    '"messages" is no list': {"messages": "봄"},
    "no message is the assistant's": {"messages": [{"role": "user", "content": "봄"}]},
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_fault_is_one_line_with_its_row(words: str, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(BigqaError) as caught:
        list(read_conversations(write_jsonl(tmp_path / "c.jsonl", [FAULTS[words]]), tokenizer))
    assert words in str(caught.value) and "row 1" in str(caught.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    config = {"model_type": "llama", "vocab_size": 431, "max_position_embeddings": 64, "pad_token_id": 0} | SIZES
    (folder / "config.json").write_text(json.dumps(config))
    values: list[dict[str, object]] = [{"prompt": one, "completion": " " + two} for one, two in PAIRS.items()]
    data = write_jsonl(folder / "data.jsonl", values * 4)
    done = train_here(
        "--task", "lm", "--model", folder / "config.json", "--tokenizer", FOLDER, "--train-file", data,
        "--dev-file", data, "--out", folder / "run", "--device", "cpu", "--precision", "fp32", "--seq-len", "16",
        "--lr", "1e-2", "--global-batch", "6", "--micro-batch", "6", "--epochs", "40", "--no-check",
    )  # fmt: skip
    assert done.returncode == 0 and "perplexity" in done.stdout, done.stderr
    return folder


def test_a_run_learns_its_answers_and_generates_them(trained: Path) -> None:
    assert json.loads((trained / "run" / "report.json").read_text())["scores"]["perplexity"] < 1.2
    assert json.loads((trained / "run/model/config.json").read_text())["use_cache"]  # as before it was trained
    prompts = write_jsonl(trained / "prompts.jsonl", [{"prompt": one} for one in PAIRS])
    out = trained / "answers.jsonl"
    words = ["--max-new-tokens", "4", "--precision", "fp32"]
    done = here("generate", trained / "run" / "model", prompts, out, *words)
    assert done.returncode == 0 and "3 answers" in done.stdout, done.stderr
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert {one["prompt"]: one["completion"] for one in found} == PAIRS
    model = AutoModelForCausalLM.from_pretrained(trained / "run" / "model")
    asked = pipeline("text-generation", model=model, tokenizer=load_tokenizer(resolve("tiny")))
    told = asked("봄 ?", max_new_tokens=1, do_sample=False, add_special_tokens=False)[0]["generated_text"]
    assert "산" in told
