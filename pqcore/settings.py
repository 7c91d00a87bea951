"""What a queue is set to, and how it reads and writes data: the same for both faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from itertools import islice
from logging import getLogger
from typing import Any, ClassVar, NamedTuple, TypeVar

from pqcore.current_rules import RuleCache
from pqcore.db.group_commit import Lines
from pqcore.db.interrupts import is_from_outside
from pqcore.errors import (
    ConfigurationError,
    DeserializationError,
    KeyNotHeld,
    PayloadTooLarge,
    SerializationError,
    Unreadable,
    UnsafeSerializer,
)
from pqcore.lane_book import LaneBook
from pqcore.plugins import plugins
from pqcore.scan_position import ScanPosition
from pqcore.serializers import (
    Serializer,
    authenticates,
    fault_of,
    is_quick,
    json_decode,
    json_encode,
    pickle_dumps,
    pickle_loads,
    stored_name,
)
from pqcore.sql.identifiers import MAX_QUEUE_NAME, TableName, channel, check_text, split_queue_name
from pqcore.sql.statement import Retention
from pqcore.times import parse_rate

logger = getLogger("pqcore")

SHORTEST_POLL = 0.01
"""Seconds: a waiter that looks more often keeps the server busy."""


class Encoded(NamedTuple):
    """A job's data, ready to be stored."""

    data: str | None
    payload: bytes | None

    @property
    def raw(self) -> str | bytes:
        return self.payload if self.data is None else self.data  # type: ignore[return-value]


_encoded: Callable[[tuple[str | None, bytes | None]], Encoded] = partial(tuple.__new__, Encoded)
"""Make an `Encoded`, without the call of Python that each class of a NamedTuple makes."""


def _identity(value: Any) -> Any:
    return value


QUICK_SIZE = 32_768
"""Characters or bytes: more take longer to decode than it takes to have another thread decode them."""
QUICK_VALUES = 1_000
"""Values, or 32 characters: data with more takes as long to encode."""
KEEP_FINISHED, KEEP_DEAD = "7d", "90d"
"""How long the finished rows and the dead letters of a new table are kept, unless told otherwise."""
AS_IT_IS: Any = object()
"""Stands for a setting that is not changed."""
REENCODE_STEP = 100
"""Rows that `Queue.reencode` writes in one transaction, unless told otherwise."""
REENCODE_WAIT = 10.0
"""Seconds for which `Queue.reencode` waits for rows that are in use, unless told otherwise."""
KEPT_QUEUES = 1_000
"""Queues that a `PQ` keeps by name, at most; those that are used elsewhere or were changed are not counted."""


class QueueSettings:
    """The settings of a queue.

    Each may be set on a subclass, as a keyword of `PQ`, or on the queue.

    Attributes:
        name: The queue's name, without the serializer's.
        channel: On which puts into it are notified.
        timeout: Seconds that `get` waits if not told otherwise.
        poll_interval: Seconds after which a waiter looks, woken or not.
        retention: What becomes of a finished row: ``"keep"`` marks it,
            ``"delete"`` deletes it, ``"archive"`` moves it to the archive table.
        serializer: The serializer, or its name, where the queue's name does not tell; JSON by default.
        accept: Further serializers, or their names, whose rows this queue reads.
        rate: How many jobs may be leased in a time, by all workers together: ``"100/1m"`` or ``"10/s"``;
            None for as many as there are.  Up to so many at once, after a pause.
        max_size: Bytes of encoded data that a job may have.
        cursor_kwargs: For the cursor that ``with queue as cursor`` gives.
        converters: pq's way to add serializers: name to (dumps, loads), between
            data and what ``encode`` takes.
        encode, decode: pq's way to replace `json`: between that and JSON text.
    """

    timeout: float = 1
    poll_interval: float = 1
    retention: Retention = "keep"
    accept: tuple[str | Serializer, ...] = ()
    max_size: int = 2**28
    rate: str | None = None
    cursor_kwargs: Mapping[str, Any] = {}
    logger = logger
    converters: ClassVar[dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]] = {
        "pickle": (pickle_dumps, pickle_loads)
    }
    dumps: Callable[[Any], Any] = staticmethod(_identity)
    loads: Callable[[Any], Any] = staticmethod(_identity)
    encode: Callable[[Any], str] = staticmethod(json_encode)
    decode: Callable[[str], Any] = staticmethod(json_decode)
    serializer: Serializer | None = None

    def __init__(self, name: str, table: TableName, serializer: Serializer | str | None, options: Mapping[str, Any]):
        suffix = None
        if serializer is None:
            name, suffix = split_queue_name(check_text(name, "queue name"))
        self.bound = ScanPosition()
        self.lanes = LaneBook()
        self.rule_cache = RuleCache()
        self.lines = Lines()
        self.name = check_text(name, "queue name", MAX_QUEUE_NAME)
        self.channel = channel(self.name)
        self.table = table
        self.serializer_name = "json"
        if serializer is None:
            serializer = options.get("serializer", self.serializer) if suffix is None else suffix
        self._use(serializer)
        for option, value in options.items():
            if option.startswith("_") or option in ("name", "channel", "table", "engine", "serializer_name"):
                msg = f"not an option of a queue: {option!r}"
                raise ConfigurationError(msg)
            if option != "serializer":
                setattr(self, option, value)
        if self.retention not in ("keep", "delete", "archive"):
            msg = f"retention is {self.retention!r}; choose 'keep', 'delete' or 'archive'"
            raise ConfigurationError(msg)
        for option in ("timeout", "poll_interval", "max_size"):
            number = getattr(self, option)
            if not isinstance(number, (int, float)) or not number >= 0:
                msg = f"{option} is {number!r}; give a number that is not negative"
                raise ConfigurationError(msg)
        if self.poll_interval < SHORTEST_POLL:
            msg = f"poll_interval is {self.poll_interval!r}; give at least {SHORTEST_POLL} seconds"
            raise ConfigurationError(msg)
        if self.rate is not None:
            _ = self.bucket  # a rate that is none is to fail here
        if isinstance(self.accept, str):
            msg = f"accept is {self.accept!r}; give a tuple of names: ({self.accept!r},)"
            raise ConfigurationError(msg)
        for each in self.accept:
            if isinstance(each, str):
                continue
            if fault := "it is a class; give an instance" if isinstance(each, type) else fault_of(each, writes=False):
                msg = f"accept has {each!r}; give serializers, or their names: {fault}"
                raise ConfigurationError(msg)

    @property
    def encodes_as_is(self) -> bool:
        """Whether data become JSON by pqcore's own encoder, and nothing else."""
        return self.serializer is None and self.dumps is _identity and self.writes_json

    @property
    def writes_json(self) -> bool:
        """Whether all that `encode_row` gives is known to be JSON: by an encoder of ours, or one that says so."""
        if self.serializer is None:
            return self.encode is json_encode
        return bool(getattr(self.serializer, "valid_json", False))

    @property
    def bucket(self) -> tuple[int, float]:
        """The rate limit as a token bucket: its size, and tokens a second."""
        size, length = parse_rate(self.rate or "")
        return size, size / length

    def _use(self, serializer: Serializer | str | None) -> None:
        if serializer is None or serializer == "json":
            self.serializer = None
            return
        if isinstance(serializer, str):
            self.serializer_name = serializer
            if serializer in self.converters:
                self.dumps, self.loads = self.converters[serializer]
                return
            serializer = plugins.serializer(serializer)
        elif isinstance(serializer, type):
            msg = f"serializer is the class {serializer.__qualname__}; give an instance: {serializer.__qualname__}(...)"
            raise ConfigurationError(msg)
        elif fault := fault_of(serializer):
            raise ConfigurationError(f"serializer cannot be used: {fault}")
        self.serializer = serializer
        self.serializer_name = stored_name(serializer)

    def encode_row(self, data: Any) -> Encoded:
        """Encode a job's data.

        Raises:
            SerializationError: The serializer cannot (a TypeError and ValueError).
            PayloadTooLarge: The result has more than ``max_size`` bytes.
        """
        serializer = self.serializer
        try:
            if serializer is not None:
                raw: Any = serializer.dumps(data)
            else:
                raw = self.encode(data if self.dumps is _identity else self.dumps(data))
        except BaseException as exc:
            if is_from_outside(exc):
                raise
            kind = f"{type(data).__module__}.{type(data).__qualname__}"
            msg = f"queue {self.name!r}: {self.serializer_name} cannot encode a {kind}: {_text_of(exc)}"
            raise SerializationError(msg) from exc
        if not isinstance(raw, bytes if serializer is not None and serializer.binary else str):
            msg = f"queue {self.name!r}: {self.serializer_name} gave a {type(raw).__name__} for the encoded data"
            raise SerializationError(msg)
        size = len(raw)
        if isinstance(raw, str):
            if "\0" in raw:
                msg = f"queue {self.name!r}: the encoded data contains a NUL, which PostgreSQL's text cannot hold"
                raise SerializationError(msg)
            if not raw.isascii():
                try:
                    size = len(raw.encode())
                except UnicodeEncodeError as exc:
                    msg = f"queue {self.name!r}: the encoded data is not valid Unicode: {exc}"
                    raise SerializationError(msg) from exc
        if size > self.max_size:
            msg = (
                f"queue {self.name!r}: the job's data has {size} bytes, more than max_size={self.max_size}: "
                "store it elsewhere and put a reference, or raise max_size (PostgreSQL's own limit is 1 GB)"
            )
            raise PayloadTooLarge(msg)
        return _encoded((None, raw) if isinstance(raw, bytes) else (raw, None))

    def decode_row(self, job_id: int, written_by: str | None, raw: str | bytes) -> Any:
        """Decode a row's data with the serializer that wrote it, if this queue accepts that.

        Raises:
            UnsafeSerializer: It does not.
            Unreadable: The serializer cannot be had here, or says that another program can read the data.
            DeserializationError: The data is not what the serializer writes.
        """
        if written_by is None:  # a row of pq's: JSON, or what a converter put into it
            written_by = self.serializer_name if self.serializer is None else "json"
        try:
            if written_by == self.serializer_name:
                if self.serializer is None:
                    decoded = self.decode(raw)  # type: ignore[arg-type]
                    return decoded if self.loads is _identity else self.loads(decoded)
                return self.serializer.loads(raw)
            if self.accept and (loads := self._accepted(written_by)) is not None:
                return loads(raw)
            if written_by == "json" and not authenticates(self.serializer):  # safe to read, whoever wrote it
                return self.decode(raw)  # type: ignore[arg-type]
        except BaseException as exc:
            if is_from_outside(exc):
                raise
            where = f"queue {self.name!r}: job {job_id}"
            if isinstance(exc, Unreadable):
                kind = KeyNotHeld if isinstance(exc, KeyNotHeld) else Unreadable
                raise kind(f"{where} cannot be read here as {written_by}: {_text_of(exc)}") from exc
            raise DeserializationError(f"{where} is not valid {written_by}: {_text_of(exc)}") from exc
        msg = (
            f"queue {self.name!r} reads {self.serializer_name}, but job {job_id} was written by {written_by!r}: "
            f"open the queue as {self.name + '/' + written_by!r}, or pass accept=({written_by!r},) if that is safe"
        )
        raise UnsafeSerializer(msg)

    def reads_quickly(self, written_by: str | None, raw: str | bytes, most: int = QUICK_SIZE) -> bool:
        """Return whether a row's data is decoded in a fraction of a millisecond: it is small, and so is the work.

        Args:
            written_by: The serializer that wrote the row.
            raw: The data.
            most: Characters or bytes that are small.
        """
        if len(raw) > most or (written_by is not None and written_by != self.serializer_name):
            return False  # rows of another serializer are few, and the serializer may have to be made first
        if self.serializer is None:
            return self.decode is json_decode and self.loads is _identity
        return is_quick(self.serializer)

    def writes_quickly(self, data: Any) -> bool:
        """Return whether data is encoded in a fraction of a millisecond, as far as that can be seen."""
        if self.serializer is None:
            quick = self.encode is json_encode and self.dumps is _identity
        else:
            quick = is_quick(self.serializer)
        return quick and _is_small(data)

    def _accepted(self, written_by: str) -> Callable[[Any], Any] | None:
        """What decodes the rows of another serializer, if that is accepted."""
        for each in self.accept:
            if not isinstance(each, str) and stored_name(each) == written_by:
                return each.loads
        if written_by in self.accept:
            if written_by in self.converters:
                loads = self.converters[written_by][1]
                return lambda raw: loads(self.decode(raw))
            return self.decode if written_by == "json" else _installed(written_by).loads
        for each in self.accept:  # or by the name of another that reads the same
            if isinstance(each, str) and each not in self.converters:
                with suppress(Unreadable):
                    found = _installed(each)
                    if stored_name(found) == written_by:
                        return found.loads
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} {self.name!r} in {self.table}>"


def _text_of(error: BaseException) -> str:
    """The text of an exception of users' code, which may raise when it is asked for."""
    try:
        return str(error)
    except BaseException as exc:
        if is_from_outside(exc):
            raise
        return f"<a {type(error).__qualname__} that cannot be shown>"


def _is_small(data: Any) -> bool:
    """Whether data has few values of built-in types, and short ones."""
    left, room = [data], QUICK_VALUES
    while left:
        value = left.pop()
        room -= 1
        if isinstance(value, (str, bytes)):
            room -= len(value) // 32
        elif isinstance(value, (dict, list, tuple)):
            if len(value) > room:
                return False
            left.extend(value if not isinstance(value, dict) else (*value, *value.values()))
        elif value is not None and not isinstance(value, (bool, int, float)):
            return False  # an object's own code may encode it
        if room < 0:
            return False
    return True


def _installed(name: str) -> Serializer:
    """The serializer of a name.

    Raises:
        Unreadable: It is not installed here, or cannot be made: a library or a key is missing.
    """
    try:
        return plugins.serializer(name)
    except BaseException as exc:
        if is_from_outside(exc):
            raise
        raise Unreadable(_text_of(exc)) from exc


Q = TypeVar("Q", bound=QueueSettings)


def forget_queues(kept: dict[str, Q], forgotten: MutableMapping[str, Q], make: Callable[[str], Q]) -> None:
    """Take the oldest queues out of those that a `PQ` keeps, so that names without end need no memory without end.

    A queue stays if it differs from a new one: an attribute was set, or tasks are declared on it. One that is used
    elsewhere is found again.

    Args:
        kept: The queues by name, the oldest first.
        forgotten: Where they are found again, while they are used elsewhere.
        make: Makes a queue.
    """
    for name in list(islice(kept, len(kept) // 10)):
        queue = kept.pop(name, None)
        if queue is None:
            continue
        if _as_new(queue, make(name)):
            forgotten[name] = queue
        else:
            kept[name] = queue  # as the newest


def _as_new(queue: QueueSettings, new: QueueSettings) -> bool:
    own, other = vars(queue), vars(new)
    return own.keys() == other.keys() and all(_alike(value, other[name]) for name, value in own.items())


def _alike(value: object, other: object) -> bool:
    """Whether two settings are the same; of what each queue has an instance of its own, whether they are of a kind."""
    if isinstance(value, (str, int, float, tuple, list, dict, set)) or callable(value):
        return value == other
    return type(value) is type(other)
