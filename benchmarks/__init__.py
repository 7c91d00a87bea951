"""The benchmarks: the speed of pqcore compared with its drivers, with pgbench, and with other builds of itself.

The package is installed as ``pqcore.benchmarks``, so that ``pqcore bench --backend mydriver`` measures any installed
backend. See docs/benchmarks.md.
"""
