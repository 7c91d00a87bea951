"""Django's migrations, one for each schema version since the first Django migration."""
