"""The conformance suite over users' environments: server versions, poolers, drivers, Pythons, containers.

``make matrix`` runs it whole; ``python -m tests.matrix --only postgres --quick`` a part.
"""
