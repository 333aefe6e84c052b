"""Makes the embedded sample: a small Korean data set in KorQuAD 1.0 form, and its vocabulary.

Run: `python -m bigqa.sample.make_sample [--out DIR]`. In: nothing. Out: train.json, dev.json, vocab.txt, the same bytes
on every run. A paragraph tells of one happening with one person, one date, one place and one number, so that each
question can be answered by the kind of the answer. Names, places and values of `dev` never occur in `train`.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigqa.files import write_json, write_text
from bigqa.sample import FOLDER

SEED = 20200601
SIZES = {"train": 600, "dev": 60}
SURNAMES = "김이박최정강조윤장임한오서신권황안송류홍전고문양손배백허남심"
GIVEN = "민준서연지우하은도윤채원시현수빈예성진아영호태경선희동재훈나라별솔찬결빛온새봄달람"
PLACE_FIRST = "청백남동서북은금옥석송매죽난국화월천해산강들솔달별무새벽안온화평"
PLACE_SECOND = "주원천산포양성령곡전평릉해도계암동림구흥"
PLACE_KINDS = ("시", "군", "읍", "마을", "항", "섬")
THINGS = (
    ("도서관", "권", "책", "문을 열었다", "문을 연"),
    ("박물관", "점", "유물", "문을 열었다", "문을 연"),
    ("식물원", "그루", "나무", "문을 열었다", "문을 연"),
    ("음악회", "명", "관객", "열렸다", "열린"),
    ("전시회", "점", "그림", "열렸다", "열린"),
    ("마라톤 대회", "명", "선수", "열렸다", "열린"),
    ("시장", "곳", "가게", "문을 열었다", "문을 연"),
    ("학교", "명", "학생", "문을 열었다", "문을 연"),
    ("천문대", "대", "망원경", "문을 열었다", "문을 연"),
    ("축제", "마리", "연", "열렸다", "열린"),
    ("동물원", "마리", "동물", "문을 열었다", "문을 연"),
    ("목장", "마리", "양", "문을 열었다", "문을 연"),
)
ADJECTIVES = ("작은", "오래된", "새로운", "유명한", "조용한", "아름다운", "넓은", "독특한")
ROLES = (
    ("기획하", "기획했다"),
    ("설계하", "설계했다"),
    ("이끄", "이끌었다"),
    ("후원하", "후원했다"),
    ("준비하", "준비했다"),
    ("책임지", "책임졌다"),
)
FILLERS = (
    "많은 사람이 이 소식을 반겼다.",
    "준비하는 동안 어려움도 적지 않았다.",
    "그날은 하늘이 맑고 바람이 약했다.",
    "지금도 이웃들은 그 일을 자주 이야기한다.",
    "신문과 방송도 이를 크게 다루었다.",
    "입장료는 따로 받지 않았다.",
    "비용은 여러 단체가 나누어 냈다.",
    "처음에는 반대하는 의견도 있었다.",
)
DATE_RANGES = ((1900, 2019), (1, 12), (1, 28))
Fact = tuple[str, str, list[str]]
"""A sentence with `{}` for the answer, the answer, and ways to ask for it."""


def has_final_consonant(word: str) -> bool:
    """Say whether a word's last syllable is closed, which decides the form of the particle after it."""
    code = ord(word[-1]) - 0xAC00
    return 0 <= code < 11172 and code % 28 != 0


def particle(word: str, closed: str, opened: str) -> str:
    """Return the particle that fits a word."""
    return closed if has_final_consonant(word) else opened


def pools(random_numbers: random.Random, size: int) -> dict[str, list[str]]:
    """Return distinct people, places, dates and numbers, enough for both splits."""
    makers = {
        "person": lambda: random_numbers.choice(SURNAMES) + "".join(random_numbers.sample(GIVEN, 2)),
        "place": lambda: (
            random_numbers.choice(PLACE_FIRST)
            + random_numbers.choice(PLACE_SECOND)
            + random_numbers.choice(PLACE_KINDS)
        ),
        "date": lambda: "{}년 {}월 {}일".format(*(random_numbers.randint(*ends) for ends in DATE_RANGES)),
        "number": lambda: str(random_numbers.randint(12, 9899)),
    }
    return {kind: _distinct(make, size) for kind, make in makers.items()}


def _distinct(make: Any, size: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < size:
        found[make()] = None
    return list(found)


def facts(values: dict[str, str], numbers: random.Random) -> tuple[str, list[Fact]]:
    """Return a title and the four facts of one happening."""
    thing, unit, counted, happened, when_it = numbers.choice(THINGS)
    subject = f"{numbers.choice(ADJECTIVES)} {thing}"
    topic = subject + particle(subject, "은", "는")
    nominative = subject + particle(subject, "이", "가")
    stem, done = numbers.choice(ROLES)
    person, amount = values["person"], f"{values['number']}{unit}"
    accusative = subject + particle(subject, "을", "를")
    counted_nominative = counted + particle(counted, "이", "가")
    adnominal = {"이끄": "이끈", "책임지": "책임진"}.get(stem, stem[:-1] + "한")
    return subject, [
        (
            f"{{}}{particle(person, '이', '가')} {accusative} {done}",
            person,
            [f"{accusative} {adnominal} 사람은 누구인가?", f"누가 {accusative} {done[:-1]}는가?"],
        ),
        (
            f"{topic} {{}}에 {happened}",
            values["date"],
            [f"{nominative} {when_it} 날은 언제인가?", f"{topic} 언제 {happened[:-1]}는가?"],
        ),
        (
            f"장소는 {{}}{particle(values['place'], '이었', '였')}다",
            values["place"],
            [f"{topic} 어디에서 {happened[:-1]}는가?", f"{nominative} {when_it} 곳은 어디인가?"],
        ),
        (
            f"모두 {{}}의 {counted_nominative} 모였다",
            amount,
            [f"모인 {counted}의 수는 몇인가?", f"{counted_nominative} 몇 {unit} 모였는가?"],
        ),
    ]


def paragraph(name: str, values: dict[str, str], numbers: random.Random) -> dict[str, Any]:
    """Return one article of one paragraph with four questions."""
    title, found = facts(values, numbers)
    sentences: list[tuple[str, Fact | None]] = [(fact[0] + ".", fact) for fact in found]
    sentences += [(text, None) for text in numbers.sample(FILLERS, numbers.randint(0, 2))]
    numbers.shuffle(sentences)
    context = ""
    qas: list[dict[str, Any]] = []
    for text, fact in sentences:
        start = len(context) + text.find("{}")
        context += text.replace("{}", fact[1] if fact else "") + " "
        if fact:
            answer = {"text": fact[1], "answer_start": start}
            qas.append({"id": f"{name}-{len(qas)}", "question": numbers.choice(fact[2]), "answers": [answer]})
    return {"title": title, "paragraphs": [{"context": context.rstrip(), "qas": qas}]}


def make() -> dict[str, dict[str, Any]]:
    """Return both splits."""
    numbers = random.Random(SEED)
    total = sum(SIZES.values())
    everything = pools(numbers, total)
    splits, begin = {}, 0
    for split, size in SIZES.items():
        articles = []
        for index in range(begin, begin + size):
            values = {kind: pool[index] for kind, pool in everything.items()}
            articles.append(paragraph(f"{split}-{index - begin:04d}", values, numbers))
        splits[split] = {"version": "bigqa_sample_v1.0", "data": articles}
        begin += size
    return splits


def vocabulary(splits: dict[str, dict[str, Any]]) -> list[str]:
    """Return WordPiece entries: every character that occurs, at the start of a word and inside one.

    Characters, because in so small a data set a longer piece would only join a name and the particle after it.
    """
    characters = sorted({character for text in _texts(splits) for character in text if not character.isspace()})
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{character}" for character in characters)]


def _texts(splits: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield from (SURNAMES, GIVEN, PLACE_FIRST, PLACE_SECOND, "0123456789", *FILLERS)
    for split in splits.values():
        for article in split["data"]:
            for part in article["paragraphs"]:
                yield part["context"]
                yield from (qa["question"] for qa in part["qas"])


def main() -> None:
    """Write the sample."""
    parser = argparse.ArgumentParser(description="Make the embedded sample.")
    parser.add_argument("--out", type=Path, default=FOLDER)
    out = parser.parse_args().out
    splits = make()
    for name, split in splits.items():
        write_json(out / f"{name}.json", split, indent=None)
    write_text(out / "vocab.txt", "\n".join(vocabulary(splits)) + "\n")


if __name__ == "__main__":
    main()
