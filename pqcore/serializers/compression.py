"""Serializers that compress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pqcore.errors import ConfigurationError
from pqcore.hookspecs import hookimpl
from pqcore.serializers.extras import library
from pqcore.serializers.protocol import Serializer
from pqcore.serializers.wrapping import Wrapper

MAX_SIZE = 2**24
"""The largest number of bytes before compression, unless a `Zstd` is given another limit."""


class Zstd(Wrapper):
    """Zstandard, by the package zstandard.

    Args:
        inner: The serializer whose bytes are compressed, or its name; JSON by default.
        level: The level from 1, the fastest, to 22.
        max_size: The largest number of bytes before compression; 16 MiB by default. ``put`` refuses more, and a row
            that would become larger is refused before it is decompressed. A decoder may need twenty times as many bytes
            of memory as it reads, so this limit is smaller than a queue's ``max_size``.

    Raises:
        ConfigurationError: ``level`` or ``max_size`` is out of range.
        SerializerNotInstalled: zstandard is not installed.
    """

    layer = "zstd"

    def __init__(self, inner: Serializer | str | None = None, *, level: int = 3, max_size: int = MAX_SIZE) -> None:
        super().__init__(inner)
        self._zstd = library("zstandard", serializer=self.layer, extra="zstd")
        if not isinstance(level, int) or not 1 <= level <= self._zstd.MAX_COMPRESSION_LEVEL:
            raise ConfigurationError(f"level is {level!r}; give a number from 1 to {self._zstd.MAX_COMPRESSION_LEVEL}")
        if not isinstance(max_size, int) or max_size < 1:
            raise ConfigurationError(f"max_size is {max_size!r}; give a number of bytes")
        self.level, self.max_size = level, max_size
        self._local = threading.local()  # one object per thread: zstandard's objects are not thread-safe

    def wrap(self, raw: bytes) -> bytes:
        self._check(len(raw))
        if not hasattr(self._local, "compressor"):
            self._local.compressor = self._zstd.ZstdCompressor(level=self.level)
        compressed: bytes = self._local.compressor.compress(raw)
        return compressed

    def unwrap(self, raw: bytes) -> bytes:
        size = self._zstd.frame_content_size(raw)
        if size < 0:
            raise ValueError("the compressed data does not say its decompressed size: store the size in the zstd frame")
        self._check(size)
        if not hasattr(self._local, "decompressor"):
            self._local.decompressor = self._zstd.ZstdDecompressor()
        # The output cannot exceed the size that the frame states: otherwise zstandard raises an error.
        decompressed: bytes = self._local.decompressor.decompress(raw, allow_extra_data=False)
        return decompressed

    def _check(self, size: int) -> None:
        if size > self.max_size:
            msg = f"{size} bytes before compression, more than {self.max_size}: give Zstd a larger max_size"
            raise ValueError(msg)


@hookimpl
def pqcore_register_serializers(register: Callable[[Any], None]) -> None:
    """Register `Zstd`."""
    register(Zstd)
