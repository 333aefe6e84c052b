"""Where in the code something happened. In: a frame, or an error. Out: its stack as plain text, the innermost first."""

import linecache
from types import CodeType, FrameType, TracebackType
from typing import Any

DEEPEST = 60
Place = dict[str, Any]
"""{file, line, name, text}"""


def stack_of(frame: FrameType | None) -> list[Place]:
    """Return the places that led to a frame."""
    found: list[Place] = []
    while frame is not None and len(found) < DEEPEST:
        found.append(_place(frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return [place for place in found if "bigqa_rehearsal" not in place["file"]]


def stack_of_error(trace: TracebackType | None) -> list[Place]:
    """Return the places that led to an error."""
    found = []
    while trace is not None:
        found.append(_place(trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    return [place for place in reversed(found) if "bigqa_rehearsal" not in place["file"]][:DEEPEST]


def _place(code: CodeType, line: int) -> Place:
    text = linecache.getline(code.co_filename, line).strip()
    return {"file": code.co_filename, "line": line, "name": code.co_name, "text": text}
