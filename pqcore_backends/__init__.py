"""The built-in backends: psycopg2, psycopg (3) and asyncpg, and an embedded server.

This package imports no driver: each is imported when its backend is chosen.
"""
