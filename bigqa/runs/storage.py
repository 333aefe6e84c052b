"""Where the trials of a sweep are kept. In: what --storage says. Out: Optuna's storage, or a line that says what lacks.

A database of Optuna's (SQLite in the folder by default), a journal file that several machines see, or Redis. A database
that is away for a while is waited for: hours of training are not lost with it.
"""

import importlib.util
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bigqa.console import say
from bigqa.errors import BigqaError, UsageError, in_a_line
from bigqa.language import tr

DATABASE, JOURNAL, REDIS = "study.db", "journal:", ("redis://", "rediss://")
DRIVERS = {
    "postgresql": (("psycopg", "psycopg2"), "'bigqa[postgresql]'"),
    "mysql": (("MySQLdb", "pymysql"), "mysqlclient"),
}
"""Kind of a database -> modules of which one must be there, and what brings it. SQLAlchemy's own choice hangs
on its version."""
LOCKED_S = 60.0
"""Longest wait for SQLite while another process writes."""
CONNECT_S = 7
"""Longest wait for one address of a server that does not answer; of a name that has two, such as localhost, twice."""
WAITS: dict[str, dict[str, float]] = {
    "pysqlite": {"timeout": LOCKED_S},
    "psycopg": {"connect_timeout": CONNECT_S},
    "psycopg2": {"connect_timeout": CONNECT_S},
    "mysqldb": {"connect_timeout": CONNECT_S},
    "pymysql": {"connect_timeout": CONNECT_S},
}
"""Driver -> its own options that say how long it waits."""
COLLISIONS, COLLISION_S = 10, 0.5
"""How often tables that others make are waited for, and how long each time."""
AWAY_S = 1800.0
"""Longest wait for a database that is away, once a sweep has begun."""
Result = TypeVar("Result")


def check_installed() -> None:
    """Refuse to search without Optuna. Raises: BigqaError."""
    if importlib.util.find_spec("optuna") is None:
        raise BigqaError(tr("`bigqa sweep` needs Optuna: pip install 'bigqa[sweep]'"))


def storage_of(asked: str | None, folder: Path) -> Any:
    """Return the storage. Raises: UsageError for what is none; BigqaError where it cannot be reached."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if asked is not None and asked.startswith((JOURNAL, *REDIS)):
            return _journal(asked)
        return _database(asked or f"sqlite:///{(folder / DATABASE).absolute()}")
    except (UsageError, BigqaError):
        raise
    except Exception as error:  # SQLAlchemy's, a driver's, Redis' own: each library has its kinds
        raise _unreachable(asked, error) from None


def _journal(asked: str) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalRedisBackend

    if asked.startswith(REDIS):
        if importlib.util.find_spec("redis") is None:
            raise BigqaError(tr("--storage {address} needs a driver: pip install redis", address=hidden(asked)))
        return JournalStorage(JournalRedisBackend(asked))
    file = Path(asked.removeprefix(JOURNAL))
    if not file.parent.is_dir():
        raise UsageError(tr("--storage {asked}: there is no folder {parent}", asked=asked, parent=file.parent))
    return JournalStorage(JournalFileBackend(str(file)))


def _database(url: str) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(url)
    except ArgumentError:
        raise UsageError(
            tr(
                "--storage {address} is no address of a database: write it like "
                "postgresql://USER:PASSWORD@HOST/NAME, sqlite:///FILE, or journal:FILE",
                address=hidden(url),
            )
        ) from None
    if address.drivername in DRIVERS:
        address = address.set(drivername=f"{address.drivername}+{_driver(address.drivername, url).lower()}")
    more: dict[str, Any] = {} if address.get_backend_name() == "sqlite" else {"pool_pre_ping": True}
    # What the address itself says goes before.
    waits = {
        name: value for name, value in WAITS.get(_name_of_driver(address), {}).items() if name not in address.query
    }
    if waits:
        more["connect_args"] = waits
    return _once_made(lambda: RDBStorage(address.render_as_string(hide_password=False), engine_kwargs=more))


def _once_made(make: Callable[[], Result]) -> Result:
    """Open a database; where others make its tables at this moment, wait for them: Optuna's own steps collide."""
    from sqlalchemy.exc import DBAPIError, IntegrityError

    for _ in range(COLLISIONS):
        try:
            return make()
        except DBAPIError as error:
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
            time.sleep(COLLISION_S)
    return make()


def _name_of_driver(address: Any) -> str:
    """Return what talks to a database, where that is known to SQLAlchemy."""
    from sqlalchemy.exc import NoSuchModuleError

    try:
        return str(address.get_driver_name())
    except NoSuchModuleError:  # told when it is to be used
        return ""


def _driver(kind: str, url: str) -> str:
    """Return what talks to a kind of database here. Raises: BigqaError where nothing does."""
    modules, package = DRIVERS[kind]
    found = next((name for name in modules if importlib.util.find_spec(name) is not None), None)
    if found is None:
        raise BigqaError(
            tr("--storage {address} needs a driver: pip install {package}", address=hidden(url), package=package)
        )
    return found


def hidden(url: str) -> str:
    """Return an address without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _unreachable(asked: str | None, error: Exception) -> BigqaError:
    said = hidden(in_a_line(error).partition("\n")[0])
    return BigqaError(tr("--storage {address} cannot be used: {said}", address=hidden(asked or DATABASE), said=said))


def at_last(work: Callable[[], Result]) -> Result:
    """Do what may fail while the database is away, again and again. Raises: BigqaError after half an hour."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DBAPIError

    deadline, pause, told = time.monotonic() + AWAY_S, 1.0, False
    while True:
        try:
            return work()
        except (StorageInternalError, DBAPIError) as error:
            if time.monotonic() > deadline:
                raise BigqaError(
                    tr("the storage of the sweep is away: {error}; the same command goes on", error=in_a_line(error))
                ) from None
            if not told:
                say(tr("the storage of the sweep does not answer; runs go on, and it is waited for"))
                told = True
            time.sleep(pause)
            pause = min(30.0, 2 * pause)
