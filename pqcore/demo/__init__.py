"""A demonstration: several processes, three drivers, workers killed during jobs, and a proof.

    python -m pqcore.demo

Producers and consumers, each a process, move jobs through one queue over psycopg2, psycopg and asyncpg. A job names a
file; a consumer hashes the file, and stores the hash in the transaction that took the job. In the middle of the run,
one consumer of each driver is killed while it holds a job. At the end, SQL over the tables shows whether every job was
done exactly once.

Read ``workers`` to see how a queue is used; the other modules only organize the demonstration.
"""
