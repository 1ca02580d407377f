"""Encoded pictures and captions, kept for their next use: on disk between runs, or in memory."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.training.data.buckets import Size
from hnkernels.training.data.content import Stamp, hash_of, stamp_of
from hnkernels.training.data.pictures import Source, picture_size

CACHE_NAME = "encoded.sqlite"
_APPLICATION = 0x686E6B31  # in the header of the file: a cache of this form
_WAIT_S = 60  # for another process that is writing
_PAGE_BYTES = 16384  # of SQLite's pages: entries are large
_LEARNED_AT_MOST = 512  # facts about files that are not written yet
_KEYS_PER_QUERY = 500  # older versions of SQLite take 999
_TABLES = """
CREATE TABLE entries (key BLOB NOT NULL UNIQUE, checksum BLOB NOT NULL, tensors BLOB NOT NULL);
CREATE TABLE files (
    name BLOB PRIMARY KEY, length INTEGER, mtime_ns INTEGER, hash TEXT, width INTEGER, height INTEGER
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class _Facts:
    """What is known of a picture file as long as its stamp is the same."""

    hash: str | None = None
    size: Size | None = None


class Cache(ABC):
    """Tensors under keys, and what is known of picture files. A context manager that closes itself.

    Threads may share one.
    """

    @abstractmethod
    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry, on the CPU and not to be written to; ``None`` if it is not there, or damaged."""

    @abstractmethod
    def put_all(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keeps copies of the tensors of several entries, in place of what was there, all or none of them."""

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps copies of the tensors of one entry; of many, ``put_all`` is faster."""
        self.put_all({key: tensors})

    @abstractmethod
    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys, each once and in their order, that have no entry."""

    @abstractmethod
    def close(self) -> None:
        """Ends the use of the cache; what was learned of files is written."""

    @abstractmethod
    def _known(self, stamp: Stamp) -> _Facts: ...

    @abstractmethod
    def _learn(self, stamp: Stamp, facts: _Facts) -> None: ...

    def content_hash(self, source: Source) -> str:
        """SHA-256 of a picture's content, which is read once for as long as its file keeps size and time of writing.

        Raises:
            ValueError: the picture cannot be read; the message names it.
        """
        if (stamp := stamp_of(source)) is None:
            return hash_of(source)
        facts = self._known(stamp)
        if facts.hash is None:
            facts = replace(facts, hash=hash_of(source))
            self._learn(stamp, facts)
        assert facts.hash is not None
        return facts.hash

    def picture_size(self, source: Source) -> Size:
        """Width and height of a picture in pixels, upright, from its header or from when that was read.

        Raises:
            ValueError: the picture cannot be opened; the message names it.
        """
        if (stamp := stamp_of(source)) is None:
            return picture_size(source)
        facts = self._known(stamp)
        if facts.size is None:
            facts = replace(facts, size=picture_size(source))
            self._learn(stamp, facts)
        assert facts.size is not None
        return facts.size

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class MemoryCache(Cache):
    """A cache that lasts as long as it is kept."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Tensor]] = {}
        self._files: dict[Stamp, _Facts] = {}

    def get(self, key: str) -> dict[str, Tensor] | None:
        entry = self._entries.get(key)
        return None if entry is None else dict(entry)

    def put_all(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._entries.update({key: _copies(tensors) for key, tensors in entries.items()})

    def missing(self, keys: Iterable[str]) -> list[str]:
        return [key for key in dict.fromkeys(keys) if key not in self._entries]

    def close(self) -> None:
        self._entries.clear()
        self._files.clear()

    def _known(self, stamp: Stamp) -> _Facts:
        return self._files.get(stamp, _Facts())

    def _learn(self, stamp: Stamp, facts: _Facts) -> None:
        self._files[stamp] = facts


class DiskCache(Cache):
    """A cache in one SQLite file, which any number of threads, processes and runs may use at once.

    It holds entries, each with a checksum: one that is damaged counts as missing from ``get`` on, and is replaced by
    the next ``put``. And it holds hash and size of every picture that was asked for, with the path, length and time of
    writing of its file (in nanoseconds, as far as the file system keeps them): as long as these are the same, the file
    is not opened. A file that is changed so that it keeps all three is therefore not seen to have changed, and what was
    encoded of it before goes on being used; delete the cache after such a change.

    An entry is whole or not there, however a process ends. Nothing is ever removed: to make room, delete the file.
    Only what is asked for is in memory.

    Args:
        folder: where the file ``encoded.sqlite`` lies or is made; with the folder, if there is none.

    Raises:
        ValueError: the file cannot be made, opened, read or written, is damaged, or is not a cache; so do all methods.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / CACHE_NAME
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder of the cache {self.path}: {error}; give another") from error
        self._learned: dict[bytes, tuple[Stamp, _Facts]] = {}
        self._lock, self._process = threading.RLock(), os.getpid()
        self._connection: sqlite3.Connection | None = self._open()

    def get(self, key: str) -> dict[str, Tensor] | None:
        name = _encoded(key)
        with self._database() as database:
            # Damage may have changed the type of a column.
            query = "SELECT CAST(checksum AS BLOB), CAST(tensors AS BLOB) FROM entries WHERE key = ?"
            row = database.execute(query, (name,)).fetchone()
        if row is None or row[1] is None or row[0] != _checksum(name, row[1]):
            return None
        return safetensors.torch.load(row[1])

    def put_all(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        stored = [(_encoded(key), safetensors.torch.save(_copies(tensors))) for key, tensors in entries.items()]
        rows = [(name, _checksum(name, data), data) for name, data in stored]
        with self._database() as database, _transaction(database):
            database.executemany("INSERT OR REPLACE INTO entries (key, checksum, tensors) VALUES (?, ?, ?)", rows)

    def missing(self, keys: Iterable[str]) -> list[str]:
        names = {_encoded(key): key for key in keys}
        order, known = list(names), set[bytes]()
        for start in range(0, len(order), _KEYS_PER_QUERY):
            some = order[start : start + _KEYS_PER_QUERY]
            with self._database() as database:
                query = f"SELECT key FROM entries WHERE key IN ({','.join('?' * len(some))})"
                known.update(row[0] for row in database.execute(query, some).fetchall())
        return [names[name] for name in order if name not in known]

    def close(self) -> None:
        if self._connection is None:
            return
        try:
            self._write_learned()
        finally:
            self._connection.close()
            self._connection = None

    def _known(self, stamp: Stamp) -> _Facts:
        with self._database() as database:
            if (learned := self._learned.get(stamp.name)) and learned[0] == stamp:
                return learned[1]
            row = database.execute(
                "SELECT length, mtime_ns, hash, width, height FROM files WHERE name = ?", (stamp.name,)
            ).fetchone()
        if row is None or (row[0], row[1]) != (stamp.length, stamp.mtime_ns):
            return _Facts()
        return _Facts(row[2], None if row[3] is None else (row[3], row[4]))

    def _learn(self, stamp: Stamp, facts: _Facts) -> None:
        with self._lock:
            self._learned[stamp.name] = (stamp, facts)
            if len(self._learned) >= _LEARNED_AT_MOST:
                self._write_learned()

    def _write_learned(self) -> None:
        with self._database() as database:
            if not self._learned:
                return
            rows = [(*stamp, facts.hash, *(facts.size or (None, None))) for stamp, facts in self._learned.values()]
            with _transaction(database):
                database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._learned.clear()

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; what SQLite says becomes a sentence."""
        if self._process != os.getpid():  # forked: a connection is for the process that opened it
            self._inherited = self._connection  # and is not closed here, which would drop locks of that one
            self._lock, self._process, self._learned = threading.RLock(), os.getpid(), {}
            self._connection = None if self._connection is None else self._open()
        with self._lock:
            if self._connection is None:
                raise InputError(f"the cache {self.path} is closed; open it again")
            with self._sentences():
                yield self._connection

    def _open(self) -> sqlite3.Connection:
        with self._sentences():
            # Without an isolation level each statement is its own transaction unless one is begun.
            connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            try:
                connection.execute(
                    "PRAGMA journal_mode = TRUNCATE"
                )  # a rollback journal; network file systems have no WAL
                if _application(connection) != _APPLICATION:
                    self._make(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _make(self, connection: sqlite3.Connection) -> None:
        """Makes the tables in a new file, once, whoever else may be about to."""
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        with _transaction(connection):
            if _application(connection) == _APPLICATION:
                return
            if _application(connection) or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise InputError(
                    f"{self.path} is a database, but not a cache that this version can use; move it elsewhere, or give "
                    "another cache_dir"
                )
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            said = str(error)
            if "not a database" in said:
                raise InputError(f"{self.path} is not a cache; move it elsewhere, or give another cache_dir") from error
            if "malformed" in said:
                raise InputError(
                    f"the cache {self.path} is damaged ({said}); delete it, and everything is encoded again"
                ) from error
            if "locked" in said:
                raise InputError(
                    f"the cache {self.path} has been locked by another process for {_WAIT_S} s; wait until that has "
                    "ended, or give another cache_dir"
                ) from error
            raise InputError(
                f"cannot use the cache {self.path} ({said}); see that its folder is there, can be written to and has "
                "space left, or give another cache_dir"
            ) from error


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")  # a lock taken late could not wait for another writer
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _application(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA application_id").fetchone()[0]


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")  # captions may hold what is half a character


def _checksum(name: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, key=hashlib.sha256(name).digest()).digest()


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
