"""TensorBoard's events of a run, each whole when it is written. In: figures of steps. Out: `tensorboard/events.*`.

TensorBoard's own writer has a thread, which dies with a traceback where the disk is away for a moment.
Source of the form: tensorboard/compat/proto/event.proto, tensorboard/summary/writer/record_writer.py.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from bigqa.engine.loop.disk import Appended

FIRST = "brain.Event:2"


class Events:
    """A file of events."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._file = Appended(folder / f"events.out.tfevents.{now:010.0f}.{socket.gethostname()}.{os.getpid()}.0")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=now, file_version=FIRST))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a step, by name."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
