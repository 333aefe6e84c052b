"""Folders: can a run be kept there, and how fast is the disk? In: a folder. Out: findings, which do not name it."""

import os
from collections.abc import Iterator
from pathlib import Path

from bigqa.doctor.finding import Finding, bare
from bigqa.errors import BigqaError
from bigqa.files import asked_cache
from bigqa.machine.hardware import disk_rates, free_space
from bigqa.units import GIB, MIB, format_bytes

TRIED_BYTES = 64 * MIB
RUN_BYTES = 5 * GIB
"""What a run of bert-base keeps: two checkpoints and one that is being written, 12 bytes a parameter, and the model."""
SLOW_BYTES_PER_S = 50 * 10**6
LARGE_STATE_BYTES = 12 * 330 * 10**6
CACHE_BYTES = GIB
FULL = "no model can be saved there"
ELSEWHERE = "free some space, or name another folder: bigqa doctor --folder DIR"


def findings(folder: Path) -> Iterator[Finding]:
    """Look at the folder that runs are kept in, and at the cache."""
    yield run_folder(folder)
    yield cache(asked_cache())


def run_folder(folder: Path) -> Finding:
    """Say whether runs can be kept in a folder."""
    name, free = "run folder", free_space(folder) or 0
    if free < TRIED_BYTES:
        return Finding(name, f"{format_bytes(free)} free", FULL, ELSEWHERE, broken=True)
    try:
        write, read = disk_rates(folder, TRIED_BYTES)
    except BigqaError as error:
        reason = str(error).rpartition(": ")[2]
        return Finding(name, bare(reason), FULL, "name another folder: bigqa doctor --folder DIR", broken=True)
    found = f"{format_bytes(free)} free; written at {write / 1e6:,.0f} MB/s, read at {read / 1e6:,.0f}"
    if free < RUN_BYTES:
        cost = "a run of bert-base (110M parameters) keeps 4.4 GiB, one of a large model (330M) 13 GiB"
        return Finding(name, found, cost, f"{ELSEWHERE}; `bigqa train --keep 1` keeps less")
    if write < SLOW_BYTES_PER_S:
        seconds = LARGE_STATE_BYTES / write
        cost = f"a checkpoint of a large model (330M) takes {seconds:,.0f} s each time"
        return Finding(name, found, cost, "save less often (--save-every), or name another folder")
    return Finding(name, found)


def cache(folder: Path) -> Finding:
    """Say whether features and traces can be kept between runs."""
    free = free_space(folder)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    again = "features, traces and torch's CUDA build are made, or fetched, again each time"
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("cache", "cannot be written", again, "BIGQA_CACHE names another folder")
    if free is not None and free < CACHE_BYTES:
        return Finding(
            "cache", f"{format_bytes(free)} free", again, "free some space; BIGQA_CACHE names another folder"
        )
    return Finding("cache", f"{format_bytes(free or 0)} free")
