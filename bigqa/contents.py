"""What a file is, by its first bytes. In: bytes. Out: how it is packed, or what it is that cannot be read as it lies.

Read as JSON, a picture or a pointer gives an error about its first byte, which helps nobody.
"""

import re
from collections.abc import Iterable

from bigqa.language import tr

PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # an empty one
    b"PAR1": "parquet",
    b"ARROW1": "arrow file",
    b"\xff\xff\xff\xff": "arrow stream",
}
"""Forms that are unpacked, by the bytes that they begin with."""
UNREADABLE = {
    b"version https://git-lfs.github.com/spec": tr("a Git LFS pointer, not the file itself; `git lfs pull` gets that"),
    b"/annex/objects/": tr("a git-annex pointer, not the file itself; `git annex get` gets that"),
    b"\x28\xb5\x2f\xfd": tr("packed by zstd; unpack it (zstd -d)"),
    b"7z\xbc\xaf\x27\x1c": tr("a 7z archive; unpack it"),
    b"\x80\x02": tr("a Python pickle, which could run code and is never loaded; write its data as JSON"),
    b"\x80\x03": tr("a Python pickle, which could run code and is never loaded; write its data as JSON"),
    b"\x80\x04": tr("a Python pickle, which could run code and is never loaded; write its data as JSON"),
    b"\x80\x05": tr("a Python pickle, which could run code and is never loaded; write its data as JSON"),
    b"\x89HDF": tr("an HDF5 file; write its data as JSON"),
    b"SQLite format 3": tr("an SQLite database; write its data as JSON"),
    b"%PDF": tr("a PDF document; write its text as JSON"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": tr("an old Office or HWP document; write its data as JSON"),
    b"Rar!": tr("a RAR archive; unpack it"),
    b"\x93NUMPY": tr("a NumPy array; write its data as JSON"),
    b"Obj\x01": tr("an Avro file; write its data as JSON or Parquet"),
    b"\x04\x22\x4d\x18": tr("packed by lz4; unpack it (lz4 -d)"),
    b"\x1f\x9d": tr("packed by compress; unpack it (uncompress)"),
    b"\x89PNG": tr("a picture, not data"),
    b"\xff\xd8\xff": tr("a picture, not data"),
    b"<?xml": tr("an XML file, as servers send them in place of what they refuse; write its data as JSON"),
    b"\xff\xfe\0\0": "UTF-32 text; convert it to UTF-8",
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8",
}
IN_A_ZIP = {
    "[Content_Types].xml": tr("an Office document (xlsx, docx); write its data as JSON, JSON lines or Parquet"),
    "mimetype": tr("a document (HWPX, OpenDocument, EPUB); write its data as JSON, JSON lines or Parquet"),
    "data.pkl": tr("a file of PyTorch, whose pickles could run code and are never loaded; write its data as JSON"),
}
"""What a zip is that is not meant to be unpacked, by the name of a member."""
HEAD_BYTES = 1024
"""How much of a file tells what it is."""


def packing_of(head: bytes) -> str | None:
    """Return how a file is packed, of `PACKED`; None where it is text, or nothing that is known."""
    return next((name for magic, name in PACKED.items() if head.startswith(magic)), None)


def what_else(head: bytes, name: str = "") -> str | None:
    """Say what a file is that is no JSON, and what to do; None where its first bytes do not tell."""
    known = what_no_text(head)
    if known is not None:
        return known
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    if re.match(r"[\[{\s]*\{\s*'", text):
        return tr("in Python's notation, with single quotes, and not JSON; write it by json.dump")
    return tr("{table}; write it as JSON, JSON lines or Parquet", table=_table(name)) if _is_table(text, name) else None


def what_no_text(head: bytes) -> str | None:
    """Say what a file is that is no text of anybody's own, and what to do; None where its first bytes do not tell."""
    for magic, said in UNREADABLE.items():
        if head.startswith(magic):
            return said
    if head[257:262] == b"ustar":
        return tr("a tar archive; unpack it")
    if head and not head.strip(b"\0"):
        return tr("nothing but zero bytes, as of a copy that broke off; fetch it again")
    if _is_wide(head[:8], 0) or _is_wide(head[:8], 1):
        return UNREADABLE[b"\xff\xfe"]
    packing = packing_of(head)
    if packing is not None:
        document = next((said for member, said in IN_A_ZIP.items() if member.encode() in head), None)
        return document or tr("packed as {packing}; unpack it", packing=packing)
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    if re.match(r"<!doctype html|<html", text, re.IGNORECASE):
        return tr("a web page, not the file; was its download link opened?")
    return None


def _is_wide(head: bytes, first: int) -> bool:
    """Say whether bytes are letters of ASCII in UTF-16 without its mark: every other one is zero."""
    letters, zeros = head[first::2], head[1 - first :: 2]
    return len(zeros) == 4 and not any(zeros) and all(letters) and letters.isascii()


def what_zip(names: Iterable[str]) -> str | None:
    """Say what a zip of these members is that holds no data, and what to do; None where they do not tell."""
    ends = {name.rpartition("/")[2] for name in names}
    inner = next(
        (tr("a zip that holds another, {end}; unpack it", end=end) for end in sorted(ends) if end.endswith(".zip")),
        None,
    )
    return next((said for name, said in IN_A_ZIP.items() if name in ends), inner)


def what_encoding(content: bytes) -> str:
    """Say what bytes are that are not UTF-8, and what to do."""
    if b"\0" in content[:HEAD_BYTES]:
        return tr("binary, and of no form that is known; write its data as JSON")
    letters = [letter for letter in content.decode("cp949", "ignore") if letter > "\x7f"]
    korean = sum("가" <= letter <= "힣" for letter in letters)
    if 2 * korean > len(letters):
        return tr("in CP949 (EUC-KR); convert it to UTF-8 (iconv -f CP949 -t UTF-8)")
    return tr("in another encoding; convert it to UTF-8")


def _is_table(text: str, name: str) -> bool:
    first = text.partition("\n")[0]
    has_columns = any(
        re.search(rf'(^|[,\t;])"?{word}"?\s*([,\t;]|$)', first) for word in ("question", "context", "text")
    )
    named_so = name.lower().endswith((".csv", ".tsv"))
    return not text.startswith(("{", "[")) and (named_so or (has_columns and bool(re.search("[,\t;]", first))))


def _table(name: str) -> str:
    return tr("a table of tab-separated values (TSV)") if name.lower().endswith(".tsv") else tr("a CSV table")
