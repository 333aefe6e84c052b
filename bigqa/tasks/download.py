"""KorQuAD from its authors' site. In: a data set's name and a folder. Out: its files there, each one verified.

A file is right when its size and sha256 are those of `FILES`, whichever server it came from. The sizes and sums were
not computed here: they are those that Hugging Face Datasets published with its loaders of both data sets.
A file that is there and right is left alone. A download that breaks off leaves a `.part` file, and the next run goes
on from its end. What is finished and wrong is removed. No ETag is kept: the sha256 also catches a file that changed
on the server between two runs.

BIGQA_KORQUAD_URL names a mirror of the site's `dataset/` folder. The data's licence does not allow changed copies.
"""

import contextlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bigqa.console import stderr
from bigqa.errors import BigqaError, UsageError
from bigqa.files import sha256, write_error
from bigqa.language import tr

URL_VARIABLE = "BIGQA_KORQUAD_URL"
CHUNK_BYTES = 1 << 18
TIMEOUT_S = 60
AGAIN = tr("what came so far is kept: run the same command again to go on")

LICENCE = tr(
    "KorQuAD is by LG CNS (https://korquad.github.io), under CC BY-ND 2.0 KR: name the authors, and pass "
    "on no changed copies (https://creativecommons.org/licenses/by-nd/2.0/kr/)."
)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a data set."""

    path: str  # under the site's dataset/ folder
    local: str  # under the folder asked for
    size_bytes: int
    sha256: str


OFFICIAL_URLS = {
    "korquad1": "https://korquad.github.io/dataset",
    "korquad2": "https://github.com/korquad/korquad.github.io/raw/master/dataset",
}


def _korquad1(split: str, size_bytes: int, sha256: str) -> RemoteFile:
    name = f"KorQuAD_v1.0_{split}.json"
    return RemoteFile(path=name, local=name, size_bytes=size_bytes, sha256=sha256)


def _korquad2(part: str, size_bytes: int, sha256: str) -> RemoteFile:
    local = f"{part.split('_')[0]}/KorQuAD_2.1_{part}.zip"
    return RemoteFile(path=f"KorQuAD_2.1/{local}", local=local, size_bytes=size_bytes, sha256=sha256)


FILES: dict[str, tuple[RemoteFile, ...]] = {
    "korquad1": (
        _korquad1("train", 38527475, "40d5115879a701751781df721d901abfa736d8db5f89000f2619433f39bf2dd2"),
        _korquad1("dev", 3881058, "25ffeb51e6c51ec02c071b60a10188e10005c144110f0d876b26079d80a35bdf"),
    ),
    "korquad2": (
        _korquad2("train_00", 96161084, "98918d10e3e08bf6b34b50d17cd7f7438d5a577a8089d02698d16a151424a36a"),
        _korquad2("train_01", 92163603, "0a8a59ee82e92e9509c5dbf7d98a31c007a3693afb818e37c60ddacf7f48c4b3"),
        _korquad2("train_02", 91681447, "7035a35daac0c210b4754fc6a2885442929754db35e33b40d7c912706c66b9bc"),
        _korquad2("train_03", 94792676, "4a61272d13e535f73fa20f2d1619b895adb763d8fa7cf02d813b733e7f702562"),
        _korquad2("train_04", 94470762, "35834a74b3486eaa32712c689bccaab0c841c3ee252560e754245d3ed89e1c3a"),
        _korquad2("train_05", 93427959, "5ea9b2975451c5a67bc172690a56a6e7a9e87b4001d3d1d684cb1336958a3a3b"),
        _korquad2("train_06", 93224892, "87872acd46c2a8291a176826ad7eb23f3a6cf1db05bb27566d2eac1199a9091b"),
        _korquad2("train_07", 92550803, "a615c0ebba60fc9b55fa602973d504f76d0273592c22f63b7f202655c1bb10bf"),
        _korquad2("train_08", 93684404, "fa3955e23eab859819990edde3dd23308740cf94c3839fb538f30b1126117a39"),
        _korquad2("train_09", 94028022, "b3b7ec508fbacaf6a5c12065e1d061cbfd8990bf2ae4c940a0a8d841294c2c1c"),
        _korquad2("train_10", 93432479, "b7e8e44e43ec63514265e2202f73a4a6ce46f7226cc5662efc6a2ab92161a462"),
        _korquad2("train_11", 94500610, "f6483e1e4b2577603e4fc881ec1651ca2ea5764a4b0f7e5eb59007ed9cc4bbae"),
        _korquad2("train_12", 99301520, "84c4b6391a07bc1fdcc70d7194bda0e65edc796ae9b4e184a58c58d6973af7ad"),
        _korquad2("dev_00", 93536216, "4a0b25f896f333dc470e87b83cef874a9f7ea9a3df4c83f5ce8d5de6d71b07db"),
        _korquad2("dev_01", 56806828, "bf76fe7c684409151f92eacc56d551d0471477c47959b916c002ae39666caf59"),
    ),
}


def download(name: str, out: Path, *, base_url: str | None = None) -> Iterator[str]:
    """Put the files of `name` into `out`, yielding a line for each one and the licence notice at the end.

    Raises: BigqaError for the first file that cannot be had; the files before it stay.
    """
    if name not in FILES:
        raise UsageError(tr("no data set is called {name}; there are {files}", name=name, files=", ".join(FILES)))
    base = _base(base_url or os.environ.get(URL_VARIABLE) or OFFICIAL_URLS[name])
    for number, file in enumerate(FILES[name], 1):
        target = out / file.local
        if _is_right(target, file):
            yield tr("already there: {target}", target=target)
            continue
        with _shown(f"{number}/{len(FILES[name])} {target.name}", file.size_bytes) as on_bytes:
            fetch(file, f"{base}/{file.path}", target, on_bytes)
        yield tr("downloaded: {target}", target=target)
    yield LICENCE


def _base(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise UsageError(tr("not a http:// or https:// address in {variable}: {url}", variable=URL_VARIABLE, url=url))
    return url.rstrip("/")


def fetch(file: RemoteFile, url: str, target: Path, on_bytes: Callable[[int], None]) -> None:
    """Download one file, from where its `.part` ends, and give it its name once it is verified."""
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        start = _start(part, file)
    except OSError as error:
        raise write_error(part, error) from error
    if start < file.size_bytes:
        _receive(file, url, part, start, on_bytes)
    found = _sha256(part)
    if found != file.sha256:
        part.unlink()
        raise BigqaError(
            tr(
                "{url} is not the official file: its sha256 is {found}, not {sha256}; it was removed: run the "
                "same command again, or name another mirror in {variable}",
                url=url,
                found=found,
                sha256=file.sha256,
                variable=URL_VARIABLE,
            )
        )
    try:
        part.replace(target)
    except OSError as error:
        raise write_error(target, error) from error


def _start(part: Path, file: RemoteFile) -> int:
    """Return how many bytes of `part` can be kept."""
    size = part.stat().st_size if part.exists() else 0
    return size if size <= file.size_bytes else 0


def _receive(file: RemoteFile, url: str, part: Path, start: int, on_bytes: Callable[[int], None]) -> None:
    """Append the missing bytes to `part`, or all of them where the server does not continue from `start`."""
    with _open(url, start) as response:
        done = start if _continues(response, start) else 0
        _refuse_other_size(file, url, response, done)
        try:
            with part.open("r+b" if done else "wb") as sink:
                sink.truncate(done)
                sink.seek(done)
                on_bytes(done)
                for chunk in _chunks(url, response):
                    sink.write(chunk)
                    done += len(chunk)
                    on_bytes(done)
                    if done > file.size_bytes:
                        break
        except OSError as error:
            raise write_error(part, error) from error
    if done < file.size_bytes:
        raise BigqaError(
            tr(
                "{url} broke off at {done} of {size_bytes} bytes; {again}",
                url=url,
                done=done,
                size_bytes=file.size_bytes,
                again=AGAIN,
            )
        )


def _open(url: str, start: int) -> Any:
    """Return the server's answer to a request for everything from byte `start`."""
    try:
        headers = {"User-Agent": "bigqa", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _open(url, 0)
        advice = tr("name a mirror in {variable}", variable=URL_VARIABLE) if error.code < 500 else tr("try again later")
        raise BigqaError(
            tr(
                "cannot download {url}: the server says {code} {reason}; {advice}",
                url=url,
                code=error.code,
                reason=error.reason,
                advice=advice,
            )
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _network_error(url, error) from error


def _continues(response: Any, start: int) -> bool:
    """Tell whether the answer begins at byte `start`; a server that ignores Range sends everything."""
    content_range = response.headers.get("Content-Range", "")
    return response.status == http.HTTPStatus.PARTIAL_CONTENT and content_range.startswith(f"bytes {start}-")


def _refuse_other_size(file: RemoteFile, url: str, response: Any, done: int) -> None:
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and done + int(length) != file.size_bytes:
        raise BigqaError(
            tr(
                "{url} is not the official file: it has {done} bytes, not {size_bytes}; is there a login page "
                "in between? Otherwise name a mirror in {variable}",
                url=url,
                done=done + int(length),
                size_bytes=file.size_bytes,
                variable=URL_VARIABLE,
            )
        )


def _chunks(url: str, response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _network_error(url, error) from error
        if not chunk:
            return
        yield chunk


def _network_error(url: str, error: Exception) -> BigqaError:
    reason = getattr(error, "reason", None) or error
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return BigqaError(
        tr("cannot download {url}: {given}; check the connection; {again}", url=url, given=text, again=AGAIN)
    )


def _is_right(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes and _sha256(path) == file.sha256


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise BigqaError(tr("cannot read {path}: {strerror}", path=path, strerror=error.strerror)) from error


@contextlib.contextmanager
def _shown(label: str, size_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show bytes, speed and time left, on a terminal; yield the function that takes the bytes done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(label, total=size_bytes)
        yield lambda done: bar.update(task, completed=done)
