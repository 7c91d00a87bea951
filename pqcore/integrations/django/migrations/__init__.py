"""Django's migrations, one a schema version since the first that had any."""
