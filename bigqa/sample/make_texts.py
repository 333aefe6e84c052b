"""Makes the samples of the other tasks: comments with labels, and conversations of a request and its answer.

Run: `python -m bigqa.sample.make_texts [--out DIR]`. In: nothing. Out: folders `comments` and `chats`, each with a
training and a dev file, and a vocabulary; the same bytes on every run.

A comment judges a person and a thing. Whether it attacks hangs on which of them is called what, and so on the order of
its words: which words occur tells little. A request is to shorten a date, to make a sentence polite, or to say where
something was; dates and places of the dev file never occur in training, so that they have to be copied.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigqa.files import write_json, write_text
from bigqa.sample import FOLDER
from bigqa.sample.make_sample import ADJECTIVES, THINGS, particle, pools

SEED = 20201130
COMMENTS, CHATS = {"train": 2400, "dev": 240}, {"train": 2400, "dev": 120}
PEOPLE = ("배우", "감독", "기자", "가수", "사장", "작가", "선수", "의원", "사회자", "진행자", "제작자", "평론가")
WORKS = ("노래", "영화", "무대", "기사", "연출", "대본", "경기", "정책", "음식", "화면", "줄거리", "결말")
GOOD = ("훌륭하", "대단하", "멋지", "뛰어나", "따뜻하", "알차", "반듯하", "믿음직하")
BAD = ("한심하", "형편없", "뻔뻔하", "답답하", "지루하", "엉망이", "초라하", "못나")
ADVERBS = ("", "", "정말 ", "너무 ", "솔직히 ", "오늘도 ", "언제나 ")
ENDINGS = ("다.", "네요.", "네요!", "지요.")
SPECIAL = ("<pad>", "<unk>", "<end>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
Chat = tuple[str, str]
"""What is asked, and the answer."""


def comment(numbers: random.Random) -> tuple[str, str]:
    """Return a comment and its label."""
    judged = [(numbers.choice(PEOPLE), numbers.random() < 0.5), (numbers.choice(WORKS), numbers.random() < 0.5)]
    label = "attack" if not judged[0][1] else "praise" if judged[1][1] else "criticism"
    numbers.shuffle(judged)
    (first, first_good), (second, second_good) = judged
    turn = "고" if first_good == second_good else "지만"
    parts = [_clause(first, first_good, turn, numbers), _clause(second, second_good, numbers.choice(ENDINGS), numbers)]
    return " ".join(parts), label


def _clause(noun: str, good: bool, ending: str, numbers: random.Random) -> str:
    stem = numbers.choice(GOOD if good else BAD)
    return f"{noun}{particle(noun, '은', '는')} {numbers.choice(ADVERBS)}{stem}{ending}"


def chat(values: dict[str, str], numbers: random.Random) -> Chat:
    """Return a request about one happening, and its answer."""
    thing, _, _, happened, _ = numbers.choice(THINGS)
    subject = f"{numbers.choice(ADJECTIVES)} {thing}"
    nominative = subject + particle(subject, "이", "가")
    date, place, polite = values["date"], values["place"], happened[:-1] + "습니다."
    kinds = (
        (f"줄여 쓰면? {date}", _short(date)),
        (f"높임말로: {nominative} {place}에서 {happened}.", f"{nominative} {place}에서 {polite}"),
        (f"어디에서? {nominative} {date} {place}에서 {happened}.", f"{place}에서 {polite}"),
    )
    return numbers.choice(kinds)


def _short(date: str) -> str:
    year, month, day = (int("".join(filter(str.isdigit, part))) for part in date.split())
    return f"{year:04d}-{month:02d}-{day:02d}"


def comments() -> dict[str, list[tuple[str, str]]]:
    """Return both splits; no comment is in them twice."""
    numbers = random.Random(SEED)
    found: dict[str, str] = {}
    while len(found) < sum(COMMENTS.values()):
        text, label = comment(numbers)
        found.setdefault(text, label)
    rows = list(found.items())
    return {"train": rows[: COMMENTS["train"]], "dev": rows[COMMENTS["train"] :]}


def chats() -> dict[str, list[Chat]]:
    """Return both splits; dates and places of one do not occur in the other."""
    numbers = random.Random(SEED)
    everything = pools(numbers, 900)
    found = {}
    for split, size in CHATS.items():
        held = slice(0, 800) if split == "train" else slice(800, None)
        values = {kind: pool[held] for kind, pool in everything.items()}
        found[split] = [
            chat({kind: numbers.choice(pool) for kind, pool in values.items()}, numbers) for _ in range(size)
        ]
    return found


def characters(texts: Iterator[str]) -> list[str]:
    """Return all characters of texts, in order."""
    return sorted({character for text in texts for character in text})


def tokenizer_of(vocabulary: list[str]) -> dict[str, Any]:
    """Return `tokenizer.json` of a tokenizer whose tokens are characters; spaces are among them."""
    numbers = {token: number for number, token in enumerate([*SPECIAL, *vocabulary])}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": numbers[token], "content": token} | plain for token in SPECIAL],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": numbers, "merges": [],
        },
    }  # fmt: skip


def write_comments(out: Path) -> None:
    """Write tables of texts and labels, and WordPiece entries: words, what they end in, and characters."""
    splits = comments()
    for name, rows in splits.items():
        write_text(out / f"{name}.tsv", "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]))
    found = [one for one in characters(text for rows in splits.values() for text, _ in rows) if not one.isspace()]
    words = sorted({*PEOPLE, *WORKS, *GOOD, *BAD, *map(str.strip, ADVERBS)} - {""})
    ends = sorted({"는", "은", "고", "지만", *(ending.rstrip(".!") for ending in ENDINGS)})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*words, *found])]
    pieces += dict.fromkeys(f"##{one}" for one in [*ends, *found])
    write_text(out / "vocab.txt", "\n".join(pieces) + "\n")


def write_chats(out: Path) -> None:
    """Write conversations, and the tokenizer with its chat template."""
    splits = chats()
    for name, rows in splits.items():
        messages = (
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
            for asked, answer in rows
        )
        write_text(out / f"{name}.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in messages))
    vocabulary = characters("".join(row) for rows in splits.values() for row in rows)
    write_json(out / "tokenizer.json", tokenizer_of(vocabulary), indent=None)
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **special}
    write_json(out / "tokenizer_config.json", settings)


def main() -> None:
    """Write both samples."""
    parser = argparse.ArgumentParser(description="Make the embedded comments and conversations.")
    parser.add_argument("--out", type=Path, default=FOLDER)
    out = parser.parse_args().out
    for name, write in {"comments": write_comments, "chats": write_chats}.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        write(out / name)


if __name__ == "__main__":
    main()
