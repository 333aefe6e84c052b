"""How a command ends. In: a Typer application. Out: its exit code; an error is one line."""

import atexit
import contextlib
import copy
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from bigqa import arguments, interrupts, language, streams
from bigqa.errors import LACKING, BigqaError, UsageError, in_a_line, one_line
from bigqa.files import as_it_lies
from bigqa.language import joined, put, shown, tr

DEBUG_VARIABLE = "BIGQA_DEBUG"
INTERRUPTED = 130
PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""What the command line's parser raises: click's UsageError, be it click's own or the copy within typer."""
UNFORESEEN = tr("unforeseen")
"""How a line begins about an error that is bigqa's own to mend."""
PIPE_COLUMNS = 120
"""Of a table where no terminal says how wide it is, nor COLUMNS."""
FLEXIBLE_COLUMNS = 24
"""Into so many a column may be folded, or cut, that takes a share of what is left (rich's `ratio`)."""


def _width() -> int | None:
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return None if is_terminal or os.environ.get("COLUMNS", "").isdigit() else PIPE_COLUMNS


console = Console(width=_width())
stderr = Console(stderr=True)


def say(text: str) -> None:
    """Print a line as it is: nothing in it is markup, and no line is broken."""
    console.print(shown(text), markup=False, highlight=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print a line beside the output: on standard error."""
    stderr.print(shown(text), markup=False, highlight=False, soft_wrap=True)


def show(table: Table, where: Console = console, spare: Sequence[str] = ()) -> None:
    """Print a table; where its rows are wider than the terminal, each row as lines of its own.

    `spare`: columns that may be left out before it comes to lines, the one that is missed least first.
    """
    for count in range(len(spare) + 1):
        narrow = in_language(_without(table, spare[:count]) if count else table)
        if _columns_of(narrow) <= where.width:
            where.print(narrow)
            if count:
                left_out = joined(", ", spare[:count])
                note(tr("Left out, for a wider terminal or a pipe: {left_out}.", left_out=left_out), where)
            return
    table = in_language(table)
    if table.title:
        where.print(Text(str(table.title), style="italic"))
    heads = [str(column.header) for column in table.columns]
    rows = zip(*(column.cells for column in table.columns), strict=True)
    for row, (first, *cells) in zip(table.rows, rows, strict=True):
        where.print(Text(str(first), style=row.style or ""))
        named = (f"{head} {cell}".strip() for head, cell in zip(heads[1:], cells, strict=True) if str(cell).strip())
        where.print(Padding(Text(", ".join(named), style=row.style or ""), (0, 0, 0, 2)))


def in_language(table: Table) -> Table:
    """Return a table whose title, headings and cells are in the language of this process."""
    if language.spoken() == language.LANGUAGES[0]:
        return table
    table = copy.deepcopy(table)
    table.title = _in_language(table.title)
    for column in table.columns:
        column.header = _in_language(column.header)
        column._cells = list(map(_in_language, column._cells))
    return table


def _in_language(cell: Any) -> Any:
    return shown(cell) if isinstance(cell, language.Text) else cell


def note(text: str, where: Console = console) -> None:
    """Print a remark below a table: in a pipe as one line, on a terminal broken between words."""
    where.print(shown(text), markup=False, highlight=False, soft_wrap=not where.is_terminal)


def _without(table: Table, names: Sequence[str]) -> Table:
    narrow = Table(title=table.title, box=table.box, padding=0, pad_edge=table.pad_edge)
    kept = [column for column in table.columns if column.header not in names]
    for column in kept:
        narrow.add_column(column.header, no_wrap=column.no_wrap, ratio=column.ratio, justify=column.justify)
    for row, cells in zip(table.rows, zip(*(column.cells for column in kept), strict=True), strict=True):
        narrow.add_row(*cells, style=row.style)
    return narrow


def _columns_of(table: Table) -> int:
    """Return how wide a table must be to keep its words and figures whole."""
    count, sides = len(table.columns), table.padding[1] + table.padding[3]
    between = (count + 1 if table.box else 0) + count * sides - (0 if table.pad_edge else sides)
    return between + sum(map(_columns_of_one, table.columns))


def _columns_of_one(column: Column) -> int:
    lines = [line for cell in (column.header, *column.cells) for line in str(cell).split("\n")]
    widest = max(map(cell_len, lines), default=0)
    return widest if column.ratio is None else min(widest, FLEXIBLE_COLUMNS)


def as_program(run: Callable[[], None]) -> NoReturn:
    """Run to the end of this process, which takes nothing apart: piece by piece, that lasts as long as some commands.

    Threads are waited for, and what was registered for the end is done, as ever.
    """
    code: Any = 0
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        code = end.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def command(app: Callable[..., Any]) -> None:
    """Run a command line and exit."""
    asked = language.take_option(sys.argv)
    streams.secure()
    quiet_libraries()
    if isinstance(app, typer.Typer):
        app = arguments.parser_of(app)
    if os.environ.get(DEBUG_VARIABLE):
        sys.argv[1:] = _on_the_disk(sys.argv[1:])
        app()
        return
    try:
        try:
            _refuse_language(asked)
            _refuse_empty_words(sys.argv[1:])
            sys.argv[1:] = _on_the_disk(sys.argv[1:])
            code = app(standalone_mode=False)  # else the parser's own errors are told by it, in several lines
        finally:
            sys.stdout.flush()  # here, where a full disk behind a redirection is told in a line
        if interrupts.was_raised():  # the parser takes a KeyboardInterrupt for itself
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except BigqaError as error:
        fail(error.shown, error.exit_code, told=error.told)
    except KeyboardInterrupt:
        fail(tr("interrupted"), interrupts.code_of(interrupts.first() or signal.SIGINT))
    except PARSER_ERROR as error:
        _refuse(error)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{where}", 1)
    except Exception as error:
        if lacks_memory(error):
            problem = in_a_line(error)
            fail(tr("the host's memory ran out, or what a process may have of it: {problem}", problem=problem), 1)
        what, where = f"{type(error).__name__}: {in_a_line(error)}", _kept_traceback(error)
        fail(put("{unforeseen} {what}{where}", unforeseen=UNFORESEEN, what=what, where=where), 1)


def lacks_memory(error: Exception) -> bool:
    """Tell a lack of the host's memory, where there is nothing to step down from: as a run starts."""
    return isinstance(error, MemoryError) or any(mark in str(error).lower() for mark in LACKING)


def _refuse_language(asked: str | None) -> None:
    if asked is not None and asked not in language.LANGUAGES:
        known = ", ".join(language.LANGUAGES)
        raise UsageError(tr("--lang: {asked!r} is none of {known}", asked=asked, known=known))


def _ours(words: Sequence[str]) -> int:
    """Return how many words are bigqa's own: those behind "--" are another program's."""
    return words.index("--") if "--" in words else len(words)


def _refuse_empty_words(words: Sequence[str]) -> None:
    """Refuse a word without a letter, as of a shell's variable that is not set: as a path it would be this folder."""
    ours = words[: _ours(words)]
    if "" in ours:
        first = ours.index("")
        where = tr("after {word}", word=ours[first - 1]) if first else tr("at its start")
        raise UsageError(tr("the command has an empty word {where}: is a variable of the shell not set?", where=where))


def _on_the_disk(words: list[str]) -> list[str]:
    """Return words in which paths are what the disk calls them."""
    return [_path_of(word) for word in words[: _ours(words)]] + words[_ours(words) :]


def _path_of(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + as_it_lies(_at_home(value))


def _at_home(path: str) -> str:
    """Put the home folder in place of "~": shells leave it within quotes, and behind the sign that ends an option."""
    found = os.path.expanduser(path) if path == "~" or path.startswith("~/") else path
    if found.startswith("~/") or found == "~":
        raise UsageError(tr("{path}: there is no home folder here (HOME is not set); name the path in full", path=path))
    return found


def _kept_traceback(error: Exception) -> str:
    """Write down where an error is from that nobody foresaw; return where it is written."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="bigqa-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return tr(" ({variable}=1 shows where)", variable=DEBUG_VARIABLE)
    return tr(" (where, is in {file}; {variable}=1 shows it)", file=file.name, variable=DEBUG_VARIABLE)


def _refuse(error: Any) -> None:
    """End with what the command line's parser has to say: in one line, but for the help that it gives to no words."""
    if "\n" in error.format_message():
        error.show()
        sys.exit(error.exit_code)
    of = tr(" (see {command} --help)", command=error.ctx.command_path) if error.ctx is not None else ""
    fail(put("{problem}{of}", problem=arguments.problem(error.format_message()), of=of), error.exit_code)


def fail(text: str, exit_code: int, *, told: bool | None = None) -> None:
    """Print an error in one line, from one process of a run, and exit."""
    if (os.environ.get("RANK", "0") == "0") if told is None else not told:
        tell("bigqa: " + one_line(shown(text)))
    with contextlib.suppress(OSError):
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


def page_environment(templates: Path, **options: Any) -> Any:
    """Return what fills the templates of pages (jinja2): texts in them, and those put into them, in one language.

    `tr` marks a text; `word` a name of ours, such as that of a kind of memory; `lang` is for the page's head.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(templates)
    environment = jinja2.Environment(loader=loader, autoescape=True, finalize=_in_language, **options)
    environment.globals |= {"tr": tr, "word": put, "lang": language.spoken()}
    return environment


@contextlib.contextmanager
def progress(label: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left, on a terminal; yield the function that takes (done, total)."""
    columns = (TextColumn(language.shown(label)), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=stderr, transient=True, disable=not (shown and stderr.is_terminal))
    with bar:
        task = bar.add_task(language.shown(label), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
