"""Small tables of texts for tests, of our own. In: a folder. Out: files that a little model learns in seconds."""

import json
from pathlib import Path

KINDS = {"praise": "맑은 봄 하늘", "blame": "전쟁이 난 도시", "fact": "인구 조사의 해"}


def rows(count: int) -> list[tuple[str, str]]:
    """Return texts and their labels: words that tell them, and others."""
    names = list(KINDS)
    return [(f"{KINDS[names[n % 3]]} {n * 7 % 10} 일", names[n % 3]) for n in range(count)]


def write_tsv(path: Path, count: int, header: str = "text\tlabel") -> Path:
    """Write a table of texts and labels."""
    lines = [header, *("\t".join(row) for row in rows(count))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, values: list[dict[str, object]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in values), encoding="utf-8")
    return path
