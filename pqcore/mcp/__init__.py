"""A Model Context Protocol server, by which a program that talks to language models reads and changes queues.

See docs/mcp.md. Only `pqcore.mcp.server` imports the SDK.
"""

LIMIT = 4_000
"""Characters of a job's data, headers, error message and traceback that are shown, each, by default."""
