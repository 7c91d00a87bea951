"""Disks of a few megabytes that the server writes to; faults fill and empty them."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import psycopg

from pqcore_backends.embedded import EmbeddedServer

if TYPE_CHECKING:
    from typing_extensions import Self

SETTINGS = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
"""The settings of a server whose write-ahead log is on a small disk."""
TABLES, LOG = 256, 160
"""The size of each disk, in megabytes."""


class Disk:
    """A file system in memory.

    Args:
        size: The size in megabytes.

    Raises:
        OSError: It cannot be mounted; only root can mount it.
    """

    def __init__(self, size: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pqcore-disk-", dir="/tmp"))
        self._ballast = self.folder / "ballast"
        self._libc = ctypes.CDLL(None, use_errno=True)
        if self._libc.mount(b"tmpfs", bytes(self.folder), b"tmpfs", 0, f"size={size}m,mode=0711".encode()):
            error = ctypes.get_errno()
            self.folder.rmdir()
            raise OSError(error, f"a disk cannot be mounted: {os.strerror(error)}")

    def fill(self) -> None:
        """Fill the disk."""
        with self._ballast.open("ab") as ballast:
            piece = TABLES * 2**20
            while piece >= 2**12:
                try:
                    os.posix_fallocate(ballast.fileno(), ballast.seek(0, os.SEEK_END), piece)
                except OSError:  # the disk has less room than that
                    piece //= 2

    def empty(self) -> None:
        """Empty the disk."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount the disk, even if it is in use."""
        self._libc.umount2(bytes(self.folder), 2)  # MNT_DETACH
        self.folder.rmdir()


class Disks:
    """The disks of a server's tables and of its write-ahead log.

    Args:
        server: The running server, which is restarted.

    Raises:
        OSError: The disks cannot be mounted here.
    """

    def __init__(self, server: EmbeddedServer) -> None:
        with ExitStack() as stack:
            self.tables, self.log = Disk(TABLES), Disk(LOG)
            stack.callback(self.tables.close)
            stack.callback(self.log.close)
            self._place(server)
            self._disks = stack.pop_all()

    def _place(self, server: EmbeddedServer) -> None:
        owner = server.data_dir.stat()
        folders = [disk.folder / "data" for disk in (self.tables, self.log)]
        for folder in folders:
            folder.mkdir(mode=0o700)
            os.chown(folder, owner.st_uid, owner.st_gid)
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{folders[0]}'")
            connection.execute("ALTER DATABASE postgres SET default_tablespace = 'small'")
        server.kill()
        wal = server.data_dir / "pg_wal"
        shutil.copytree(wal, folders[1], dirs_exist_ok=True)
        for path in (folders[1], *folders[1].rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        shutil.rmtree(wal)
        wal.symlink_to(folders[1])
        server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._disks.close()
