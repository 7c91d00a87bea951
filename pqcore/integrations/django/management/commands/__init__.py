"""``manage.py pqcore``."""
