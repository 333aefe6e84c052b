"""Where a search keeps its trials: what cannot be had is told, and soon; several that begin at once do not collide."""

import contextlib
import importlib.util
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_sweep import optuna, study

from bigqa.errors import BigqaError, UsageError
from bigqa.runs.storage import hidden, storage_of

HAS_DRIVER = any(map(importlib.util.find_spec, ("psycopg", "psycopg2")))


def test_storages_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--storage nowhere is no address of a database"):
        storage_of("nowhere", tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        storage_of(f"journal:{tmp_path / 'no' / 'log'}", tmp_path)
    with pytest.raises(BigqaError, match="cannot be used"):
        storage_of(f"sqlite:///{tmp_path / 'no' / 'file'}", tmp_path)
    url = "postgresql://me:secret@127.0.0.1:1/none"
    with pytest.raises(BigqaError) as refused:
        storage_of(url, tmp_path)
    assert "secret" not in str(refused.value) and "me:***@127.0.0.1" in str(refused.value)
    wants = "cannot be used" if HAS_DRIVER else "pip install 'bigqa[postgresql]'"
    assert wants in str(refused.value) and "import" not in str(refused.value)
    assert hidden("mysql://host/name") == "mysql://host/name"


@contextlib.contextmanager
def server(answer: bytes) -> Iterator[int]:
    """Listen, read what a client begins with, say so much, and nothing more; yield the port."""
    ends: list[socket.socket] = []

    def serve(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = listening.accept()
                ends.append(one)
                while answer and (size := int.from_bytes(one.recv(4), "big")):
                    said = one.recv(size - 4)
                    one.sendall(b"N" if said == ASKS_FOR_TLS else answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        hangs_up = threading.Timer(20, lambda: [one.close() for one in ends])  # else who waits for ever hangs the tests
        hangs_up.start()
        yield listening.getsockname()[1]
    hangs_up.cancel()
    for one in ends:
        one.close()


ASKS_FOR_TLS = (80877103).to_bytes(4, "big")
"""The first message of PostgreSQL's protocol, where a client would rather be encrypted."""
REFUSAL = b'SFATAL\0C28P01\0Mpassword authentication failed for user "me"\0\0'
REFUSED = b"E" + (len(REFUSAL) + 4).to_bytes(4, "big") + REFUSAL


@pytest.mark.skipif(not HAS_DRIVER, reason="pip install 'bigqa[postgresql]'")
@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"", "timeout expired"), (REFUSED, 'password authentication failed for user "me"')],
    ids=("silent", "wrong password"),
)
def test_a_database_that_does_not_answer_or_refuses_is_told_soon(tmp_path: Path, answer: bytes, said: str) -> None:
    begun = time.monotonic()
    with server(answer) as port, pytest.raises(BigqaError) as refused:
        storage_of(f"postgresql://me:wrong@127.0.0.1:{port}/db", tmp_path)
    assert time.monotonic() - begun < 15
    text = str(refused.value)
    assert said in text and "me:***@127.0.0.1" in text and "wrong" not in text and "\n" not in text


def test_how_long_a_driver_waits_is_what_the_address_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each driver takes is what it calls it: another would be refused by it."""
    given: list[Any] = []
    monkeypatch.setattr(optuna.storages, "RDBStorage", lambda url, engine_kwargs: given.append(engine_kwargs))
    for url in ("postgresql+psycopg2://a@b/c", "postgresql+psycopg://a@b/c?connect_timeout=60", "mysql+pymysql://a@b/c",
                "postgresql+pg8000://a@b/c", f"sqlite:///{tmp_path}/x"):  # fmt: skip
        storage_of(url, tmp_path)
    waits = [one.get("connect_args") for one in given]
    assert waits == [{"connect_timeout": 7}, None, {"connect_timeout": 7}, None, {"timeout": 60.0}]


@pytest.mark.parametrize(
    ("kind", "said"),
    [("IntegrityError", "UNIQUE constraint failed: alembic_version.version_num"),
     ("OperationalError", "table studies already exists"),
     ("ProgrammingError", 'relation "studies" already exists')],
)  # fmt: skip
def test_tables_that_another_process_makes_at_this_moment_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    """What SQLite and PostgreSQL said when four searches began in the same second."""
    import sqlalchemy.exc

    real, tries = optuna.storages.RDBStorage.__init__, []

    def colliding(*words: Any, **more: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise getattr(sqlalchemy.exc, kind)("CREATE", {}, Exception(said))
        real(*words, **more)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", colliding)
    assert study(storage=storage_of(None, tmp_path)).ask() is not None and len(tries) == 3


def test_two_searches_go_on_in_one_journal(tmp_path: Path) -> None:
    one = study(storage=storage_of(f"journal:{tmp_path / 'log'}", tmp_path))
    other = study(storage=storage_of(f"journal:{tmp_path / 'log'}", tmp_path))
    asked = [one.ask(), other.ask(), one.ask(), other.ask()]
    assert [one.number for one in asked if one] == [0, 1, 2]
