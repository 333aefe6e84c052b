"""Makes the samples of the other tasks: comments with labels, and conversations of a request and its answer.

Run: `python -m bigqa.sample.make_texts [--out DIR]`. In: nothing. Out: folders `comments` and `chats`, each with a
training and a dev file, and a vocabulary; the same bytes on every run.

A comment judges a person or a thing. Nouns and adjectives are the same in both files, but half of those in the dev file
end in what no training text has: who counts whole words does not know them, who reads pieces of words does. A request
is to shorten a date, to make a sentence polite, or to say where something was; dates and places of the dev file never
occur in training, so that they have to be copied.
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
COMMENTS, CHATS = {"train": 1600, "dev": 240}, {"train": 2400, "dev": 120}
PEOPLE = ("배우", "감독", "기자", "가수", "사장", "작가", "선수", "의원", "사회자", "진행자", "제작자", "평론가")
WORKS = ("노래", "영화", "무대", "기사", "연출", "대본", "경기", "정책", "음식", "화면", "줄거리", "결말")
GOOD = ("훌륭하", "대단하", "멋지", "뛰어나", "따뜻하", "알차", "반듯하", "믿음직하")
BAD = ("한심하", "형편없", "뻔뻔하", "답답하", "지루하", "엉망이", "초라하", "못나")
ADVERBS = ("", "", "정말 ", "너무 ", "솔직히 ", "오늘도 ", "언제나 ")
OPENINGS = ("", "", "뉴스를 보니 ", "다시 봐도 ", "친구 말로는 ", "기사를 읽어 보니 ", "처음부터 끝까지 ")
ENDINGS = {"train": ("다.", "네요.", "네요!", "지요."), "dev": ("더라.", "군요!", "구나.", "거든요.")}
PARTICLES = {"train": (("은", "는"), ("도", "도")), "dev": (("이", "가"), ("조차", "조차"))}
SPECIAL = ("<pad>", "<unk>", "<end>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
Chat = tuple[str, str]
"""What is asked, and the answer."""


def comment(split: str, numbers: random.Random) -> tuple[str, str]:
    """Return a comment and its label; of the dev file's, half of the forms are its own."""
    is_person, is_good = numbers.random() < 0.5, numbers.random() < 0.4
    label = "praise" if is_good else "attack" if is_person else "criticism"
    noun, stem = numbers.choice(PEOPLE if is_person else WORKS), numbers.choice(GOOD if is_good else BAD)
    forms = [numbers.choice(("train", split)) for _ in range(2)]
    closed, opened = numbers.choice(PARTICLES[forms[0]])
    words = f"{noun}{particle(noun, closed, opened)} {numbers.choice(ADVERBS)}{stem}{numbers.choice(ENDINGS[forms[1]])}"
    return numbers.choice(OPENINGS) + words, label


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
    splits = {}
    for split, size in COMMENTS.items():
        before = len(found)
        while len(found) < before + size:
            text, label = comment(split, numbers)
            found.setdefault(text, label)
        splits[split] = list(found.items())[before:]
    return splits


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
    ends = sorted(
        {ending.rstrip(".!") for ending in ENDINGS["train"]} | {one for pair in PARTICLES["train"] for one in pair}
    )
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
