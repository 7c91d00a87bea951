"""pqcore inside of frameworks; each module needs the library that it is named after."""
