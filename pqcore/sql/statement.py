"""An SQL statement as a value: a name, a text with named parameters, compiled once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, Literal, Protocol, TypeAlias

Paramstyle: TypeAlias = Literal["format", "numeric_dollar"]
"""How a driver wants placeholders: ``%s`` (PEP 249's name) or ``$1`` (SQLAlchemy's name)."""
Retention: TypeAlias = Literal["keep", "delete", "archive"]
"""What becomes of the row of a finished job."""
RETENTIONS: tuple[Retention, ...] = ("keep", "delete", "archive")

_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE)\b")
_TO_PRIMARY = "/*NO LOAD BALANCE*/ "
"""Has a load balancer (Pgpool-II) send a statement to the primary though it only reads: a standby may lag behind."""
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")
_ARRAY = re.compile(r"(?<![:\w]):([a-z_]+)::(bigint|int|bool)\[\]")


@dataclass(frozen=True, eq=False)
class Query:
    """A statement compiled for one table and one driver.

    Attributes:
        name: What it is called in errors, logs and plans.
        sql: The text, with placeholders in the backend's paramstyle.
        numbered: The text with ``$1`` placeholders, as PREPARE wants it.
        order: The names of the parameters, one for each placeholder of ``sql``.
        first: Where in ``order`` each of ``numbered``'s parameters stands first.
        rows: Whether it returns rows (asking the driver costs more than saying so).
        hot: Whether it is worth a server-side prepared statement.
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
        """`sql` in UTF-8: the same object each time, for drivers that take bytes, and remember them by identity."""
        return self.sql.encode()

    def prepare(self, name: str) -> str:
        """The statement that prepares it, which a load balancer sends where it sends the statement itself."""
        lead = _TO_PRIMARY if self.numbered.startswith(_TO_PRIMARY) else ""
        return f"{lead}PREPARE {name} AS {self.numbered[len(lead) :]}"

    @cached_property
    def distinct(self) -> bool:
        """Whether each parameter stands in ``sql`` once: then ``numbered`` takes the same ones in the same order."""
        return len(self.first) == len(self.order)

    @cached_property
    def pick(self) -> Callable[[Sequence[object]], Sequence[object]]:
        """Picks the parameters of ``numbered`` from those of ``sql``."""
        if self.distinct:
            return lambda bound: bound
        if len(self.first) > 1:
            return itemgetter(*self.first)
        return lambda bound: [bound[place] for place in self.first]

    @cached_property
    def bind(self) -> Callable[[Mapping[str, object]], tuple[object, ...]]:
        """Picks the parameters from a mapping, in the order of the placeholders."""
        if self.arrays:
            return self._binding_arrays()
        if len(self.order) > 1:
            return itemgetter(*self.order)
        return lambda values: tuple([values[name] for name in self.order])

    def given(self, values: Mapping[str, object]) -> list[object]:
        """The parameters of `numbered`, picked from a mapping."""
        return [*self.pick(self.bind(values))]

    def _binding_arrays(self) -> Callable[[Mapping[str, object]], tuple[object, ...]]:
        places = [(name, name in self.arrays) for name in self.order]

        def bind(values: Mapping[str, Any]) -> tuple[object, ...]:
            found = [(values[name], array) for name, array in places]
            return tuple([as_array(value) if array and value is not None else value for value, array in found])

        return bind


class Compile(Protocol):
    """Compiles a template for one table and one driver: `compile_query`, but for what these decide."""

    def __call__(self, name: str, template: str, *, rows: bool = True, hot: bool = False) -> Query: ...


def as_array(values: Iterable[object]) -> str:
    """The text of an array of numbers or booleans, as `compile_query` has it sent."""
    return "{" + ",".join(map(str, values)) + "}"


def writes(sql: str) -> bool:
    """Whether a statement changes rows."""
    return _WRITES.search(sql) is not None


def of_primary(sql: str) -> str:
    """The statement as a load balancer sends it to the primary, as it does with all statements that write."""
    return sql if writes(sql) else f"{_TO_PRIMARY}{sql}"


def plain(name: str, sql: str, *, rows: bool = True) -> Query:
    """A statement without parameters, which is the same for every driver."""
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
    """Compile a template: ``{table}`` is an identifier, ``:name`` a parameter.

    Identifiers come from ``substitutions`` quoted already; parameters are never
    put into the text.  Each parameter is cast in the SQL (``:n::bigint``), so
    every driver infers the same type.

    An array of numbers or booleans is sent as one text, ``{1,2}``, that the server reads: asyncpg writes the elements
    by codecs that the application may have set, and drivers take longer over a list than over a text.
    """
    arrays = frozenset(name for name, _ in _ARRAY.findall(template))
    template = _ARRAY.sub(r":\1::text::\2[]", template)
    template = of_primary(template.strip()) if rows else template.strip()
    order = tuple(_PARAMETER.findall(template))
    names = list(dict.fromkeys(order))
    numbered = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", template).format_map(substitutions)
    if paramstyle == "numeric_dollar":
        return Query(name, numbered, numbered, tuple(names), tuple(range(len(names))), rows, hot, arrays)
    if order:  # else the driver leaves a % as it is
        template = _PARAMETER.sub("%s", template.replace("%", "%%"))
        substitutions = {place: name.replace("%", "%%") for place, name in substitutions.items()}
    sql = template.format_map(substitutions)
    return Query(name, sql, numbered, order, tuple(order.index(n) for n in names), rows, hot, arrays)
