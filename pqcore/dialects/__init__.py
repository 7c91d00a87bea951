"""Dialects of engines that are like PostgreSQL, and not the same; PostgreSQL's own is `pqcore.dialect.Dialect`.

Each is found by an entry point in the group ``pqcore.dialects``, as those of other packages are.  One is chosen with
``PQ(dsn, dialect="citus")``, or by the environment variable PQCORE_DIALECT.
"""
