"""Units: sizes and times as people write them, and back. GiB = 2**30 bytes everywhere."""

import re

GIB = 2**30
MIB = 2**20


def format_bytes(size_bytes: float) -> str:
    """Return e.g. "7.42 GiB", or "312 MiB" below one GiB."""
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"


def format_seconds(seconds: float) -> str:
    """Return e.g. "41 s", "3 min 20 s" or "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m(?:in)?)?(?:([0-9]+)s)?", re.IGNORECASE)


def parse_seconds(text: str) -> int:
    """Return the seconds of a time as people write it: "11h30m", "90m", "45s", "1d12h". Raises: ValueError."""
    found = DURATION.fullmatch("".join(text.split()))
    if found is None or not any(found.groups()):
        raise ValueError(f"{text!r} is not a time; write it like 11h30m, 90m or 45s")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


SIZE = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Return the bytes of a size as people write it: "8GiB", "8GB" (10**9), "7600MiB", "8G" (GiB).

    Raises: ValueError.
    """
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size; write it like 8GiB or 7600MiB")
    number, prefix, binary = found.groups()
    decimal = text.strip().lower().endswith("b") and not binary
    unit = 1000 if decimal else 1024
    return int(float(number) * unit ** ("KMGT".index(prefix.upper()) + 1 if prefix else 0))
