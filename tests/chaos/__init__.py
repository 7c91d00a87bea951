"""Clients that put and take while everything around them fails, and a checker that proves the outcome of each job.

``make chaos`` runs the faults for a minute, and a failover for half a minute. ``python -m tests.chaos --seconds 600
--seed 7`` runs for longer, with other faults. Three threads inject faults: one of the server, one of connections, one
within clients and faults that last. Some faults can run in each thread. A thread chooses the fault that was injected
least.
"""
