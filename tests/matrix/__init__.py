"""The conformance suite over what users have: server versions, poolers, drivers, Pythons, containers.

``make matrix`` runs it whole; ``python -m tests.matrix --only postgres --quick`` a part.
"""
