"""Runs the tests of the null GPU where torch's CUDA build is there or can be had. Run by `make test-null-gpu`.

Those that take minutes are left out unless WHOLE is set. Where the build cannot be downloaded that is said in a line,
and all are passed over: a network is no fault of the code.
"""

import os
import sys
from pathlib import Path

from bigqa.errors import BigqaError
from bigqa.nullgpu.build import libraries_for
from bigqa.nullgpu.python import ask
from bigqa.nullgpu.torch_build import NotInstalled, cuda_build

PYTEST = ("-m", "pytest", "--numprocesses", "2", "--dist", "worksteal")
MARKED = "nullgpu" if os.environ.get("WHOLE") else "nullgpu and not slow"


def main() -> int:
    """Run them; return an exit status where they cannot be run."""
    python = ask(Path(sys.executable))
    try:
        libraries_for(python, cuda_build(python, install=True), install=True)
    except NotInstalled as error:
        print(f"tests of the null GPU are passed over: {error}")
        return 0
    except BigqaError as error:
        print(f"tests of the null GPU cannot run: {error}", file=sys.stderr)
        return 2
    os.execv(sys.executable, [sys.executable, *PYTEST, "-m", MARKED, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
