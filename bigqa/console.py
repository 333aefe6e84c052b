"""How a command ends. In: a Typer application. Out: its exit code; an error is one line."""

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bigqa.errors import BigqaError

DEBUG_VARIABLE = "BIGQA_DEBUG"
INTERRUPTED = 130
PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""What the command line's parser raises: click's UsageError, be it click's own or the copy within typer."""

console = Console(width=None if sys.stdout.isatty() else 120)
stderr = Console(stderr=True)


def say(text: str) -> None:
    """Print a line as it is: nothing in it is markup, and no line is broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print a line beside the output: on standard error."""
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


def command(app: Callable[..., Any]) -> None:
    """Run a command line and exit."""
    quiet_libraries()
    if os.environ.get(DEBUG_VARIABLE):
        app()
        return
    try:
        code = app(standalone_mode=False)  # else the parser's own errors are told by it, in several lines
        sys.exit(code if isinstance(code, int) else 0)
    except BigqaError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except PARSER_ERROR as error:
        _refuse(error)
    except OSError as error:
        if error.errno == errno.EPIPE:
            os._exit(1)
        where = f": {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{where}", 1)


def _refuse(error: Any) -> None:
    """End with what the command line's parser has to say: in one line, but for the help that it gives to no words."""
    if "\n" in error.format_message():
        error.show()
        sys.exit(error.exit_code)
    of = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
    fail(error.format_message() + of, error.exit_code)


def fail(text: str, exit_code: int) -> None:
    """Print an error in one line, from one process of a run, and exit."""
    if os.environ.get("RANK", "0") == "0":
        tell("bigqa: " + " ".join(text.split()))
    sys.stdout.flush()
    os._exit(exit_code)  # a process of several must not wait at exit for one that is gone


def quiet_libraries() -> None:
    """Keep libraries' own bars and advice off the screen; what matters bigqa says itself."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns of what it finds out by itself


@contextlib.contextmanager
def progress(label: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left, on a terminal; yield the function that takes (done, total)."""
    columns = (TextColumn(label), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=stderr, transient=True, disable=not (shown and stderr.is_terminal))
    with bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
