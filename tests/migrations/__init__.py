"""What `test_migrations` starts from, and how it looks at what came of it."""
