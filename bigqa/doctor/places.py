"""Folders: can a run be kept there, and how fast is the disk? In: a folder. Out: findings, which do not name it."""

import os
from collections.abc import Iterator
from pathlib import Path

from bigqa.doctor.finding import Finding, bare
from bigqa.errors import BigqaError
from bigqa.files import asked_cache
from bigqa.language import tr
from bigqa.machine.hardware import disk_rates, free_space
from bigqa.units import GIB, MIB, format_bytes

TRIED_BYTES = 64 * MIB
RUN_BYTES = 5 * GIB
"""What a run of bert-base keeps: two checkpoints and one that is being written, 12 bytes a parameter, and the model."""
SLOW_BYTES_PER_S = 50 * 10**6
LARGE_STATE_BYTES = 12 * 330 * 10**6
CACHE_BYTES = GIB
FULL = tr("no model can be saved there")
ELSEWHERE = tr("free some space, or name another folder: bigqa doctor --folder DIR")


def findings(folder: Path) -> Iterator[Finding]:
    """Look at the folder that runs are kept in, and at the cache."""
    yield run_folder(folder)
    yield cache(asked_cache())


def run_folder(folder: Path) -> Finding:
    """Say whether runs can be kept in a folder."""
    name, free = tr("run folder"), free_space(folder) or 0
    size = format_bytes(free)
    if free < TRIED_BYTES:
        return Finding(name, tr("{size} free", size=size), FULL, ELSEWHERE, broken=True)
    try:
        write, read = disk_rates(folder, TRIED_BYTES)
    except BigqaError as error:
        reason = str(error).rpartition(": ")[2]
        return Finding(name, bare(reason), FULL, tr("name another folder: bigqa doctor --folder DIR"), broken=True)
    rates = {"write": write / 1e6, "read": read / 1e6}
    found = tr("{size} free; written at {write:,.0f} MB/s, read at {read:,.0f}", size=size, **rates)
    if free < RUN_BYTES:
        cost = tr("a run of bert-base (110M parameters) keeps 4.4 GiB, one of a large model (330M) 13 GiB")
        return Finding(name, found, cost, tr("{elsewhere}; `bigqa train --keep 1` keeps less", elsewhere=ELSEWHERE))
    if write < SLOW_BYTES_PER_S:
        seconds = LARGE_STATE_BYTES / write
        cost = tr("a checkpoint of a large model (330M) takes {seconds:,.0f} s each time", seconds=seconds)
        return Finding(name, found, cost, tr("save less often (--save-every), or name another folder"))
    return Finding(name, found)


def cache(folder: Path) -> Finding:
    """Say whether features and traces can be kept between runs."""
    free = free_space(folder)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    again = tr("features, traces and torch's CUDA build are made, or fetched, again each time")
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(tr("cache"), tr("cannot be written"), again, tr("BIGQA_CACHE names another folder"))
    found = tr("{size} free", size=format_bytes(free or 0))
    if free is not None and free < CACHE_BYTES:
        return Finding(tr("cache"), found, again, tr("free some space; BIGQA_CACHE names another folder"))
    return Finding(tr("cache"), found)
