"""The database layer: engine, sessions, connection sources, pools, listener, and runtimes that step operations."""
