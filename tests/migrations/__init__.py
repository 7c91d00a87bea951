"""The starting tables of `test_migrations`, and the checks of the migrated tables."""
