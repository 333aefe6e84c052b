"""Features on disk, made once. In: a function that makes rows, and what they follow from. Out: memory-mapped rows.

A file appears under its name only when whole; its name covers everything that the rows follow from. The digest of what
it holds stands at its end, behind what Arrow reads: a byte that changed later is seen before the file is used again.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from bigqa.errors import BigqaError
from bigqa.files import atomic_path
from bigqa.language import tr
from bigqa.tasks.rows import Rows

BATCH_ROWS = 1024
"""Rows that are Python objects at once."""
INT_LIST = pa.list_(pa.int32())
DIGEST_BYTES = hashlib.sha256().digest_size


def kept_rows(
    cache_dir: Path, task: str, data: Path, sources: Sequence[Path], follows_from: Sequence[Any], schema: pa.Schema,
    make: Callable[[], Iterator[dict[str, Any]]],
) -> Rows:  # fmt: skip
    """Return rows, from the cache where they were made before of the same files and values.

    `data`: as it was asked for; `sources`: the files that it stands for, and others that rows are made of.
    """
    file = cache_dir / f"{task}-{plain_name(data)}-{_key(sources, follows_from)}.arrow"
    if not is_whole(file):
        with atomic_path(file) as temporary:
            write_rows(temporary, make(), schema)
    return Rows.of_file(file)


def write_rows(
    file: Path,
    rows: Iterator[dict[str, Any]],
    schema: pa.Schema,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Write rows as an Arrow stream, a batch in memory at a time; `on_row` takes the last of each batch."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(rows, BATCH_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            if on_row is not None:
                on_row(batch[-1])
    with file.open("r+b") as stream:
        stream.write(_sha256(stream, file.stat().st_size))


def plain_name(path: Path) -> str:
    """Return a file's name as far as a file system takes it: a glob and a data set's id are no names."""
    return re.sub(r"[^\w.-]", "_", path.stem.encode("utf-8", "replace").decode())[:40]


def _key(sources: Sequence[Path], follows_from: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        read_into(digest, source)
        digest.update(b"\0")
    digest.update(json.dumps(follows_from, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()[:24]


def read_into(digest: "hashlib._Hash", file: Path) -> None:
    """Add every byte of a data file to a digest. Raises: BigqaError."""
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise BigqaError(
            tr("data file cannot be read: {file}: {strerror}", file=file, strerror=error.strerror)
        ) from None


def is_whole(file: Path) -> bool:
    """Whether a file of rows is there, to its end and as it was written."""
    if not file.is_file():
        return False
    try:
        with pa.memory_map(str(file)) as source:
            for _ in pa.ipc.open_stream(source):
                pass
        size = file.stat().st_size - DIGEST_BYTES
        with file.open("rb") as stream:
            return _sha256(stream, size) == stream.read()
    except (pa.ArrowInvalid, OSError):
        return False


def _sha256(stream: BinaryIO, size: int) -> bytes:
    """Return the digest of so many bytes from where a file is read."""
    digest = hashlib.sha256()
    while size > 0 and (block := stream.read(min(1 << 20, size))):
        digest.update(block)
        size -= len(block)
    return digest.digest()
