"""Which card is which. In: nothing. Out: NVML's handle of each card that CUDA counts, in CUDA's order.

CUDA counts the fastest card first unless CUDA_DEVICE_ORDER says otherwise, leaves out what CUDA_VISIBLE_DEVICES does
not name, and takes a MIG slice for a card; NVML counts all cards by their place on the bus. A UUID is the one name that
both have for a card, so CUDA itself is asked for those of the cards that it counts. All that wants a card of NVML's
goes through here.
"""

import ctypes
import functools
import os
import subprocess
import sys
import uuid
from typing import Any

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
NO_DEVICE = 100
"""`CUDA_ERROR_NO_DEVICE`: CUDA_VISIBLE_DEVICES may leave none."""
MOST = 64
"""Cards of a machine, and slices of a card."""


def handles(nvml: Any) -> list[Any]:
    """Return a handle of `pynvml`, which must be initialised, for each of CUDA's cards: that of `cuda:0` first."""
    counted = cuda_uuids()
    try:
        if counted is not None:
            return [_with_uuid(nvml, one) for one in counted]
    except nvml.NVMLError:  # a driver that names cards otherwise
        pass
    cards = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    names = [str(nvml.nvmlDeviceGetUUID(card)) for card in cards]
    slices = [one for card in cards for one in _slices(nvml, card)]
    names_of_slices = [str(nvml.nvmlDeviceGetUUID(one)) for one in slices]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [(cards + slices)[index] for index in visible(wanted, names, names_of_slices)]


def capability(nvml: Any, card: Any) -> tuple[int, int]:
    """Return a card's compute capability; a slice has its card's."""
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(card)
    except nvml.NVMLError:
        whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(card)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(whole)
    return int(major), int(minor)


def cuda_uuids() -> list[str] | None:
    """Return the UUIDs of the cards that CUDA counts, in its order; none where it cannot be asked.

    It is asked in a process of its own: one that has asked cannot fork and go on using CUDA. No context is made, so
    none of a card's memory is taken. That process is this file alone, which therefore imports nothing of bigqa's.
    """
    return _asked(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER"))


@functools.cache
def _asked(*_: str | None) -> list[str] | None:
    command = [sys.executable, "-I", "-S", __file__]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return None if done.returncode else done.stdout.split()


def _ask() -> list[str] | None:
    cuda: Any = ctypes.CDLL(DRIVER)
    # The first form of the question names a slice's whole card.
    uuid_of = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
    status, count = cuda.cuInit(0), ctypes.c_int()
    if status == NO_DEVICE:
        return []
    if status or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return None
    found = []
    for number in range(count.value):
        device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        if cuda.cuDeviceGet(ctypes.byref(device), number) or uuid_of(raw, device):
            return None
        found.append(str(uuid.UUID(bytes=bytes(raw))))
    return found


def _with_uuid(nvml: Any, number: str) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{number}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{number}")


def _slices(nvml: Any, card: Any) -> list[Any]:
    """Return the MIG slices of a card; one that is not cut has none."""
    try:
        count = min(MOST, int(nvml.nvmlDeviceGetMaxMigDeviceCount(card)))
    except nvml.NVMLError:
        return []
    found = []
    for index in range(count):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index))
        except nvml.NVMLError:  # a place without a slice
            continue
    return found


def visible(wanted: str | None, uuids: list[str], slices: list[str] | None = None) -> list[int]:
    """Return the indices of the cards that CUDA_VISIBLE_DEVICES leaves, in its order: numbers, or how UUIDs begin.

    As CUDA reads it: what comes after the first that is not there is left out, and where one is named twice none is
    left. None: all of them. `slices`: UUIDs of MIG slices, counted on from the cards.
    """
    if wanted is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for word in (one.strip() for one in wanted.split(",")):
        index = _index(word, uuids, slices or [])
        if index is None:
            break
        if index in found:
            return []
        found.append(index)
    return found


def _index(word: str, uuids: list[str], slices: list[str]) -> int | None:
    if word.isdigit():
        return int(word) if int(word) < len(uuids) else None
    fitting = [index for index, name in enumerate([*uuids, *slices]) if word and name.startswith(word)]
    return fitting[0] if len(fitting) == 1 else None


if __name__ == "__main__":
    answer = _ask()
    if answer is None:
        sys.exit(1)
    print(*answer)
