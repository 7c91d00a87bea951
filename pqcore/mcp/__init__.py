"""A Model Context Protocol server, with which a program that talks to language models looks after queues.

See docs/mcp.md. Nothing of the SDK is imported before `pqcore.mcp.server` is.
"""

LIMIT = 4_000
"""Characters of a job's data, headers, error message and traceback that are shown, each, if nothing else is said."""
