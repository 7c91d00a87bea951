"""Clients that put and take while everything around them fails, and a checker that proves what became of each job.

``make chaos`` runs it for a minute, and a failover for half of one; ``python -m tests.chaos --seconds 600 --seed 7``
longer, and with other faults. Two faults are injected at a time: faults that last, and faults within clients, run in a
thread of their own. Some faults can run in either thread. Each thread takes the fault that was injected least.
"""
