"""pg8000 as a backend of pqcore."""
