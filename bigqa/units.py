"""Units: sizes and times as people write them, and back. GiB = 2**30 bytes everywhere."""

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
