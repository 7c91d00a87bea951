"""The benchmarks: how fast pqcore is, beside its drivers, beside pgbench, and beside itself as it was.

Installed as ``pqcore.benchmarks``, so that ``pqcore bench --backend mydriver`` measures any backend that
is installed.  See docs/benchmarks.md.
"""
