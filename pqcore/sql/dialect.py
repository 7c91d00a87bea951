"""The statements of a table as an engine takes them: PostgreSQL, or one that is like it.

All statements run at READ COMMITTED or above.  ``FOR UPDATE SKIP LOCKED`` makes a
row the session's own until its transaction ends; a row that another session
changed between this statement's snapshot and the lock is checked again by
PostgreSQL against the whole WHERE clause (EvalPlanQual), so a job fetched a moment
ago is not fetched twice.  ``statement_timestamp()`` is the server's clock at the
statement, not at the start of a long transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from typing import Any, ClassVar

from pqcore.backend import Capability
from pqcore.errors import PluginError
from pqcore.sql.admin_statements import AdminStatements
from pqcore.sql.admission_statements import end_and_take_template, take_lanes_template
from pqcore.sql.encoding_statements import EncodingStatements
from pqcore.sql.explain_statements import ExplainStatements
from pqcore.sql.fetch_statements import SIZES, Finish, Pick, fetch_template, peek_template, plain_template
from pqcore.sql.identifiers import TableName
from pqcore.sql.queue_statements import QueueStatements, ended_ctes
from pqcore.sql.rewrite import Rewrite, RewriteMiss
from pqcore.sql.rule_statements import RuleStatements
from pqcore.sql.session_statements import SessionStatements
from pqcore.sql.statement import Paramstyle, Query, Retention, compile_query, plain
from pqcore.sql.statement_set import read_statements
from pqcore.sql.task_statements import TaskStatements
from pqcore.sql.worker_statements import WorkerStatements

SCHEMA_STATEMENTS = "schema_statements.sql"


class Dialect(QueueStatements, SessionStatements):
    """The statements of one table, in one driver's paramstyle.

    A subclass speaks to an engine that is like PostgreSQL, and not the same: it rewrites what the engine does not take.

    Args:
        names: The table.
        paramstyle: How the driver wants placeholders.

    Attributes:
        name: As users write it: ``PQ(dsn, dialect="citus")``.
        missing: Why the engine lacks what a driver may offer; by `pqcore.backend.Capability`.
        unsupported: Why the engine cannot do what else can be done: ``move``, ``partitions``, ``shared looks`` (one
            statement that looks at many queues; without it, each waiter that cannot be notified polls), ``group
            commit`` (statements for several callers; without it, each call is a statement of its own), ``end and
            take`` (one statement that ends jobs under limits, and leases others in their places; without it, two).
        rewrites: By the name of a statement, the template in its place, or a function that makes it of the template.
        unknown_words: What the engine has not, such as ``pg_notify``. A statement that still has such a word after it
            was rewritten is an error, and is not sent.
        api: The version of the plugin API that it was written for.
    """

    name: ClassVar[str] = "postgresql"
    missing: ClassVar[Mapping[Capability, str]] = {}
    unsupported: ClassVar[Mapping[str, str]] = {}
    rewrites: ClassVar[Mapping[str, str | Rewrite]] = {}
    unknown_words: ClassVar[Iterable[str]] = ()
    api: ClassVar[int] = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if unknown := sorted(cls.rewrites.keys() - set(cls.all_names())):
            msg = f"dialect {cls.name!r} rewrites {', '.join(unknown)}: pqcore has no statement of this name"
            raise PluginError(msg)

    def __init__(self, names: TableName, paramstyle: Paramstyle) -> None:
        super().__init__(self._compile_template)
        self._substitutions = names.substitutions()
        self._paramstyle: Paramstyle = paramstyle
        # Bounded: get_many(n) has a statement for each n.
        self.fetch = lru_cache(maxsize=64)(self._fetch)
        self.fetch_most = lru_cache(maxsize=64)(partial(self._fetch, most=True))
        self.take_lanes = lru_cache(maxsize=64)(self._take_lanes)
        self.end_and_take = lru_cache(maxsize=64)(self._end_and_take)

    # What a subclass overrides.

    def rewrite(self, name: str, template: str) -> str:
        """Return the template of a statement as the engine takes it.

        Args:
            name: The statement's.
            template: With ``{table}`` for identifiers and ``:name`` for parameters.

        Raises:
            RewriteMiss: The template does not contain what is rewritten.
        """
        change = self.rewrites.get(name)
        if change is None:
            return template
        return change if isinstance(change, str) else change(template)

    def rewrite_migration(self, statement: str) -> Iterable[str]:
        """Return what is run for a statement of a migration: itself, another, several, or none."""
        return (statement,)

    # What others ask for.

    @cached_property
    def tasks(self) -> TaskStatements:
        """The statements of tasks and workers."""
        return TaskStatements(self._compile_template)

    @cached_property
    def admin(self) -> AdminStatements:
        """The statements of operators."""
        return AdminStatements(self._compile_template)

    @cached_property
    def rules(self) -> RuleStatements:
        """The statements of limits, rates, weights and pauses."""
        return RuleStatements(self._compile_template)

    @cached_property
    def encodings(self) -> EncodingStatements:
        """The statements that count and re-encode data."""
        return EncodingStatements(self._compile_template)

    @cached_property
    def explain(self) -> ExplainStatements:
        """The statements that say why a job does not run."""
        return ExplainStatements(self._compile_template)

    @cached_property
    def workers(self) -> WorkerStatements:
        """The statements of the list of workers."""
        return WorkerStatements(self._compile_template)

    def peek(self, n: int) -> Query:
        """Return the statement that reads the next ``n`` rows due, locking nothing."""
        return self._compile_template(f"peek_{n}", peek_template(n))

    def schema_statement(self, name: str, **places: str) -> Query:
        """Return a statement of `pqcore.schema` that stands in `schema_statements.sql`.

        Args:
            name: The statement's.
            places: What the names in braces stand for: literals, as no parameters are sent with it.
        """
        return plain(name, self.checked(name, read_statements(SCHEMA_STATEMENTS)[name]).format_map(places))

    def migration(self, statement: str) -> Iterator[str]:
        """Return what is run for a statement of a migration.

        Raises:
            PluginError: The dialect is at odds with the statement.
        """
        try:
            for each in self.rewrite_migration(statement):
                self._refuse_unknown_words("migration", each)
                yield each
        except RewriteMiss as exc:
            raise PluginError(f"dialect {self.name!r} cannot rewrite a migration: {exc}") from exc

    def checked(self, name: str, template: str) -> str:
        """Rewrite the template of a statement.

        Raises:
            PluginError: The dialect is at odds with the statement.
        """
        try:
            text = self.rewrite(name, template)
        except RewriteMiss as exc:
            raise PluginError(f"dialect {self.name!r} cannot rewrite the statement {name!r}: {exc}") from exc
        self._refuse_unknown_words(f"statement {name!r}", text)
        return text

    @classmethod
    def all_names(cls) -> Iterator[str]:
        """The names of all statements, but for those that have a number of rows in their names."""
        for statements in (
            cls,
            TaskStatements,
            AdminStatements,
            RuleStatements,
            EncodingStatements,
            ExplainStatements,
            WorkerStatements,
        ):
            yield from statements.names()
        yield from read_statements(SCHEMA_STATEMENTS)

    def _refuse_unknown_words(self, what: str, text: str) -> None:
        for word in self.unknown_words:
            if word in text:
                msg = f"dialect {self.name!r} leaves {word!r} in the {what}, which the engine does not know: {text}"
                raise PluginError(msg)

    def _fetch(self, pick: Pick, finish: Finish, n: int, *, most: bool = False) -> Query:
        """See `fetch_template`."""
        name = f"{finish}_most_{n}_{pick}" if most else f"{finish}_{n}_{pick}"
        return self._compile_template(name, fetch_template(pick, finish, n, most=most), hot=n in SIZES)

    def _take_lanes(self, n: int) -> Query:
        """See `take_lanes_template`."""
        return self._compile_template(f"take_lanes_{n}", take_lanes_template(n, plain_template(n)), hot=n in SIZES)

    def _end_and_take(self, retention: Retention, n: int) -> Query:
        """See `end_and_take_template`."""
        template = end_and_take_template(n, plain_template(n), ended_ctes(retention))
        return self._compile_template(f"end_and_take_{retention}_{n}", template, hot=n in SIZES)

    def _compile_template(self, name: str, template: str, *, rows: bool = True, hot: bool = False) -> Query:
        text = self.checked(name, template)
        return compile_query(name, text, self._substitutions, self._paramstyle, rows=rows, hot=hot)
