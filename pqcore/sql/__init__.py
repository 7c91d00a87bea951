"""Statements, fragments and identifiers of SQL, and the dialects that rewrite them."""
