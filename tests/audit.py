"""What is committed holds no secret, and no pinned package is known to be unsafe. Run by `make audit`.

Secrets are looked for by detect-secrets, in the files that git tracks; pins by pip-audit, in PyPI's list of what is
known of each release. Where that list cannot be reached it is said in a line: a network is no fault of the code.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NO_SECRETS = ("PASSWORD", "secret", "wrong")
"""Passwords of addresses in examples and tests."""
NO_SECRET_LINES = (r'"commit": "', r"\b[0-9a-f]{64}\b")
"""Lines with a report's commit, and with the SHA-256 of a published file."""


def secrets(root: Path) -> list[str]:
    """Return where a file that git tracks looks as if it held a secret, a line each."""
    words = ["--exclude-secrets", f"^({'|'.join(NO_SECRETS)})$"]
    words += [word for line in NO_SECRET_LINES for word in ("--exclude-lines", line)]
    found = json.loads(_said([sys.executable, "-m", "detect_secrets", "scan", *words], root))
    return [f"{one['type']}: {file}:{one['line_number']}" for file, all in found["results"].items() for one in all]


def known_faults(pins: Path) -> tuple[list[str], list[str]]:
    """Return what is known against pinned releases, a line each, and the names of those that could not be looked up."""
    words = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "-r", str(pins)]
    said = _said([sys.executable, "-m", "pip_audit", *words], ROOT, needs_network=True)
    if not said:
        return [], ["all of them"]
    found: list[dict[str, Any]] = json.loads(said)["dependencies"]
    lines = [
        f"{one['name']} {one['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'no release'}"
        for one in found
        for fault in one.get("vulns", ())
    ]
    return lines, [one["name"] for one in found if "skip_reason" in one]


def _said(command: Sequence[str], folder: Path, *, needs_network: bool = False) -> str:
    """Return what a program prints; one that finds something ends with 1. Nothing: it found no network."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.stdout.strip() and done.returncode in (0, 1):
        return done.stdout
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    if needs_network and "onnection" in done.stderr:
        print(f"the list of known faults cannot be reached: {last}")
        return ""
    raise SystemExit(f"{' '.join(command[1:4])}: {last}")


def main() -> int:
    """Look; return an exit status."""
    held = secrets(ROOT)
    faults, unknown = known_faults(ROOT / "constraints.txt")
    for line in (*held, *faults):
        print(line, file=sys.stderr)
    print(
        f"secrets: {len(held)}; known faults of pinned releases: {len(faults)}; releases not looked up: {len(unknown)}"
    )
    return 1 if held or faults else 0


if __name__ == "__main__":
    sys.exit(main())
