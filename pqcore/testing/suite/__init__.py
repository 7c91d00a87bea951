"""The scenarios, by subject; each runs over every backend."""
