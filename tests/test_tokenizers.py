"""A tokenizer's saved state is not obeyed, and what fits neither model nor text is refused before data is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import here, train_here
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from bigqa.errors import BigqaError
from bigqa.models.sources import load_config, load_tokenizer, resolve
from bigqa.models.tokenizers import description, doubts
from bigqa.run.together import check_together
from bigqa.sample import FOLDER
from bigqa.tasks.coverage import check_text, unknown_share
from bigqa.tasks.features import build_features
from bigqa.tasks.windows import Lengths

LENGTHS = Lengths(seq_len=96, doc_stride=24, max_query_length=32)
SHORT = ("--max-steps", "1", "--limit", "8", "--seq-len", "64", "--doc-stride", "16", "--max-query-length", "24",
         "--global-batch", "4", "--no-check", "--device", "cpu", "--precision", "fp32")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a tiny model's folder with the sample's tokenizer in one file."""
    path = tmp_path / "model"
    config = AutoConfig.for_model(
        "bert", vocab_size=431, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=128,
    )  # fmt: skip
    BertForQuestionAnswering(config).save_pretrained(path)
    load_tokenizer(resolve("tiny")).save_pretrained(path)
    edit(path, lambda now: now.update(tokenizer_class="PreTrainedTokenizerFast"), "tokenizer_config.json")
    return path


def edit(folder: Path, change: Callable[[dict[str, Any]], None], name: str = "tokenizer.json") -> None:
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    change(values)
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def rows(tokenizer: Any, cache: Path) -> list[dict[str, Any]]:
    return build_features(FOLDER / "dev.json", tokenizer, LENGTHS, training=False, cache_dir=cache).table.to_pylist()


def train(folder: Path, **options: Path) -> Any:
    files = {"train_file": FOLDER / "train.json"} | options
    words = [word for name, value in files.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return train_here("--model", folder, "--out", folder.parent / "run", *words, *SHORT)


def assert_refused_in_a_line(done: Any, *texts: str) -> None:
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert all(text in line for text in texts), line


TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 4}
PADDING = {
    "strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "[PAD]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("tokenizer.json", {"truncation": TRUNCATION}),
        ("tokenizer.json", {"truncation": TRUNCATION | {"strategy": "OnlySecond"}}),
        ("tokenizer.json", {"truncation": TRUNCATION | {"direction": "Left"}, "padding": PADDING}),
        ("tokenizer_config.json", {"model_max_length": 16, "truncation_side": "left", "padding_side": "left"}),
        ("tokenizer_config.json", {"max_length": 16, "stride": 4, "truncation_strategy": "only_second", "pad_to": 8}),
    ],
)
def test_saved_truncation_and_padding_change_no_window(folder: Path, file: str, values: dict[str, Any]) -> None:
    edit(folder, lambda now: now.update(values), file)
    plain, used = load_tokenizer(resolve("tiny")), load_tokenizer(resolve(str(folder)))
    cache = folder.parent / "rows"
    assert rows(used, cache / "a") == rows(plain, cache / "b")
    used.save_pretrained(folder / "again")
    kept = json.loads((folder / "again" / "tokenizer.json").read_text(encoding="utf-8"))
    assert kept["truncation"] is None
    assert kept["padding"] is None


@pytest.mark.parametrize("name", ["trunc", "used"])
def test_a_tokenizer_saved_after_use_loses_no_answer(shared: Path, name: str) -> None:
    folder = shared / "cases" / "public" / "04-saved-truncation-is-obeyed" / name
    done = here("data", "inspect", FOLDER / "dev.json", folder, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["seq_512"]
    assert found["answers_out_of_reach_share"] == 0
    assert found["ceiling_em"] == 100


def test_dropout_of_bpe_is_put_out(tmp_path: Path) -> None:
    letters = "나라의수도는어디인가서울이다"
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(["<unk>", *letters, "서울", "수도"]))}
    merges = [("서", "울"), ("수", "도")]
    made = Tokenizer(models.BPE(vocabulary, merges, dropout=0.9, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<unk>").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["dropout"] is not None
    backend = load_tokenizer(resolve("tiny", tokenizer=str(tmp_path))).backend_tokenizer
    assert {tuple(backend.encode("서울 수도").tokens) for _ in range(20)} == {("서울", "수도")}


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "gpt2", "llama"])
def test_a_folder_without_a_vocabulary_is_refused(folder: Path, kind: str) -> None:
    (folder / "tokenizer.json").unlink()
    edit(folder, lambda now: now.update(model_type=kind, pad_token_id=1), "config.json")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(BigqaError, match=r"vocabulary|cannot be loaded"):
        load_tokenizer(resolve(str(folder)))


@pytest.mark.parametrize("settings", [True, False])
def test_training_and_predicting_refuse_it_in_a_line(folder: Path, settings: bool) -> None:
    (folder / "tokenizer.json").unlink()
    if not settings:
        (folder / "tokenizer_config.json").unlink()
    assert_refused_in_a_line(train(folder), "holds no vocabulary", "--tokenizer")
    done = here("predict", folder, FOLDER / "dev.json", folder.parent / "answers.json")
    assert_refused_in_a_line(done, "holds no vocabulary")
    assert not (folder.parent / "answers.json").exists()


def test_token_types_that_the_model_has_not_are_refused_before_data_is_read(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the data was read")

    monkeypatch.setattr("bigqa.run.fine_tuning.make_rows", read)
    case = Path(
        shutil.copytree(shared / "cases" / "public" / "14-kobert-token-type-2" / "kobert-types", tmp_path / "m")
    )
    assert_refused_in_a_line(train(case), "last special token", "type 2", "has 2")
    done = here("predict", case, FOLDER / "dev.json", tmp_path / "answers.json")
    assert_refused_in_a_line(done, "last special token")


@pytest.mark.parametrize(
    ("place", "part"),
    [(0, "first special token"), (1, "question"), (2, "middle special token"), (3, "context"), (4, "last special")],
)
def test_every_part_of_the_template_is_looked_at(folder: Path, place: int, part: str) -> None:
    def change(values: dict[str, Any]) -> None:
        [[_, what]] = values["post_processor"]["pair"][place].items()
        what["type_id"] = 2

    edit(folder, template)
    edit(folder, change)
    source = resolve(str(folder))
    with pytest.raises(BigqaError, match=f"{part}.* type 2"):
        check_together(source, load_tokenizer(source), load_config(source))
    edit(folder, lambda now: now.update(type_vocab_size=3), "config.json")
    check_together(source, load_tokenizer(source), load_config(source))
    edit(folder, lambda now: now.update(type_vocab_size=1), "config.json")  # takes none: none is given to it
    check_together(source, load_tokenizer(source), load_config(source))


def template(values: dict[str, Any]) -> None:
    """Put BERT's template of a pair in place of the post-processor that is named after it."""
    special = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]", "[SEP]")]
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    known = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (("[CLS]", 2), ("[SEP]", 3))}
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special[0], first, special[1]],
        "pair": [special[0], first, special[1], second, special[2]],
        "special_tokens": known,
    }


def test_ids_beyond_the_embedding_are_named(folder: Path) -> None:
    source = resolve(str(folder))
    tokenizer = load_tokenizer(source)
    tokenizer.add_tokens(["김치찌개"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BigqaError, match=r"432 entries, and weights for 431: nothing for '김치찌개' \(id 431\)"):
        check_together(source, load_tokenizer(source), load_config(source))


def test_an_id_of_the_template_beyond_the_embedding_is_named(folder: Path) -> None:
    edit(folder, template)
    edit(folder, lambda now: now["post_processor"]["special_tokens"]["[SEP]"].update(ids=[1000]))
    source = resolve(str(folder))
    with pytest.raises(BigqaError, match=r"id 1000, .* 431 embeddings"):
        check_together(source, load_tokenizer(source), load_config(source))


def test_what_looks_like_another_models_vocabulary_is_said(folder: Path) -> None:
    tokenizer = load_tokenizer(resolve(str(folder)))
    assert doubts(tokenizer, 431) == []
    assert "has 431 entries and the model's embedding 32000" in doubts(tokenizer, 32000)[0]
    with (folder / "vocab.txt").open("w", encoding="utf-8") as file:
        file.write("\n".join([*tokenizer.get_vocab(), "Seoul"]))
    (folder / "tokenizer.json").unlink()
    edit(folder, lambda now: now.update(do_lower_case=True, strip_accents=False), "tokenizer_config.json")
    edit(folder, lambda now: now.pop("tokenizer_class"), "tokenizer_config.json")
    assert "lower-cases" in doubts(load_tokenizer(resolve(str(folder))), 432)[0]


def test_a_tokenizer_whose_two_files_disagree_is_said(folder: Path) -> None:
    source = resolve(str(folder))
    assert check_together(source, load_tokenizer(source), load_config(source)) == []
    edit(folder, lambda now: now["normalizer"].update(strip_accents=True))
    assert check_together(source, load_tokenizer(source), load_config(source)) == []
    edit(folder, lambda now: now.update(tokenizer_class="BertTokenizer"), "tokenizer_config.json")
    [line] = check_together(source, load_tokenizer(source), load_config(source))
    assert "tokenizer.json and tokenizer_config.json" in line
    assert "'서울은 Seoul + 나라'" in line


def test_a_tokenizer_of_one_file_is_that_file(folder: Path) -> None:
    """The library takes its class's own rules: lower case and without accents, Hangul was unknown all over."""
    wanted = load_tokenizer(resolve(str(folder)))
    (folder / "tokenizer_config.json").unlink()
    source = resolve(str(folder))
    alone = load_tokenizer(source)
    assert description(alone) == description(wanted) and alone.pad_token == "[PAD]"
    assert check_together(source, alone, load_config(source)) == []


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_pointer_is_no_tokenizer(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", encoding="utf-8")
    with pytest.raises(BigqaError, match=f"{name} is a Git LFS pointer"):
        load_tokenizer(resolve(str(folder)))


def test_a_tokenizer_that_is_nowhere_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(BigqaError, match=f"no tokenizer {tmp_path / 'none'}: it is no folder"):
        load_tokenizer(resolve("bert-base", tokenizer=str(tmp_path / "none")))


def test_unknown_characters_are_counted_not_tokens() -> None:
    tokenizer = load_tokenizer(resolve("tiny"))
    known = next(piece for piece in tokenizer.get_vocab() if len(piece) == 1 and piece.isalpha())
    assert unknown_share(tokenizer, [known * 3]) == (0.0, "")
    assert unknown_share(tokenizer, [f"{known} 읭읭읭읭읭읭 "]) == (6 / 7, "읭읭읭읭읭읭")


def test_text_that_is_mostly_unknown_is_refused_and_a_little_is_said(folder: Path) -> None:
    def data(context: str) -> Path:
        answer = {"text": context[:2], "answer_start": 0}
        paragraph = {"context": context, "qas": [{"id": "1", "question": context[:4], "answers": [answer]}]}
        path = folder.parent / "data.json"
        path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}), encoding="utf-8")
        return path

    tokenizer = load_tokenizer(resolve("tiny"))
    known = " ".join(piece for piece in tokenizer.get_vocab() if len(piece) == 1 and piece.isalpha())
    assert check_text(data(known), tokenizer) is None
    part = len(known.replace(" ", "")) // 10
    assert "unknown to the tokenizer, '읭" in str(check_text(data(f"{known} {'읭' * part}"), tokenizer))
    assert_refused_in_a_line(train(folder, train_file=data(f"{known} {'읭' * part * 20}")), "unknown to the tokenizer")


def test_hangul_taken_apart_is_refused(folder: Path) -> None:
    edit(folder, lambda now: now["normalizer"].update(lowercase=True, strip_accents=True))
    with pytest.raises(BigqaError, match="strip_accents"):
        check_text(FOLDER / "train.json", load_tokenizer(resolve(str(folder))))


def test_a_description_is_of_what_decides_on_tokens(folder: Path) -> None:
    first = description(load_tokenizer(resolve(str(folder))))
    edit(folder, lambda now: now.update(truncation=TRUNCATION, padding=PADDING))
    assert description(load_tokenizer(resolve(str(folder)))) == first
    edit(folder, lambda now: now["normalizer"].update(lowercase=True))
    assert description(load_tokenizer(resolve(str(folder)))) != first


def test_settings_beside_a_vocabulary_are_obeyed(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cafe", "中", "中国", "ㄱ", *(f"a{number}" for number in range(16))]

    def tokens(text: str, *more: str, **settings: Any) -> list[str]:
        (tmp_path / "vocab.txt").write_text("\n".join([*pieces, *more]), encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return load_tokenizer(resolve("tiny", tokenizer=str(tmp_path))).tokenize(text)

    assert tokens("Café", do_lower_case=True, strip_accents=True) == ["cafe"]
    assert tokens("Café", do_lower_case=True) == ["cafe"]
    assert tokens("Café", do_lower_case=True, strip_accents=False) == ["[UNK]"]
    assert tokens("한", "한", do_lower_case=True) == ["한"]  # no syllable would be reached
    assert tokens("Café") == ["cafe"]  # as the library has it, where nothing is said
    assert tokens("Café", "Café") == ["Café"]  # and a vocabulary with capitals is of cased text
    assert tokens("中国") == ["中", "[UNK]"]
    assert tokens("中国", tokenize_chinese_chars=False) == ["中国"]
    decoder = {"24": {"content": "<t>", "special": False}}
    assert tokens("cafe<t>", tokenizer_class="BertTokenizer", added_tokens_decoder=decoder) == ["cafe", "<t>"]
    with pytest.raises(BigqaError, match=r"cannot be loaded|no fast form"):
        tokens("cafe", tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="mecab")


def test_positions_that_are_counted_from_another_padding_are_refused(folder: Path) -> None:
    source, config = resolve(str(folder)), AutoConfig.for_model("roberta", vocab_size=431, pad_token_id=1)
    with pytest.raises(BigqaError, match=r"pads with id 0, .* counts positions from its padding, id 1"):
        check_together(source, load_tokenizer(source), config)
    config.pad_token_id = 0
    check_together(source, load_tokenizer(source), config)


def test_a_template_that_the_model_was_hardly_trained_with_is_said(folder: Path) -> None:
    source = resolve(str(folder))
    edit(folder, template)
    edit(folder, lambda now: now["post_processor"]["pair"][3]["Sequence"].update(type_id=0))
    [line] = check_together(source, load_tokenizer(source), load_config(source))
    assert "question and context the same token type" in line
    edit(folder, lambda now: now.update(post_processor=None))
    lines = check_together(source, load_tokenizer(source), load_config(source))
    assert any("has [CLS], and its template" in line for line in lines)
    assert any("has [SEP], and its template" in line for line in lines)


def test_a_vocabulary_that_is_not_the_models_own_is_said(folder: Path, tmp_path: Path) -> None:
    pieces = (FOLDER / "vocab.txt").read_text(encoding="utf-8").splitlines()
    pieces[10], pieces[11] = pieces[11], pieces[10]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    source = resolve(str(folder), tokenizer=str(tmp_path / "vocab.txt"))
    [line] = check_together(source, load_tokenizer(source), load_config(source))
    assert line.startswith("2 entries of --tokenizer")


def test_predicting_and_inspecting_say_what_is_unknown(folder: Path) -> None:
    paragraph = {
        "context": "읭읭 뷁뷁",
        "qas": [{"id": "1", "question": "읭?", "answers": [{"text": "읭읭", "answer_start": 0}]}],
    }
    data = folder.parent / "data.json"
    data.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}), encoding="utf-8")
    done = here("data", "inspect", data, folder, "--json")
    assert done.returncode == 0, done.stderr
    assert "unknown to the tokenizer, '읭" in done.stderr
    json.loads(done.stdout)
    done = here("predict", folder, data, folder.parent / "answers.json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "unknown to the tokenizer" in done.stderr
