"""The built-in backends: psycopg2, psycopg (3) and asyncpg, and an embedded server.

Nothing is imported here: each driver is imported when its backend is chosen.
"""
