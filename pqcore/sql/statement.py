"""An SQL statement as a value: a name, and a text with named parameters that is compiled once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, Literal, Protocol, TypeAlias

from pqcore.sql.clashes import rename_clashes

Paramstyle: TypeAlias = Literal["format", "numeric_dollar"]
"""The style of a driver's placeholders: ``%s`` (PEP 249's name) or ``$1`` (SQLAlchemy's name)."""
Retention: TypeAlias = Literal["keep", "delete", "archive"]
"""What happens to the row of a finished job."""
RETENTIONS: tuple[Retention, ...] = ("keep", "delete", "archive")

_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE)\b")
_TO_PRIMARY = "/*NO LOAD BALANCE*/ "
"""A comment for a load balancer (Pgpool-II): it sends the statement to the primary even if the statement only reads,
because a standby may lag behind."""
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")
_ARRAY = re.compile(r"(?<![:\w]):([a-z_]+)::(bigint|int|bool)\[\]")


@dataclass(frozen=True, eq=False)
class Query:
    """A statement compiled for one table and one driver.

    Attributes:
        name: The name of the statement in errors, logs and plans.
        sql: The text, with placeholders in the backend's paramstyle.
        numbered: The text with ``$1`` placeholders, for PREPARE.
        order: The names of the parameters, one for each placeholder of ``sql``.
        first: The position in ``order`` at which each parameter of ``numbered`` first occurs.
        rows: Whether the statement returns rows; asking the driver would cost more.
        hot: Whether preparing the statement on the server is worthwhile.
        arrays: The names of the parameters that are arrays of numbers or booleans.
    """

    name: str
    sql: str
    numbered: str
    order: tuple[str, ...]
    first: tuple[int, ...]
    rows: bool
    hot: bool
    arrays: frozenset[str] = frozenset()

    @cached_property
    def encoded(self) -> bytes:
        """Return `sql` in UTF-8, for drivers that take bytes; it is one object, because drivers cache by identity."""
        return self.sql.encode()

    def prepare(self, name: str) -> str:
        """Return the PREPARE statement, which a load balancer sends to the same server as the statement itself."""
        lead = _TO_PRIMARY if self.numbered.startswith(_TO_PRIMARY) else ""
        return f"{lead}PREPARE {name} AS {self.numbered[len(lead) :]}"

    @cached_property
    def distinct(self) -> bool:
        """Return whether each parameter occurs once in ``sql``.

        If so, ``numbered`` takes the same parameters in the same order.
        """
        return len(self.first) == len(self.order)

    @cached_property
    def pick(self) -> Callable[[Sequence[object]], Sequence[object]]:
        """Return the parameters of ``numbered``, picked from those of ``sql``."""
        if self.distinct:
            return lambda bound: bound
        if len(self.first) > 1:
            return itemgetter(*self.first)
        places = slice(len(self.first))  # itemgetter() with one position returns a value, not a tuple
        return lambda bound: bound[places]

    @cached_property
    def bind(self) -> Callable[[Mapping[str, object]], tuple[object, ...]]:
        """Return the parameters, picked from a mapping, in the order of the placeholders."""
        if self.arrays:
            return self._binding_arrays()
        if len(self.order) > 1:
            return itemgetter(*self.order)
        if not self.order:
            return lambda _: ()
        [name] = self.order
        return lambda values: (values[name],)

    def given(self, values: Mapping[str, object]) -> list[object]:
        """Return the parameters of `numbered`, picked from a mapping."""
        return [*self.pick(self.bind(values))]

    def _binding_arrays(self) -> Callable[[Mapping[str, object]], tuple[object, ...]]:
        places = [(name, name in self.arrays) for name in self.order]

        def bind(values: Mapping[str, Any]) -> tuple[object, ...]:
            found = [(values[name], array) for name, array in places]
            return tuple([as_array(value) if array and value is not None else value for value, array in found])

        return bind


class Compile(Protocol):
    """A function that compiles a template, as `compile_query` does, for one table and driver."""

    def __call__(self, name: str, template: str, *, rows: bool = True, hot: bool = False) -> Query: ...


def as_array(values: Iterable[object]) -> str:
    """Return the text of an array of numbers or booleans, in the form that `compile_query` sends."""
    return "{" + ",".join(map(str, values)) + "}"


def writes(sql: str) -> bool:
    """Return whether a statement changes rows."""
    return _WRITES.search(sql) is not None


def of_primary(sql: str) -> str:
    """Return the statement in a form that a load balancer sends to the primary, even if the statement only reads."""
    return sql if writes(sql) else f"{_TO_PRIMARY}{sql}"


def plain(name: str, sql: str, *, rows: bool = True) -> Query:
    """Return a statement without parameters, which is the same for every driver."""
    sql = of_primary(sql) if rows else sql
    return Query(name, sql, sql, (), (), rows=rows, hot=False)


def compile_query(
    name: str,
    template: str,
    substitutions: Mapping[str, str],
    paramstyle: Paramstyle,
    *,
    rows: bool = True,
    hot: bool = False,
) -> Query:
    """Compile a template, in which ``{table}`` is an identifier and ``:name`` a parameter.

    Identifiers in ``substitutions`` must be quoted already; parameters are never put into the text. Each parameter is
    cast in the SQL (``:n::bigint``), so that every driver infers the same type.

    An array of numbers or booleans is sent as one text, ``{1,2}``, which the server parses. The driver asyncpg would
    write the elements of a list with codecs that the application may have set, and all drivers take longer for a list
    than for a text.
    """
    template = rename_clashes(template, substitutions)
    arrays = frozenset(name for name, _ in _ARRAY.findall(template))
    template = _ARRAY.sub(r":\1::text::\2[]", template)
    template = of_primary(template.strip()) if rows else template.strip()
    order = tuple(_PARAMETER.findall(template))
    names = list(dict.fromkeys(order))
    numbered = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", template).format_map(substitutions)
    if paramstyle == "numeric_dollar":
        return Query(name, numbered, numbered, tuple(names), tuple(range(len(names))), rows, hot, arrays)
    if order:  # without parameters, the driver does not interpret a %
        template = _PARAMETER.sub("%s", template.replace("%", "%%"))
        substitutions = {place: name.replace("%", "%%") for place, name in substitutions.items()}
    sql = template.format_map(substitutions)
    return Query(name, sql, numbered, order, tuple(order.index(n) for n in names), rows, hot, arrays)
