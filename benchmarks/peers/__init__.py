"""pqcore beside its peers: the same work, on the same server, in alternation.

    python -m benchmarks.peers --rounds 3 --json peers.json

Each system runs in a process of its own, and each peer in a virtual environment of its own, made by
pip when it is first wanted; see `environments`.  A process answers requests in JSON lines; see
`runner`, which also says how each workload is measured.  What a system does for a workload is written
in its ``run_*`` module, and follows its own documentation.
"""
