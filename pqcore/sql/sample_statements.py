"""The statements of the samples of figures, all of which are in `sample_statements.sql`."""

from __future__ import annotations

from pqcore.sql.statement_set import StatementSet, from_file


class SampleStatements(StatementSet):
    """The statements of the samples of figures."""

    file = "sample_statements.sql"

    last_sample = from_file()
    claim_sample = from_file()
    keep_sample = from_file(rows=False)
    prune_samples = from_file(rows=False)
    find_samples = from_file()
    age_of_sample = from_file()
