"""Downloads from a real server on this machine: whole, resumed, cut off, corrupted, missing."""

import errno
import hashlib
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigqa.errors import BigqaError, UsageError
from bigqa.tasks import download as module
from bigqa.tasks.download import FILES, LICENCE, URL_VARIABLE, RemoteFile, download

TRAIN = os.urandom(3_000_001)
DEV = b"\xed\x95\x9c" * 70_000
CONTENTS = {"/dataset/train.json": TRAIN, "/dataset/sub/dev.zip": DEV}


class Site(http.server.ThreadingHTTPServer):
    """A server whose behaviour a test can change, and which remembers the Range of each request."""

    daemon_threads = True
    honours_range = True
    wrong_range = False
    break_after: int | None = None
    corrupts = False
    sends_length = True
    status: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a client that hung up; the tests look at the client."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/dataset"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append((self.path, asked))
        body = CONTENTS.get(self.path)
        if body is None or self.server.status:
            self.send_error(self.server.status or 404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if self.server.wrong_range and start:
            self.send_error(416)
            return
        start = start if self.server.honours_range else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.server.sends_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.server.corrupts:
            body = body[:-1] + bytes([body[-1] ^ 1])
        stop = len(body) if self.server.break_after is None else start + self.server.break_after
        self.wfile.write(body[start:stop])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    files = tuple(
        RemoteFile(
            path=path.removeprefix("/dataset/"),
            local=path.removeprefix("/dataset/"),
            size_bytes=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
        )
        for path, body in CONTENTS.items()
    )
    monkeypatch.setitem(FILES, "korquad1", files)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(site: Site, out: Path) -> list[str]:
    return list(download("korquad1", out, base_url=site.url))


def assert_complete(out: Path) -> None:
    assert (out / "train.json").read_bytes() == TRAIN
    assert (out / "sub" / "dev.zip").read_bytes() == DEV
    assert not list(out.rglob("*.part"))


def test_all_files_come_and_the_licence_is_said(site: Site, tmp_path: Path) -> None:
    lines = run(site, tmp_path / "new")
    assert_complete(tmp_path / "new")
    assert [line.split(":")[0] for line in lines[:-1]] == ["downloaded", "downloaded"]
    assert lines[-1] == LICENCE and "CC BY-ND 2.0 KR" in LICENCE


def test_the_mirror_can_be_named_in_the_environment(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, site.url + "/")
    list(download("korquad1", tmp_path))
    assert_complete(tmp_path)


def test_right_files_are_left_alone_and_wrong_ones_replaced(site: Site, tmp_path: Path) -> None:
    run(site, tmp_path)
    (tmp_path / "train.json").write_bytes(TRAIN[:-1] + b"?" if TRAIN[-1:] != b"?" else TRAIN[:-1] + b"!")
    site.asked.clear()
    lines = run(site, tmp_path)
    assert site.asked == [("/dataset/train.json", None)]
    assert lines[0].startswith("downloaded") and lines[1].startswith("already there")
    assert_complete(tmp_path)


def test_a_broken_connection_keeps_the_part_and_the_next_run_goes_on(site: Site, tmp_path: Path) -> None:
    site.break_after = 1_000_000
    with pytest.raises(BigqaError, match=r"train\.json broke off at 1000000 of 3000001 bytes.*run the same"):
        run(site, tmp_path)
    assert (tmp_path / "train.json.part").read_bytes() == TRAIN[:1_000_000]
    assert not (tmp_path / "train.json").exists()
    site.break_after = None
    run(site, tmp_path)
    assert ("/dataset/train.json", "bytes=1000000-") in site.asked
    assert_complete(tmp_path)


def test_an_answer_without_a_length_that_ends_early_is_noticed(site: Site, tmp_path: Path) -> None:
    site.sends_length, site.break_after = False, 10
    with pytest.raises(BigqaError, match="broke off at 10 of"):
        run(site, tmp_path)


def test_a_server_that_ignores_range_starts_over(site: Site, tmp_path: Path) -> None:
    (tmp_path / "train.json.part").write_bytes(b"x" * 2_000_000)
    site.honours_range = False
    run(site, tmp_path)
    assert site.asked[0][1] == "bytes=2000000-"
    assert_complete(tmp_path)


def test_a_refused_range_starts_over(site: Site, tmp_path: Path) -> None:
    (tmp_path / "train.json.part").write_bytes(TRAIN[:5])
    site.wrong_range = True
    run(site, tmp_path)
    assert_complete(tmp_path)


@pytest.mark.parametrize("kept", [TRAIN, TRAIN + b"more"], ids=["whole", "too long"])
def test_a_part_that_is_already_long_enough(site: Site, tmp_path: Path, kept: bytes) -> None:
    (tmp_path / "train.json.part").write_bytes(kept)
    run(site, tmp_path)
    assert (("/dataset/train.json", None) in site.asked) == (kept != TRAIN)
    assert_complete(tmp_path)


def test_corrupted_bytes_are_refused_and_removed(site: Site, tmp_path: Path) -> None:
    site.corrupts = True
    with pytest.raises(BigqaError, match="is not the official file: its sha256 is"):
        run(site, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    site.corrupts = False
    run(site, tmp_path)
    assert_complete(tmp_path)


def test_a_wrong_part_under_a_right_end_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "train.json.part").write_bytes(b"x" * 1000)
    with pytest.raises(BigqaError, match="sha256"):
        run(site, tmp_path)
    run(site, tmp_path)
    assert_complete(tmp_path)


def test_a_file_of_another_size_is_refused_before_it_is_read(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTENTS, "/dataset/train.json", b"<html>please log in</html>")
    with pytest.raises(BigqaError, match="it has 26 bytes, not 3000001"):
        run(site, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("status", "advice"), [(404, "name a mirror"), (503, "try again later")])
def test_an_error_status_is_one_line(site: Site, tmp_path: Path, status: int, advice: str) -> None:
    site.status = status
    with pytest.raises(BigqaError, match=f"the server says {status}.*{advice}") as caught:
        run(site, tmp_path)
    assert site.url in str(caught.value) and "\n" not in str(caught.value)


def test_no_server_is_one_line(site: Site, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/dataset"
        with pytest.raises(BigqaError, match=r"cannot download http.*Connection refused; check the connection"):
            list(download("korquad1", tmp_path, base_url=url))


def test_a_full_disk_is_said(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(BigqaError, match=r"cannot write .*train\.json\.part: the disk is full"):
        run(site, tmp_path)


def test_an_out_that_is_a_file_is_said(site: Site, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("here")
    with pytest.raises(BigqaError, match="cannot write"):
        run(site, tmp_path / "out")


def test_wrong_names_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="korquad1, korquad2"):
        list(download("squad", tmp_path))
    with pytest.raises(UsageError, match=URL_VARIABLE):
        list(download("korquad1", tmp_path, base_url="file:///data"))


def test_the_official_lists() -> None:
    assert [file.path for file in FILES["korquad1"]] == ["KorQuAD_v1.0_train.json", "KorQuAD_v1.0_dev.json"]
    paths = [file.path for file in FILES["korquad2"]]
    assert len(paths) == 15
    assert paths[0] == "KorQuAD_2.1/train/KorQuAD_2.1_train_00.zip"
    assert paths[-1] == "KorQuAD_2.1/dev/KorQuAD_2.1_dev_01.zip"
    assert sum(file.size_bytes for file in FILES["korquad2"]) == 1_373_763_305
    assert {len(file.sha256) for files in module.FILES.values() for file in files} == {64}
