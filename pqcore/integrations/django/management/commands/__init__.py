"""The command ``manage.py pqcore``."""
