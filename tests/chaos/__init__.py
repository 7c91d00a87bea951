"""Clients that put and take while everything around them fails, and a checker that proves what became of each job.

``make chaos`` runs it for a minute, and a failover for half of one; ``python -m tests.chaos --seconds 600 --seed 7``
longer, and with other faults. Three threads inject faults: of the server, of connections, and those that last or are
within clients. Some faults can run in each thread. A thread takes the fault that was injected least.
"""
