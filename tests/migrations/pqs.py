"""A process of pq 1.9.1's: it puts numbered jobs, or takes jobs, and says which, until its input ends.

python pqs.py DSN put NAME
python pqs.py DSN get
"""

from __future__ import annotations

import sys
import threading

import pq
import psycopg2


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main(dsn: str, what: str, name: str = "") -> None:
    ending = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        ending.set()

    threading.Thread(target=listen, daemon=True).start()
    queue = pq.PQ(psycopg2.connect(dsn))["q"]
    number = 0
    while True:
        if what == "put":
            if ending.wait(0.002):
                return
            queue.put(f"{name}-{number}")
            say(f"{name}-{number}")
            number += 1
            continue
        last = ending.is_set()  # what was put before it was told to end is taken yet
        if (job := queue.get(block=False)) is not None:
            say(job.data)
        elif last:
            return
        else:
            ending.wait(0.01)


main(*sys.argv[1:])
