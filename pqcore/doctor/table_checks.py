"""Checks of the tables: schema version, privileges, indexes, trigger, autovacuum and bloat."""

from __future__ import annotations

from pqcore import schema
from pqcore.doctor.context import CheckContext
from pqcore.doctor.findings import Finding
from pqcore.errors import AccessDenied, SchemaTooNew
from pqcore.operations.activity import STORED
from pqcore.schema import security, sequences
from pqcore.schema.scripts import statements_naming
from pqcore.sql.identifiers import PUT_ARGUMENTS

BLOATED = 64 * 2**20
"""Bytes; a smaller table or index is never reported as bloated."""
TABLES_OF_JOBS = (
    "table",
    "archive",
    "dead",
    "slots",
    "results",
    "batches",
    "ticks",
    "rates",
    "dedup",
    "keys",
    "rules",
    "workers",
    "attempts",
    "samples",
    "schedules",
    "blocked",
    "dependencies",
)


async def check_row_security(context: CheckContext) -> list[Finding]:
    """Check whether row-level security hides rows from the role."""
    names = context.engine.names
    tables = [names.qualified("pqcore_migrations"), *(names.substitutions()[place] for place in TABLES_OF_JOBS)]
    bound = [one for table in tables if (one := await security.look(context.s, table)) is not None]
    found = await _tables_without_security(context)
    for one in bound:
        needed = {"SELECT"} if one.table == tables[0] else set(one.lacking)
        if needed & set(one.lacking):
            details = {"table": one.table, "role": one.role, "lacking": list(one.lacking)}
            found.append(Finding("row_security", "problem", one.message, one.advice, details))
    if found:
        return found
    if bound:
        some = ", ".join(one.table for one in bound)
        message = f"row-level security binds role {bound[0].role!r}, which has policies for all operations, on {some}"
        return [Finding("row_security", "ok", f"{message}: it sees the rows that the policies allow")]
    return [Finding("row_security", "ok", "row-level security hides nothing from this role")]


async def check_schema_version(context: CheckContext) -> list[Finding]:
    """Check the schema version of the table."""
    names = context.engine.names
    try:
        found = await schema.version(context.s, names)
    except AccessDenied as exc:
        if exc.sqlstate is not None:  # the server refused the query, because the role lacks a privilege
            raise
        return [Finding("schema", "problem", str(exc), "see row_security")]
    details = {"version": found, "latest": schema.latest()}
    if found is None:
        return [Finding("schema", "problem", f"table {names} does not exist", "pqcore create", details)]
    if found > schema.latest():
        message = f"table {names} has schema version {found}, and this version of pqcore knows {schema.latest()}"
        try:
            await schema.check_version(context.s, names)
        except SchemaTooNew:
            return [Finding("schema", "problem", message, "upgrade pqcore", details)]
        return [Finding("schema", "ok", f"{message}, but can use the table", details=details)]
    if found < schema.latest():
        message = f"table {names} has schema version {found}, and this version of pqcore needs {schema.latest()}"
        advice = "pqcore migrate" if found else "pqcore adopt, if it is a table of pq"
        return [Finding("schema", "problem", message, advice, details)]
    return [Finding("schema", "ok", f"table {names} has schema version {found}, the latest", details=details)]


async def _tables_without_security(context: CheckContext) -> list[Finding]:
    """If the table of jobs has row-level security, check that the other tables with data of jobs have it, too."""
    if context.s.sql.name in security.UNSUPPORTED:
        return []
    places = context.engine.names.substitutions()
    tables = [places[place] for place in TABLES_OF_JOBS]
    rows = await context.ask(
        "secured_tables",
        "SELECT wanted.name, c.relrowsecurity FROM unnest(:names::text[]) AS wanted (name)"
        " JOIN pg_class AS c ON c.oid = to_regclass(wanted.name)",
        names=tables,
    )
    secured = {name for name, is_secured in rows if is_secured}
    open_to_all = [name for name in tables if (name, False) in {tuple(row) for row in rows}]
    if tables[0] not in secured or not open_to_all:
        return []
    message = (
        f"row-level security is on for table {tables[0]}, but not for {', '.join(open_to_all)}: there, each role sees"
        " the rows of all others"
    )
    advice = "; ".join(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY" for name in open_to_all)
    advice += f"; and give these tables the policies of {tables[0]}: CREATE POLICY ... USING (... q_name ...)"
    return [Finding("row_security", "warning", message, advice, {"tables": open_to_all})]


_TABLES = (
    "unnest(ARRAY[to_regclass(:table_name::text), to_regclass(:dead_name::text), to_regclass(:archive_name::text),"
    " to_regclass(:slots_name::text), to_regclass(:results_name::text), to_regclass(:dependencies_name::text)])"
)


def _table_names(context: CheckContext) -> dict[str, object]:
    places = context.engine.names.substitutions()
    return {f"{name}_name": places[name] for name in ("dead", "archive", "slots", "results", "dependencies")}


def _statements_with(context: CheckContext, placeholder: str, *, concurrently: bool = True) -> list[str]:
    """Return the migrations' statements that name an object, with this table's names instead of placeholders."""
    places = context.engine.names.substitutions() | {"concurrently": "CONCURRENTLY" if concurrently else ""}
    return statements_naming(placeholder, places)


async def check_indexes(context: CheckContext) -> list[Finding]:
    """Check whether all indexes exist and are valid."""
    rows = await context.ask(
        "indexes",
        "SELECT c.relname::text, i.indisvalid AND i.indisready, i.indisprimary,"
        " i.indrelid = to_regclass(:table_name::text)"
        f" FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN {_TABLES} AS ours (oid)"
        " ON i.indrelid = ours.oid",
        **_table_names(context),
    )
    valid = {name: is_valid for name, is_valid, _, _ in rows}
    places = [name for name in context.engine.names.substitutions() if name.endswith("_index")]
    found = []
    for place in places:
        name = context.bare(place)
        remedy = "; ".join(_statements_with(context, place)) or "pqcore create"
        if name not in valid:
            found.append(Finding("indexes", "problem", f"index {name} is missing", remedy, {"index": name}))
        elif not valid[name]:
            drop = f"DROP INDEX CONCURRENTLY {context.engine.names.qualified(name)}"
            message = f"index {name} is invalid: its build was interrupted"
            found.append(Finding("indexes", "problem", message, f"{drop}; {remedy}", {"index": name}))
    if not any(of_table and primary and is_valid for _, is_valid, primary, of_table in rows):
        advice = f"ALTER TABLE {context.engine.names} ADD PRIMARY KEY (id)"
        found.append(Finding("indexes", "problem", "the primary key is missing", advice, {"index": "primary key"}))
    if not found:
        names = sorted(valid)
        return [Finding("indexes", "ok", f"all {len(names)} indexes exist, and are valid", details={"indexes": names})]
    return found


async def check_sequences(context: CheckContext) -> list[Finding]:
    """Check whether the sequences of ids are ahead of the ids in the tables."""
    found = []
    for one in await sequences.look(context.s, context.engine.names):
        highest = max(one.highest.values(), default=0)
        details = {"sequence": one.name, "next": one.following, "highest": one.highest}
        if one.following is None:
            [[role]] = await context.ask("current_role", "SELECT quote_ident(current_user)")
            message = f"could not be checked: the role may not read sequence {one.name}"
            advice = f"GRANT SELECT ON SEQUENCE {one.name} TO {role}"
            found.append(Finding("sequences", "warning", message, advice, details))
        elif one.behind:
            where = ", ".join(
                f"{table} has {most}" for table, most in one.highest.items() if most >= (one.following or 0)
            )
            message = f"sequence {one.name} gives id {one.following} next, which is too low: {where}; ids will repeat"
            found.append(Finding("sequences", "problem", message, one.remedy, details))
        else:
            message = f"sequence {one.name} gives id {one.following} next, above all stored ids (up to {highest})"
            found.append(Finding("sequences", "ok", message, details=details))
    return found


async def check_trigger(context: CheckContext) -> list[Finding]:
    """Check the trigger that notifies waiters, and the trigger that releases jobs that wait for other jobs."""
    rows = await context.ask(
        "triggers",
        "SELECT tgname::text, tgenabled::text FROM pg_trigger"
        " WHERE tgrelid = to_regclass(:table_name::text) AND NOT tgisinternal",
    )
    [[silenced]] = await context.ask("notify_setting", "SELECT coalesce(current_setting('pqcore.notify', true), '')")
    enabled = {str(trigger): str(state) for trigger, state in rows}
    name = context.bare("notify_trigger")
    found = []
    if name not in enabled:
        remedy = "; ".join(_statements_with(context, "notify_trigger"))
        found.append(
            Finding(
                "trigger", "problem", f"trigger {name} is missing: no notifications are sent, and waiters poll", remedy
            )
        )
    elif enabled[name] not in ("O", "A"):
        quoted = context.engine.names.substitutions()["notify_trigger"]
        remedy = f"ALTER TABLE {context.engine.names} ENABLE TRIGGER {quoted}"
        found.append(
            Finding(
                "trigger", "problem", f"trigger {name} is disabled: no notifications are sent, and waiters poll", remedy
            )
        )
    elif silenced == "off":
        message = "pqcore.notify is off for this role or database: no notifications are sent, and waiters poll"
        found.append(Finding("trigger", "warning", message, "ALTER ROLE (or DATABASE) ... RESET pqcore.notify"))
    ended = context.bare("ended_name")
    if enabled.get(ended) not in ("O", "A") and "after" not in context.engine.dialect.unsupported:
        message = f"trigger {ended} is missing or disabled: jobs that wait for other jobs are not released"
        remedy = (
            f"ALTER TABLE {context.engine.names} ENABLE TRIGGER {context.engine.names.substitutions()['ended_name']}"
        )
        if ended not in enabled:
            remedy = "; ".join(each for each in _statements_with(context, "ended_name") if "TRIGGER" in each)
        found.append(Finding("trigger", "problem", message, remedy))
    if "pq_insert" in enabled:
        message = "pq's trigger pq_insert exists too, and notifies once per row"
        found.append(Finding("trigger", "warning", message, f"DROP TRIGGER pq_insert ON {context.engine.names}"))
    return found or [Finding("trigger", "ok", f"triggers {name} and {ended} exist, and are enabled")]


_FIND_PUT = """
SELECT p.oid::regprocedure::text, strpos(p.prosrc, 'INSERT INTO ' || quote_ident(n.nspname) || '.') > 0,
  has_function_privilege(p.oid, 'EXECUTE')
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE p.oid = to_regprocedure(:function::text)"""


async def check_put_function(context: CheckContext) -> list[Finding]:
    """Check the function that puts jobs from SQL."""
    names, dialect = context.engine.names, context.engine.dialect
    if reason := dialect.unsupported.get("put function"):
        return [Finding("put_function", "ok", f"no function puts jobs from SQL: {reason}")]
    name = names.put_function
    rows = await context.ask("put_function", _FIND_PUT, function=names.substitutions()["put_function"] + PUT_ARGUMENTS)
    remedy = "; ".join(_statements_with(context, "put_name"))
    if not rows:
        return [Finding("put_function", "warning", f"function {name}, which puts jobs from SQL, is missing", remedy)]
    [[_, fits, may_call]] = rows
    if not fits:
        message = f"function {name} puts jobs into another schema than its own: the schema was renamed"
        return [Finding("put_function", "problem", message, remedy)]
    message = f"function {name} puts jobs from SQL; the role {'may' if may_call else 'may not'} call it"
    return [Finding("put_function", "ok", message)]


_OPTIONS = ("vacuum_index_cleanup", "autovacuum_vacuum_scale_factor", "autovacuum_vacuum_threshold")


async def check_autovacuum(context: CheckContext) -> list[Finding]:
    """Check whether autovacuum runs on the table, and runs often enough."""
    table_row = await context.table()
    running, counting = table_row.autovacuum, table_row.track_counts
    vacuumed, analyzed = table_row.vacuumed, table_row.analyzed
    settings = dict(option.partition("=")[::2] for option in table_row.options or ())
    live, dead, changed = int(table_row.live or 0), int(table_row.dead or 0), int(table_row.changed or 0)
    details = {
        "live": live,
        "dead": dead,
        "changed_since_analyze": changed,
        "seconds_since_vacuum": vacuumed,
        "seconds_since_analyze": analyzed,
        "vacuums": table_row.vacuums,
        "options": settings,
    }
    table = context.engine.names
    found = []
    if running == "off" or counting == "off":
        message = f"autovacuum is {running}, track_counts {counting}: dead rows stay, and each get has to skip them"
        found.append(Finding("autovacuum", "problem", message, "turn both on", details))
    elif settings.get("autovacuum_enabled") in ("false", "off", "0", "no"):
        advice = f"ALTER TABLE {table} RESET (autovacuum_enabled)"
        found.append(Finding("autovacuum", "problem", "autovacuum is off for the table", advice, details))
    elif absent := [name for name in _OPTIONS if name not in settings]:
        statements = [each for each in _statements_with(context, "table") if "vacuum_index_cleanup" in each]
        message = f"the table lacks the settings that pqcore gives it: {', '.join(absent)}"
        found.append(Finding("autovacuum", "warning", message, "; ".join(statements), details))
    threshold = 1_000 + 0.01 * live
    if dead > 10 * threshold:
        message = f"{dead} dead and {live} live rows: vacuum does not keep up"
        advice = f"end what holds the oldest snapshot (see snapshots); VACUUM {table}; raise autovacuum_max_workers"
        found.append(Finding("autovacuum", "warning", message, advice, details))
    if changed > 10_000 and (analyzed is None or changed > live):
        message = f"{changed} rows changed since the table was analyzed"
        found.append(Finding("autovacuum", "warning", message, f"ANALYZE {table}", details))
    if found:
        return found
    last = "never vacuumed yet" if vacuumed is None else f"vacuumed {vacuumed:.0f} seconds ago"
    then = "never analyzed yet" if analyzed is None else f"analyzed {analyzed:.0f} seconds ago"
    return [Finding("autovacuum", "ok", f"on; {last}, {then}; {dead} dead rows", details=details)]


async def check_bloat(context: CheckContext) -> list[Finding]:
    """Check for tables and indexes whose pages are mostly empty."""
    table_row = await context.table()
    live, dead = int(table_row.live or 0), int(table_row.dead or 0)
    main, whole, indexes = int(table_row.main_size), int(table_row.table_size), int(table_row.index_size)
    rows = await context.ask(
        "index_sizes",
        "SELECT c.relname::text, pg_relation_size(c.oid), c.reltuples::float8 FROM pg_index AS i"
        f" JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indrelid IN {STORED}",
    )
    details = {"live": live, "dead": dead, "table": whole, "indexes": indexes}
    found = []
    # A row has at most 2 kB in the table itself, because longer values are stored elsewhere; so a page holds at least
    # four rows.
    if main > BLOATED and main > 8_192 * max(live + dead, 1):
        message = f"the table takes {_size(main)} for {live} rows: most of its pages are empty"
        advice = f"VACUUM FULL {context.engine.names} while nothing runs, or pg_repack"
        found.append(Finding("bloat", "warning", message, advice, details))
    for name, size, entries in rows:
        if size > BLOATED and size > 1_000 * max(entries, 1):
            message = f"index {name} takes {_size(size)} for {max(entries, 0):.0f} entries"
            advice = f"REINDEX INDEX CONCURRENTLY {context.engine.names.qualified(name)}"
            found.append(Finding("bloat", "warning", message, advice, {"index": name, "size": size}))
    if found:
        return found
    message = f"table {_size(whole)}, indexes {_size(indexes)}, {live} rows, {dead} dead"
    return [Finding("bloat", "ok", message, details=details)]


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 10_240 or unit == "GB":
            return f"{number:.0f} {unit}"
        number /= 1_024
    return ""  # never reached
