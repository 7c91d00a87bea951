"""The statements of a table, in the form that an engine accepts (PostgreSQL, or a server that resembles it).

All statements run at READ COMMITTED or above. ``FOR UPDATE SKIP LOCKED`` locks a row for the session until its
transaction ends. If another session changed the row after this statement's snapshot, PostgreSQL checks the locked row
against the whole WHERE clause again (EvalPlanQual). So a job that was just fetched is not fetched twice.
``statement_timestamp()`` is the server's clock when the statement starts, not when a long transaction starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from typing import Any, ClassVar

from pqcore.backend import Capability
from pqcore.errors import PluginError
from pqcore.sql.admin_statements import AdminStatements
from pqcore.sql.admission_statements import end_and_take_template, take_lanes_template
from pqcore.sql.attempt_statements import AttemptStatements
from pqcore.sql.dependency_statements import DependencyStatements
from pqcore.sql.encoding_statements import EncodingStatements
from pqcore.sql.explain_statements import ExplainStatements
from pqcore.sql.fetch_statements import SIZES, Finish, Pick, fetch_template, peek_template, plain_template
from pqcore.sql.identifiers import TableName
from pqcore.sql.queue_statements import QueueStatements, ended_ctes
from pqcore.sql.rewrite import Rewrite, RewriteMiss
from pqcore.sql.rule_statements import RuleStatements
from pqcore.sql.sample_statements import SampleStatements
from pqcore.sql.schedule_statements import ScheduleStatements
from pqcore.sql.session_statements import SessionStatements
from pqcore.sql.statement import Paramstyle, Query, Retention, compile_query, plain
from pqcore.sql.statement_set import read_statements
from pqcore.sql.task_statements import TaskStatements
from pqcore.sql.worker_statements import WorkerStatements

SCHEMA_STATEMENTS = "schema_statements.sql"


class Dialect(QueueStatements, SessionStatements):
    """The statements of one table, in one driver's paramstyle.

    A subclass serves an engine that resembles PostgreSQL: it rewrites statements that the engine does not accept.

    Args:
        names: The table.
        paramstyle: The style of the driver's placeholders.

    Attributes:
        name: The name that users write: ``PQ(dsn, dialect="citus")``.
        missing: Reasons why the engine lacks abilities that a driver may have; by `pqcore.backend.Capability`.
        unsupported: The reason why each missing feature is not possible, by the feature's name. ``move``: moving jobs.
            ``partitions``: a partitioned table. ``after``: jobs that wait for other jobs, which need a trigger. ``put
            function``: the function that puts jobs from SQL. ``shared looks``: one statement that looks at many queues;
            without it, each waiter without notifications polls. ``group commit``: one statement for several callers;
            without it, each call has its own statement. ``end and take``: one statement that ends jobs under limits and
            leases other jobs; without it, pqcore sends two statements.
        rewrites: By the name of a statement, the template that replaces it, or a function that makes this template from
            the original template.
        unknown_words: Words that the engine does not know, such as ``pg_notify``. A statement that has such a word
            after it was rewritten raises an error, and is not sent.
        api: The version of the plugin API that the dialect was written for.
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
        # The cache is bounded, because get_many(n) has a statement for each n.
        self.fetch = lru_cache(maxsize=64)(self._fetch)
        self.fetch_most = lru_cache(maxsize=64)(partial(self._fetch, most=True))
        self.take_lanes = lru_cache(maxsize=64)(self._take_lanes)
        self.end_and_take = lru_cache(maxsize=64)(self._end_and_take)

    # Methods that a subclass overrides.

    def rewrite(self, name: str, template: str) -> str:
        """Return the template of a statement in the form that the engine accepts.

        Args:
            name: The statement's name.
            template: The template, with ``{table}`` for identifiers and ``:name`` for parameters.

        Raises:
            RewriteMiss: The template does not contain the text to rewrite.
        """
        change = self.rewrites.get(name)
        if change is None:
            return template
        return change if isinstance(change, str) else change(template)

    def rewrite_migration(self, statement: str) -> Iterable[str]:
        """Return the statements that replace one statement of a migration; by default, only that statement itself."""
        return (statement,)

    # Methods that other modules call.

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

    @cached_property
    def attempts(self) -> AttemptStatements:
        """The statements that store and read attempts."""
        return AttemptStatements(self._compile_template)

    @cached_property
    def samples(self) -> SampleStatements:
        """The statements of the samples of figures."""
        return SampleStatements(self._compile_template)

    @cached_property
    def schedules(self) -> ScheduleStatements:
        """The statements of schedules."""
        return ScheduleStatements(self._compile_template)

    @cached_property
    def dependencies(self) -> DependencyStatements:
        """The statements of jobs that wait for other jobs."""
        return DependencyStatements(self._compile_template)

    def peek(self, n: int) -> Query:
        """Return the statement that reads the next ``n`` due rows without locking them."""
        return self._compile_template(f"peek_{n}", peek_template(n))

    def schema_statement(self, name: str, **places: str) -> Query:
        """Return a statement of `pqcore.schema` from `schema_statements.sql`.

        Args:
            name: The statement's name.
            places: The literals for the names in braces, because the statement is sent without parameters.
        """
        return plain(name, self.checked(name, read_statements(SCHEMA_STATEMENTS)[name]).format_map(places))

    def migration(self, statement: str) -> Iterator[str]:
        """Yield the statements that replace one statement of a migration.

        Raises:
            PluginError: The dialect does not fit the statement.
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
            PluginError: The dialect does not fit the statement.
        """
        try:
            text = self.rewrite(name, template)
        except RewriteMiss as exc:
            raise PluginError(f"dialect {self.name!r} cannot rewrite the statement {name!r}: {exc}") from exc
        self._refuse_unknown_words(f"statement {name!r}", text)
        return text

    @classmethod
    def all_names(cls) -> Iterator[str]:
        """Return the names of all statements, except those with a number of rows in their names."""
        for statements in (
            cls,
            TaskStatements,
            AdminStatements,
            RuleStatements,
            EncodingStatements,
            ExplainStatements,
            WorkerStatements,
            AttemptStatements,
            SampleStatements,
            ScheduleStatements,
            DependencyStatements,
        ):
            yield from statements.names()
        yield from read_statements(SCHEMA_STATEMENTS)

    def _refuse_unknown_words(self, what: str, text: str) -> None:
        for word in self.unknown_words:
            if word in text:
                msg = f"dialect {self.name!r} leaves {word!r} in the {what}, but its engine does not know it: {text}"
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
