"""A download that is broken, and gone on with. In: a case. Out: a record, as of any other.

bigqa's own command downloads a file of random bytes from a server here: the list of official files has this one in it
instead, since theirs are too large. The server breaks off, sends other bytes, ignores where to go on from, or the
client is killed; then all is well, and the file must come to what it is, and nothing else be taken for it.
"""

import hashlib
import os
import random
import signal
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from benchmarks.torture.cases import Case
from benchmarks.torture.forks import Said, as_new, ended, fork, kill, streams_to
from benchmarks.torture.places import Place
from bigqa import cli, interrupts
from bigqa.console import as_program, command
from bigqa.tasks import download

WAYS = ("breaks off", "other bytes", "ignores the range", "killed", "stopped", "says too much", "fails")
NAME, LIMIT_S = "korquad1", 60.0


def broken_download(case: Case, place: Place) -> dict[str, Any]:
    """Download, broken once or twice, then not; return what it came to."""
    draw = case.draw
    content = draw.randbytes(draw.randrange(1, 1 << 20))
    file = download.RemoteFile(
        path="file", local="file", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    target, part = place.disk / "file", place.disk / "file.part"
    ways = [draw.choice(WAYS) for _ in range(draw.choice((1, 1, 2)))]
    codes, said, wrong = list[int | None](), list[str](), list[str]()
    for way in [*ways, "", ""]:
        code, text = _started(file, content, way, draw, place)
        codes.append(code)
        said += [line for line in text.splitlines() if line.startswith("bigqa: ")]
        if code is None or "Traceback" in text or "unforeseen" in text:
            wrong.append(f"{way}: {code}: {text[-1500:]}")
        if code == 0 and (not target.is_file() or target.read_bytes() != content):
            wrong.append(f"{way}: a wrong file is taken for whole")
        if code not in (0, None) and code > 0 and not text.strip():
            wrong.append(f"{way}: ended with {code} and without a word")
        if code == 0:
            break
    if codes[-1] != 0 or part.exists():
        wrong.append(f"did not come to its end: {codes}")
    outcome = "wrong" if wrong else "said" if said else "survived"
    found = {"met": True, "codes": codes, "outcome": outcome, "wrong": wrong}
    return found | {"said": (said or [""])[0][:200], "damage": ", ".join(ways)}


def _started(
    file: download.RemoteFile, content: bytes, way: str, draw: random.Random, place: Place
) -> tuple[int | None, str]:
    """Download once, from a server that breaks in a way; return the exit code and what was said."""
    server, said = HTTPServer(("127.0.0.1", 0), _handler(content, way, draw.randrange(len(content)))), Said()
    number = {"killed": signal.SIGKILL, "stopped": signal.SIGTERM}.get(way)
    at = draw.randrange(len(content))
    address = f"http://127.0.0.1:{server.server_port}"
    serving = fork(lambda: _serve(server))
    server.server_close()
    pid = fork(lambda: _download(file, address, said, place, _at(number, at)))
    codes = ended(lambda: [pid], LIMIT_S, said)
    kill([pid, serving])
    ended(lambda: [pid, serving], LIMIT_S, said)
    return None if codes is None else codes.get(pid), said.text()


def _serve(server: HTTPServer) -> None:
    os.setsid()
    server.serve_forever()


def _at(number: int | None, at: int) -> Callable[[int], None]:
    def on_bytes(done: int) -> None:
        if number is not None and done >= at:
            os.kill(os.getpid(), number)

    return on_bytes


def _download(
    file: download.RemoteFile, address: str, said: Said, place: Place, on_bytes: Callable[[int], None]
) -> None:
    os.setsid()
    streams_to(said)
    as_new()
    receive = download._receive

    def looked_at(shown: Callable[[int], None]) -> Callable[[int], None]:
        def done_so_far(done: int) -> None:
            shown(done)
            on_bytes(done)

        return done_so_far

    download._receive = lambda of, url, part, start, shown: receive(of, url, part, start, looked_at(shown))  # type: ignore[assignment]
    download.FILES[NAME] = (file,)
    download.CHUNK_BYTES = 1 << 14
    os.environ[download.URL_VARIABLE] = address
    sys.argv = ["bigqa", "data", NAME, "--out", str(place.disk)]
    interrupts.listen()
    as_program(lambda: command(cli.app))


def _handler(content: bytes, way: str, at: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Send what is asked for, or what breaks."""
            if way == "fails":
                self.send_error(503)
                return
            asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-")
            start = 0 if way == "ignores the range" else int(asked)
            body = content[start:]
            if way == "other bytes":
                place = at % max(1, len(body))
                body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(body) + (way == "says too much")))
            self.end_headers()
            self.wfile.write(body[:at] if way == "breaks off" else body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
