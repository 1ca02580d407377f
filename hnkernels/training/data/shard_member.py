"""A file inside a shard."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ShardMember:
    """Where a file lies in an uncompressed tar file.

    Attributes:
        shard: the tar file.
        name: of the file in it.
        offset: of its first byte.
        size: in bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.name} in {self.shard}"

    def open(self) -> io.BytesIO:
        """The content as a file in memory.

        Raises:
            OSError: the shard cannot be read, or has become shorter.
        """
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError("the shard has changed since it was looked through")
        return io.BytesIO(data)
