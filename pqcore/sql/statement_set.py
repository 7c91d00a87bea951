"""How a class declares the statements of a table: each has a name, and is compiled on first use.

A statement without fragments is in a file of SQL, and has a line in the class, ``fill = from_file()``. A statement
composed of fragments is a method that returns its template, with the decorator `composed`. Statements that differ in
one point, such as what happens to a finished job, are one method with the decorator `family`, which returns a template
for each kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pkgutil import get_data
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

if TYPE_CHECKING:
    from typing_extensions import Self

    from pqcore.sql.statement import Compile, Query

K = TypeVar("K", bound=str)
_HEAD = re.compile(r"(?m)^-- name: (\w+)\n")
_COMMENT = re.compile(r"(?m)^ *--.*\n")


@lru_cache(maxsize=16)
def read_statements(file: str) -> Mapping[str, str]:
    """Return the templates in a file of this package, by name.

    Each template begins after a line ``-- name: fill``, and ends with a semicolon. Lines that begin with ``--`` are
    comments, which are not sent to a server. ``{table}`` is an identifier, ``:name`` a parameter; a literal brace is
    written twice.

    Raises:
        ValueError: Two statements have the same name.
    """
    parts = iter(_HEAD.split((get_data(__package__, file) or b"").decode())[1:])
    found: dict[str, str] = {}
    for name, text in zip(parts, parts, strict=True):
        if name in found:
            raise ValueError(f"{file} has two statements named {name!r}")
        found[name] = _COMMENT.sub("", text).strip().removesuffix(";")
    return found


class StatementSet:
    """The statements of one table, in one driver's paramstyle.

    Args:
        compiled: A function that compiles a template.

    Attributes:
        file: The SQL file with the statements that the class declares as `from_file`.
    """

    file: ClassVar[str] = ""

    def __init__(self, compiled: Compile) -> None:
        self._compile = compiled

    def compile(self, name: str, template: str, *, rows: bool = True, hot: bool = False) -> Query:
        """Compile a template; see `Compile`."""
        return self._compile(name, template, rows=rows, hot=hot)

    @classmethod
    def names(cls) -> Iterator[str]:
        """Return the names of all statements that the class declares; compile nothing."""
        for declaration in cls._declarations().values():
            yield from declaration.names()

    def queries(self) -> Iterator[Query]:
        """Return all statements that the class declares."""
        for attribute in self._declarations():
            found = getattr(self, attribute)
            yield from found.values() if isinstance(found, Mapping) else (found,)

    @classmethod
    def _declarations(cls) -> Mapping[str, Statement | StatementFamily[Any]]:
        found = {attribute: value for each in reversed(cls.__mro__) for attribute, value in vars(each).items()}
        return {name: value for name, value in found.items() if isinstance(value, (Statement, StatementFamily))}


class Statement:
    """A descriptor that compiles a declared statement; the compiled statement replaces the descriptor on the instance.

    Args:
        template: A function that returns the template; None if the class's file has it.
        name: The name of the statement; None for the name of the attribute.
        rows: See `compile_query`.
        hot: See `compile_query`.
    """

    def __init__(self, template: Callable[[Any], str] | None, name: str | None, *, rows: bool, hot: bool) -> None:
        self._template = template
        self._name = name or ""
        self._rows = rows
        self._hot = hot
        self.__doc__ = template.__doc__ if template else None

    def __set_name__(self, owner: type[StatementSet], attribute: str) -> None:
        self._attribute = attribute
        self._name = self._name or attribute
        self._file = owner.file

    def names(self) -> tuple[str, ...]:
        """Return the statement's name."""
        return (self._name,)

    @overload
    def __get__(self, instance: None, owner: type[StatementSet]) -> Self: ...

    @overload
    def __get__(self, instance: StatementSet, owner: type[StatementSet]) -> Query: ...

    def __get__(self, instance: StatementSet | None, owner: type[StatementSet]) -> Query | Self:
        if instance is None:
            return self
        template = self._template(instance) if self._template else read_statements(self._file)[self._name]
        query = instance.compile(self._name, template, rows=self._rows, hot=self._hot)
        # If two threads compile the statement concurrently, both must get the same object, because sessions recognize
        # a prepared statement by identity.
        return instance.__dict__.setdefault(self._attribute, query)  # type: ignore[no-any-return]


class StatementFamily(Generic[K]):
    """A declared family of statements, one for each kind; see `Statement`."""

    def __init__(self, template: Callable[[Any, K], str], name: str, kinds: Iterable[K], *, hot: bool) -> None:
        self._template = template
        self._names = {kind: name.format(kind) for kind in kinds}
        self._hot = hot
        self.__doc__ = template.__doc__

    def __set_name__(self, owner: type[StatementSet], attribute: str) -> None:
        self._attribute = attribute

    def names(self) -> Iterable[str]:
        """Return the names of the statements."""
        return self._names.values()

    @overload
    def __get__(self, instance: None, owner: type[StatementSet]) -> Self: ...

    @overload
    def __get__(self, instance: StatementSet, owner: type[StatementSet]) -> Mapping[K, Query]: ...

    def __get__(self, instance: StatementSet | None, owner: type[StatementSet]) -> Mapping[K, Query] | Self:
        if instance is None:
            return self
        made = {
            kind: instance.compile(name, self._template(instance, kind), hot=self._hot)
            for kind, name in self._names.items()
        }
        return instance.__dict__.setdefault(self._attribute, made)  # type: ignore[no-any-return]


def from_file(*, rows: bool = True, hot: bool = False) -> Statement:
    """Declare a statement that is in the class's file, under the name of the attribute."""
    return Statement(None, None, rows=rows, hot=hot)


def composed(
    *, name: str | None = None, rows: bool = True, hot: bool = False
) -> Callable[[Callable[[Any], str]], Statement]:
    """Declare a statement whose template the decorated method returns."""

    def declare(template: Callable[[Any], str]) -> Statement:
        return Statement(template, name, rows=rows, hot=hot)

    return declare


def family(
    name: str, kinds: Iterable[K], *, hot: bool = False
) -> Callable[[Callable[[Any, K], str]], StatementFamily[K]]:
    """Declare one statement for each kind; the decorated method returns the template for a kind.

    Args:
        name: The name of the statements, with ``{}`` for the kind.
        kinds: The keys by which the statements are looked up.
        hot: See `compile_query`.
    """

    def declare(template: Callable[[Any, K], str]) -> StatementFamily[K]:
        return StatementFamily(template, name, kinds, hot=hot)

    return declare
