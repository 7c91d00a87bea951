"""The comparison of pqcore with its peers: the same work, on the same server, in alternation.

    python -m benchmarks.peers --rounds 3 --json peers.json

Each system runs in its own process, and each peer in its own virtual environment, which pip makes when it is first
needed; see `environments`. A process answers requests in JSON lines; see `runner`, which also documents how each
workload is measured. The ``run_*`` module of a system has its code for each workload, which follows the system's own
documentation.
"""
