"""Open the SQLite file of a table store: ours, whole, and with nothing in it that runs.

SQLite runs triggers, views and functions that a file brings along, and takes any file for a
database that begins like one. So a file must carry our application id, a schema version that this
code reads and exactly our schema; ``trusted_schema`` is off; and errors of SQLite become errors
that say what happened to which file and what to try.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from latency_tables.errors import CorruptTableError, ForeignTableError, TableError

APPLICATION_ID = 0x484E4C54
"""``HNLT`` in the header of the file."""

USER_VERSION = 2
"""Version of the schema below. Version 1 lacked ``remarks`` and had a shorter index; it is read as
it is, and brought up to date when it is opened for writing."""

BUSY_SECONDS = 60.0
"""How long a writer waits for another one."""

QUICK_CHECK_BYTES = 64 * 2**20
"""Files up to this size are checked whole at every opening (well under 0.1 s)."""

_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100

_INDEX_1 = "CREATE INDEX latencies_of_table ON latencies (device_fp, space_id, setting, utc)"
# holds all that a summary counts, so that listing a table does not read its records
_INDEX = (
    "CREATE INDEX latencies_of_table ON latencies (device_fp, space_id, setting, key, run_id, utc)"
)
_REMARKS = """CREATE TABLE remarks (
    device_fp TEXT NOT NULL, space_id TEXT NOT NULL, setting TEXT NOT NULL,
    kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, utc TEXT NOT NULL,
    PRIMARY KEY (device_fp, space_id, setting, kind, name)
) WITHOUT ROWID"""

SCHEMA_SQL = (
    """CREATE TABLE spaces (
    space_id TEXT PRIMARY KEY, name TEXT NOT NULL, cost_table_hash TEXT NOT NULL
) WITHOUT ROWID""",
    """CREATE TABLE devices (
    device_fp TEXT PRIMARY KEY, name TEXT NOT NULL, body TEXT NOT NULL
) WITHOUT ROWID""",
    """CREATE TABLE latencies (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL, run_id TEXT NOT NULL, space_id TEXT NOT NULL, device_fp TEXT NOT NULL,
    setting TEXT NOT NULL, utc TEXT NOT NULL, body TEXT NOT NULL,
    UNIQUE (key, run_id)
)""",
    _INDEX,
    """CREATE TABLE rejected (
    id INTEGER PRIMARY KEY,
    content TEXT NOT NULL UNIQUE, space_id TEXT NOT NULL, device_fp TEXT NOT NULL,
    setting TEXT NOT NULL, reason TEXT NOT NULL, utc TEXT NOT NULL, body TEXT NOT NULL
)""",
    "CREATE INDEX rejected_of_table ON rejected (device_fp, space_id, setting, utc)",
    _REMARKS,
)
_SCHEMAS = {
    1: {sql for sql in SCHEMA_SQL if sql not in (_INDEX, _REMARKS)} | {_INDEX_1},
    USER_VERSION: set(SCHEMA_SQL),
}


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open (and unless ``read_only`` create) the database of a table store.

    Raises ForeignTableError for a file that is not ours, CorruptTableError for a damaged one and
    TableError where the file cannot be opened.
    """
    if not path.exists():
        if read_only:
            raise TableError(
                f"there is no latency table at {path}", hint="hilnas tables build FILE"
            )
        _create(path)
    truncated = _check_header(path)
    with translated(path):
        mode = "ro" if read_only else "rw"
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    try:
        with translated(path):
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            # WAL's NORMAL may forget the last commits when the power fails. A commit here is a
            # measurement that took seconds of a board's time; a millisecond of fsync is nothing.
            connection.execute("PRAGMA synchronous = FULL")
        _check_schema(path, connection)
        if not read_only:
            _bring_up_to_date(path, connection)
        if read_only or truncated or path.stat().st_size <= QUICK_CHECK_BYTES:
            quick_check(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def quick_check(path: Path, connection: sqlite3.Connection) -> None:
    """Read every page. Raises CorruptTableError with the first problem that SQLite found."""
    with translated(path):
        problem = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    if problem != "ok":
        raise _corrupt(path, problem)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into errors that name the file and the next step."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if isinstance(code, int) else None
        if primary == sqlite3.SQLITE_FULL:
            raise TableError(
                f"the disk of {path} is full; what was stored before is safe, this was not stored",
                hint="free some space and repeat the command",
            ) from error
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise TableError(
                f"another process has kept {path} locked for {BUSY_SECONDS:g} s",
                hint="wait for it to end, or name another file with --table",
            ) from error
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _corrupt(path, str(error)) from error
        raise TableError(f"{path} cannot be used: {error}") from error


def _create(path: Path) -> None:
    """Make an empty store beside ``path`` and link it there: two creators cannot collide."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            partial = Path(folder) / "new.sqlite"
            with closing(sqlite3.connect(partial, isolation_level=None)) as connection:
                connection.execute("BEGIN")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {USER_VERSION}")
                for statement in SCHEMA_SQL:
                    connection.execute(statement)
                connection.execute("COMMIT")
                connection.execute("PRAGMA journal_mode = WAL")
            partial.chmod(0o644)
            try:
                os.link(partial, path)
            except FileExistsError:
                pass  # somebody else was faster: use theirs
            except OSError:  # a file system without hard links
                if not path.exists():
                    partial.replace(path)
    except (OSError, sqlite3.Error) as error:
        raise TableError(
            f"cannot create a latency table at {path}: {error}",
            hint="name a writable file with --table",
        ) from error


def _check_header(path: Path) -> bool:
    """Check magic and ids; tell whether the file seems shorter than it says it is."""
    try:
        with path.open("rb") as stream:
            header = stream.read(_HEADER_BYTES)
            size = stream.seek(0, os.SEEK_END)
    except OSError as error:
        raise TableError(f"cannot read {path}: {error}") from error
    if not header:
        raise _corrupt(path, "the file is empty")
    if not header.startswith(_MAGIC[: len(header)]):
        raise ForeignTableError(
            f"{path} is not a table store (it does not begin like SQLite)",
            hint="hilnas tables import FILE, for a JSON-lines table",
        )
    if len(header) < _HEADER_BYTES:
        raise _corrupt(path, f"the file ends after {len(header)} bytes")
    application, version = (int.from_bytes(header[at : at + 4], "big") for at in (68, 60))
    if application != APPLICATION_ID:
        raise ForeignTableError(
            f"{path} is a SQLite file of another program (application id {application:#010x}, "
            f"a table store has {APPLICATION_ID:#010x})",
            hint="name another file with --table",
        )
    if version not in _SCHEMAS:
        raise ForeignTableError(
            f"{path} has schema version {version}; this version of hilnas reads "
            f"{' and '.join(map(str, _SCHEMAS))}",
            hint="upgrade hilnas, or export the table with the version that wrote it",
        )
    page = int.from_bytes(header[16:18], "big")
    # 1 stands for 65,536. While another process checkpoints, the header may run ahead of the file:
    # a short file is a reason to look closer, not a verdict.
    return size < int.from_bytes(header[28:32], "big") * (65_536 if page == 1 else page)


def _check_schema(path: Path, connection: sqlite3.Connection) -> None:
    with translated(path):
        connection.execute("BEGIN")  # version and schema of one moment
        try:
            rows = connection.execute("SELECT sql FROM sqlite_master").fetchall()
            version = schema_version(connection)
        finally:
            connection.execute("COMMIT")
    found = {sql for (sql,) in rows if sql is not None}
    expected = _SCHEMAS.get(version, set(SCHEMA_SQL))
    if found != expected:
        raise ForeignTableError(
            f"{path} does not have the schema of a table store "
            f"({len(found - expected)} unknown and "
            f"{len(expected - found)} missing definitions)",
            hint="name another file with --table",
        )


def schema_version(connection: sqlite3.Connection) -> int:
    """Version of the schema of an open store."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _bring_up_to_date(path: Path, connection: sqlite3.Connection) -> None:
    if schema_version(connection) == USER_VERSION:
        return
    with translated(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            if schema_version(connection) == 1:  # nobody else was faster
                connection.execute("DROP INDEX latencies_of_table")
                connection.execute(_INDEX)
                connection.execute(_REMARKS)
                connection.execute(f"PRAGMA user_version = {USER_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _corrupt(path: Path, problem: str) -> CorruptTableError:
    return CorruptTableError(
        f"{path} is damaged: {problem[:300]}",
        hint=f"move it away (mv {path} {path}.damaged) and import your last export with "
        "'hilnas tables import FILE', or measure again with 'hilnas tables build'",
    )
