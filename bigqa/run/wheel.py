"""The code that runs, as a wheel. In: a folder. Out: a file that `pip install` takes, with what is imported now.

Packed from the package as it lies there: it does not matter whether that is a checkout, or was installed from a wheel.
Source of the form: PyPA specifications, "Binary distribution format".
"""

import base64
import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

import bigqa
from bigqa import __version__
from bigqa.errors import BigqaError
from bigqa.language import tr

PACKAGE = Path(bigqa.__file__).parent
LEFT_OUT = ("__pycache__", ".pyc")
WHEEL = "Wheel-Version: 1.0\nGenerator: bigqa\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path) -> Path:
    """Write the wheel of this bigqa into a folder. Raises: BigqaError where its own description is not installed."""
    try:
        about = importlib.metadata.distribution("bigqa")
    except importlib.metadata.PackageNotFoundError:
        raise BigqaError(tr("this bigqa is not installed, so nothing says what it needs: make install")) from None
    info = f"bigqa-{__version__}.dist-info"
    description = about.read_text("METADATA") or about.read_text("PKG-INFO") or ""  # the second: beside a checkout
    entries = {"METADATA": description, "entry_points.txt": about.read_text("entry_points.txt") or ""}
    path, rows = folder / f"bigqa-{__version__}-py3-none-any.whl", []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:

        def add(name: str, content: bytes) -> None:
            wheel.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(content)}\n")

        for file in sorted(PACKAGE.rglob("*")):
            if file.is_file() and not any(part.endswith(LEFT_OUT) for part in file.parts):
                add(f"bigqa/{file.relative_to(PACKAGE).as_posix()}", file.read_bytes())
        for name, text in (entries | {"WHEEL": WHEEL}).items():
            add(f"{info}/{name}", text.encode())
        wheel.writestr(f"{info}/RECORD", "".join(rows) + f"{info}/RECORD,,\n")
    return path
