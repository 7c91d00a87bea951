"""Helpers for tests of applications and of backends.

`pqcore.testing.jobs` gives each test its own queue, and shows what is in the queue; see docs/testing.md.

The other modules are the conformance kit: tests of a backend's duties, which anybody can run.

    pytest --pyargs pqcore.testing.suite --pqcore-backend mydriver

See docs/conformance.md.
"""
