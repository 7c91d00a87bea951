"""What tests need: those of users' applications, and those of backends.

`pqcore.testing.jobs` gives a test a queue of its own, and looks at what is in it; see docs/testing.md.

The rest is the conformance kit: what a backend must do, as tests that anybody can run.

    pytest --pyargs pqcore.testing.suite --pqcore-backend mydriver

See docs/conformance.md.
"""
