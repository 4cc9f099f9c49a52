"""The storage of a hyper-parameter search: Optuna's tables in an SQLite file or on a PostgreSQL server.

An SQLite file serves the processes of one machine, a server those of many. Either keeps every write that was acknowledged,
whatever process is killed. No password is in what we hold, print or send: PostgreSQL's client library reads it from
PGPASSWORD or a password file (PGPASSFILE, ~/.pgpass) in each process that connects.
"""

from __future__ import annotations

import os
import re
import sqlite3
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from attempt_ray.bank.durable import lock_within, storage_errors, sync_directory
from attempt_ray.config import carries_secret
from attempt_ray.errors import AttemptError, ConfigError, IntegrityError, StorageError

BUSY_SECONDS = 60.0
"""Longest wait for other processes that write to the same storage, or make its tables."""

CONNECT_SECONDS = 5
"""Longest wait for a server at each of its addresses; a name such as `localhost` often has two."""

_MOUNT_TABLE = Path("/proc/self/mountinfo")
_WANTED = "the path of an SQLite file, or postgresql://user@host:port/database"
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")

# A file system in user space is taken for a network's unless it is known; 9p is a container's own disk.
_NETWORK = re.compile(
    "acfs|afs|beegfs|ceph|cifs|coda|davfs|glusterfs|gpfs|lustre|ncpfs|nfs4?|orangefs|panfs|pvfs2|smb3|smbfs|wekafs"
    r"|fuse(?!\.(bindfs|encfs|fuse-overlayfs|gocryptfs|lxcfs|mergerfs|ntfs|ntfs-3g|zfs)$)(\..*)?"
)

_SQLITE_FIXES = {
    sqlite3.SQLITE_BUSY: "another process holds the database: end it, or use PostgreSQL for many writers",
    sqlite3.SQLITE_CANTOPEN: "give this user the right to write there or choose another path",
    sqlite3.SQLITE_FULL: "free some space or choose another disk",
    sqlite3.SQLITE_IOERR: "check the disk (dmesg, free space, quota) or choose another",
    sqlite3.SQLITE_PERM: "give this user the right to write there or choose another path",
    sqlite3.SQLITE_READONLY: "make the file, its directory and its disk writable or choose another path",
}
_SQLITE_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_POSTGRESQL_FIXES = {
    "25006": "connect to the server that takes writes, not to its replica",
    "28": "check the user and the password, which is read from PGPASSWORD or ~/.pgpass",
    "3D000": "create the database (createdb) or name another",
    "42501": "give the user the right to create and write tables there",
    "53": "give the server room: disk, memory or connections (max_connections)",
    "55P03": "another process is making the tables: end it",
}
_POSTGRESQL_LOST = ("08", "57P", "58", "XX")
_REACH = "check that the server runs and can be reached from here"
# A connection that is refused carries no state, only the server's words.
_POSTGRESQL_WORDS = (
    (re.compile("password|authentication"), _POSTGRESQL_FIXES["28"]),
    (re.compile('database ".*" does not exist'), _POSTGRESQL_FIXES["3D000"]),
    (re.compile("too many (clients|connections)|remaining connection slots"), _POSTGRESQL_FIXES["53"]),
)


class _BackEnd(Protocol):
    """A database that Optuna's tables can be in."""

    place: str
    name: str
    url: str
    engine_kwargs: Mapping[str, Any]

    def alone(self) -> AbstractContextManager[None]:
        """Keep others from making the tables meanwhile; the database is there and whole inside the block."""

    def held(self, study: str) -> AbstractContextManager[bool]:
        """Hold a study, where nobody else does, which is told."""

    def listen(self, engine: sqlalchemy.Engine) -> None:
        """Have the engine do what the database needs."""

    def refusal(self, error: BaseException) -> AttemptError | None:
        """Return our error for a driver's, or None where the caller may go on or it is a bug."""


class _StudyStorage(RDBStorage):
    """Optuna's storage, which travels to another process as its place and connects there anew."""

    def __init__(self, back_end: _BackEnd) -> None:
        self._back_end = back_end
        # Optuna checks the schema by the words of an error; `_check_schema` asks for the versions.
        super().__init__(
            back_end.url, engine_kwargs=dict(back_end.engine_kwargs), skip_compatibility_check=True
        )

    def __reduce__(self) -> tuple[Callable[[str], RDBStorage], tuple[str]]:
        return open_study_storage, (self._back_end.place,)

    @property
    def engine(self) -> sqlalchemy.Engine:
        """What connects to the database; Optuna sets it before it connects."""
        return self._engine

    @engine.setter
    def engine(self, engine: sqlalchemy.Engine) -> None:
        self._engine = engine
        self._back_end.listen(engine)
        _tell_refusals(engine, self._back_end)
        weakref.finalize(self, engine.dispose)


def open_study_storage(place: str) -> RDBStorage:
    """Return the Optuna storage at a place; its file, directories and tables are made where they are missing.

    Operations on the storage raise as well what is below as StorageError and IntegrityError. The connections are closed
    with the storage itself.

    Args:
        place: Path of an SQLite file (``sqlite:///path`` means the same), or ``postgresql://user@host:port/database``.

    Raises:
        ConfigError: The place is neither, carries a password or is on a network file system, or its tables are those of
            another version of Optuna.
        IntegrityError: The file is damaged, or no SQLite database.
        StorageError: The disk or the server refused, or could not be reached.
    """
    back_end = _back_end(place)
    # Optuna prints each new study to stderr unless it is told otherwise.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _refusals(back_end), back_end.alone():
        storage = _StudyStorage(back_end)
    _check_schema(storage, back_end)
    return storage


def integrity_problem(place: str) -> str | None:
    """Return what is wrong with the database at a place, or None; a server checks its own.

    Args:
        place: As for `open_study_storage`; nothing is created.

    Raises:
        ConfigError: The place cannot be used.
        StorageError: The disk refused, or the file is not there.
    """
    back_end = _back_end(place)
    if not isinstance(back_end, _SQLite):
        return None
    try:
        with _refusals(back_end):
            back_end.check()
    except IntegrityError as error:
        return str(error)
    return None


@contextmanager
def held(place: str, study: str) -> Iterator[None]:
    """Hold a study for the time of the block, so that one process alone decides what it tries.

    Args:
        place: As for `open_study_storage`, which has been called before.
        study: Name of the study.

    Raises:
        ConfigError: Another process holds it.
        StorageError: The disk or the server refused.
    """
    back_end = _back_end(place)
    with ExitStack() as stack:
        with _refusals(back_end):
            free = stack.enter_context(back_end.held(study))
        if not free:
            raise ConfigError(
                f"study '{study}' in {back_end.name} is being searched by another process; wait for it or stop it, or "
                "set search.study to another name"
            )
        yield


def network_file_system(path: Path, *, mounts: str) -> str | None:
    """Return the type of the network file system that holds a path, such as ``nfs4``; None where it is local.

    Args:
        path: An absolute path without symbolic links; it need not exist.
        mounts: The table of mounts, as Linux writes it to /proc/self/mountinfo.
    """
    found, kind = Path(), ""
    for line in mounts.splitlines():
        mounted, _, described = line.partition(" - ")
        # Space, tab, newline and backslash are written as three octal digits.
        at = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mounted.split()[4]))
        # Of two mounts at one place the later hides the earlier.
        if path.is_relative_to(at) and len(at.parts) >= len(found.parts):
            found, kind = at, described.split()[0]
    return kind if _NETWORK.fullmatch(kind) else None


class _SQLite:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = self.name = str(path)
        self.url = sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()
        self.engine_kwargs: Mapping[str, Any] = {"creator": self._connect}
        # While it makes its tables, Optuna reads on a second connection inside a transaction of the first.
        self._begin = "BEGIN"

    @contextmanager
    def alone(self) -> Iterator[None]:
        self._refuse_network()
        self._make_directory()
        # The directory is locked, not the file: to close a descriptor of the file would drop SQLite's own locks.
        with storage_errors(f"lock {self.path.parent}"):
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not lock_within(directory, BUSY_SECONDS):
                raise StorageError(
                    f"cannot open the study storage {self.name}: another process has been opening one in its directory "
                    f"for {BUSY_SECONDS:.0f} s; end that process and try again"
                )
            self._make_file()
            self.check()
            yield
        finally:
            os.close(directory)
        # SQLite knows no SELECT ... FOR UPDATE: without the lock two processes take the same waiting trial.
        self._begin = "BEGIN IMMEDIATE"

    def listen(self, engine: sqlalchemy.Engine) -> None:
        @event.listens_for(engine, "begin")
        def _begin(connection: sqlalchemy.Connection) -> None:
            connection.exec_driver_sql(self._begin)

    def check(self) -> None:
        """Read the whole database.

        Raises:
            IntegrityError: It does not hold together.
            sqlite3.Error: It cannot be read.
        """
        connection = self._connect()
        try:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(1)")]
        finally:
            connection.close()
        if found != ["ok"]:
            raise self._damaged(" ".join(" ".join(found).split()))

    def refusal(self, error: BaseException) -> AttemptError | None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # what is above only refines it
        if code in _SQLITE_DAMAGE:
            return self._damaged(str(error))
        if code in _SQLITE_FIXES:
            return StorageError(f"cannot use the study storage {self.name}: {error}; {_SQLITE_FIXES[code]}")
        return None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # A rollback journal rather than WAL: until SQLite 3.51.3 two processes that write at once can damage a database
            # in WAL mode. EXTRA because FULL lets a power cut undo the last commit, whose journal is then not yet unlinked.
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = EXTRA")
        except BaseException:
            connection.close()
            raise
        return connection

    def _damaged(self, reason: str) -> IntegrityError:
        return IntegrityError(
            f"the study storage {self.name} is not a whole SQLite database: {reason}; restore it from a copy or choose "
            "another path"
        )

    def _refuse_network(self) -> None:
        kind = network_file_system(self.path, mounts=_mounts())
        if kind is not None:
            raise ConfigError(
                f"got the study storage {self.name}, which is on a network file system ({kind}), whose locks do not keep "
                "SQLite whole; choose a path on a local disk, or postgresql://user@host:port/database"
            )

    def _make_directory(self) -> None:
        missing = [directory for directory in self.path.parents if not directory.exists()]
        with storage_errors(f"make {self.path.parent}", where=self.path.parent):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise StorageError(
                    f"cannot make {self.path.parent}: a file is in its place; choose another path"
                ) from None
            for directory in missing:
                sync_directory(directory.parent)

    @contextmanager
    def held(self, study: str) -> Iterator[bool]:
        with storage_errors(f"lock {self.name}"):
            descriptor = os.open(f"{self.path}.{study}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield lock_within(descriptor, 0.0)
        finally:
            os.close(descriptor)

    def _make_file(self) -> None:
        with storage_errors(f"make {self.name}", where=self.path.parent):
            try:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                # SQLite opens what it cannot write to for reading, and says nothing until the first write.
                if not all(os.access(path, os.W_OK) for path in (self.path, self.path.parent)):
                    fix = _SQLITE_FIXES[sqlite3.SQLITE_READONLY]
                    raise StorageError(
                        f"cannot use the study storage {self.name}: it is read-only; {fix}"
                    ) from None
                return
            sync_directory(self.path.parent)


class _PostgreSQL:
    def __init__(self, url: sqlalchemy.URL) -> None:
        self.place = url.render_as_string(hide_password=False)
        host = url.host or url.query.get("host") or "the local socket"
        self.name = (
            f"'{url.database}' on PostgreSQL at {host}, port {url.port or url.query.get('port') or 5432}"
        )
        # Optuna fills in its version between braces.
        self.url = self.place.replace("{", "{{").replace("}", "}}")
        self.engine_kwargs: Mapping[str, Any] = {
            "pool_pre_ping": True,
            "connect_args": {
                "connect_timeout": CONNECT_SECONDS,
                # A server whose machine is gone answers nothing, not even a refusal.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 4,
                "tcp_user_timeout": 30_000,
            },
        }

    @contextmanager
    def alone(self) -> Iterator[None]:
        try:
            engine = sqlalchemy.create_engine(
                self.place, poolclass=NullPool, connect_args=self.engine_kwargs["connect_args"]
            )
        except ImportError as error:
            raise StorageError(
                f"cannot open the study storage {self.name}: its driver psycopg cannot be imported ({error}); install "
                "psycopg[binary]"
            ) from error
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = '{BUSY_SECONDS:.0f}s'"))
            connection.execute(
                sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtext('attempt-ray study storage'))")
            )
            yield

    @contextmanager
    def held(self, study: str) -> Iterator[bool]:
        arguments = self.engine_kwargs["connect_args"]
        engine = sqlalchemy.create_engine(self.place, poolclass=NullPool, connect_args=arguments)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            asked = sqlalchemy.text("SELECT pg_try_advisory_lock(hashtext(:name))")
            yield bool(connection.execute(asked, {"name": f"attempt-ray study {study}"}).scalar())

    def listen(self, engine: sqlalchemy.Engine) -> None:
        """Psycopg begins transactions itself."""

    def refusal(self, error: BaseException) -> AttemptError | None:
        import psycopg

        if not isinstance(error, psycopg.Error):
            return None
        reason = " ".join(str(error).split())
        state = error.sqlstate
        if state is None:
            if not isinstance(error, psycopg.OperationalError):
                return None
            fix = next((fix for words, fix in _POSTGRESQL_WORDS if words.search(reason)), _REACH)
        elif state.startswith(_POSTGRESQL_LOST):
            fix = _REACH
        else:
            known = next((fix for start, fix in _POSTGRESQL_FIXES.items() if state.startswith(start)), None)
            if known is None:
                return None
            fix = known
        return StorageError(f"cannot use the study storage {self.name}: {reason}; {fix}")


def _back_end(place: str) -> _SQLite | _PostgreSQL:
    if not place.strip() or "\0" in place:
        raise ConfigError(f"got {place!a} as study storage; wanted {_WANTED}")
    scheme, separator, _ = place.partition("://")
    if not separator:
        return _SQLite(_file(Path(place), place=place))
    if scheme not in ("sqlite", *_POSTGRESQL):
        # What follows the scheme may hold a password in a form that we do not know.
        raise ConfigError(f"got a '{scheme}' URL as study storage; wanted {_WANTED}")
    if carries_secret(unquote(place)):
        raise ConfigError(
            "got a study storage whose URL carries a password, which logs and runs would repeat; take it out, and give it "
            "in the environment (PGPASSWORD) or in ~/.pgpass"
        )
    try:
        url = sqlalchemy.make_url(place)
    except (ArgumentError, ValueError):
        raise ConfigError(f"got {place!a} as study storage, which is no URL; wanted {_WANTED}") from None
    if not url.database:
        raise ConfigError(f"got {place!a} as study storage, which names no database; wanted {_WANTED}")
    if scheme != "sqlite":
        return _PostgreSQL(url.set(drivername="postgresql+psycopg"))
    if url.host or url.query:
        raise ConfigError(f"got {place!a} as study storage, which is more than a path; wanted {_WANTED}")
    return _SQLite(_file(Path(url.database), place=place))


def _file(path: Path, *, place: str) -> Path:
    path = path.expanduser().resolve()
    if path.exists() and not path.is_file():
        raise ConfigError(f"got {place!a} as study storage, which is no file; wanted {_WANTED}")
    return path


def _mounts() -> str:
    """Return the table of mounts; empty where the system has none to read."""
    try:
        return _MOUNT_TABLE.read_text(errors="surrogateescape")
    except FileNotFoundError:
        return ""


@contextmanager
def _refusals(back_end: _BackEnd) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        refusal = back_end.refusal(error.orig or error if isinstance(error, DBAPIError) else error)
        if refusal is None:
            raise
        raise refusal from error


def _tell_refusals(engine: sqlalchemy.Engine, back_end: _BackEnd) -> None:
    @event.listens_for(engine, "handle_error", retval=True)
    def _tell(context: sqlalchemy.engine.ExceptionContext) -> AttemptError | None:
        # The ping of a connection that was lost fails before the connection is made anew.
        return None if context.is_pre_ping else back_end.refusal(context.original_exception)


def _check_schema(storage: RDBStorage, back_end: _BackEnd) -> None:
    version, wanted = storage.get_current_version(), storage.get_head_version()
    if version == wanted:
        return
    fix = (
        "upgrade it (optuna storage upgrade --storage URL), or choose another place"
        if version in storage.get_all_versions()
        else "install the version of Optuna that made it, or choose another place"
    )
    raise ConfigError(
        f"the study storage {back_end.name} has tables of version '{version}'; Optuna {optuna.__version__} wants "
        f"'{wanted}': {fix}"
    )
