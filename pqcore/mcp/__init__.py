"""A Model Context Protocol server, through which programs that use language models read and change queues.

See docs/mcp.md. Only `pqcore.mcp.server` imports the SDK.
"""

LIMIT = 4_000
"""The default limit of characters for each of these: a job's data, headers, error message and traceback."""
