"""Integrations of pqcore into frameworks; each module needs the library that it is named after."""
