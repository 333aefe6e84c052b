"""What the processes of a rehearsed command wrote down. In: their folder. Out: facts, of who took most first."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Facts:
    """Of one process."""

    found: Mapping[str, Any]
    snapshot_file: Path
    command_failed: bool = False

    @property
    def device(self) -> Mapping[str, Any]:
        """The device that most was used of."""
        devices: list[Mapping[str, Any]] = self.found["devices"]
        return max(devices, key=lambda device: device["used_bytes"])

    @property
    def rank(self) -> int:
        """Its rank."""
        return int(self.found["rank"])

    def snapshot(self) -> dict[str, Any]:
        """Return torch's own record."""
        with self.snapshot_file.open("rb") as file:
            found: dict[str, Any] = pickle.load(file)
        return found

    @property
    def marks(self) -> list[tuple[str, int]]:
        """(phase, steps done when it began)."""
        return [(phase, step) for phase, step in self.found["marks"]]

    @property
    def tags(self) -> dict[int, dict[int, str]]:
        """For some marks: what lay at an address."""
        return {mark: dict(map(tuple, places)) for mark, places in self.found["tags"]}

    @property
    def is_short(self) -> bool:
        """Whether it ended because memory ran out.

        Many programs catch torch's error, say it in words of their own and end: then no step followed the shortage.
        """
        failure, shortages = self.found["failure"], self.found["shortages"]
        if failure is not None:
            return "OutOfMemoryError" in failure["type"]
        return bool(self.command_failed and shortages and shortages[-1]["step"] > self.found["steps"])


def read_facts(folder: Path, *, command_failed: bool = False) -> list[Facts]:
    """Return the facts of all processes that used the GPU."""
    found = [
        Facts(json.loads(file.read_text(encoding="utf-8")), file.with_suffix(".pickle"), command_failed)
        for file in folder.glob("*.json")
    ]
    return sorted(
        (facts for facts in found if facts.found["devices"]),
        key=lambda facts: (-facts.is_short, -facts.device["used_bytes"], facts.rank),
    )
