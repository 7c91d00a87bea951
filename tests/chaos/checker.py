"""Reads what clients wrote down, and the tables, and finds what cannot be."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg


@dataclass
class Verdict:
    """What came of a run.

    Attributes:
        counts: How often each act ended in each way, as in ``put ok``.
        losses: What cannot be: empty, if all is well.
    """

    counts: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)


def read(logs: Iterable[Path]) -> list[dict[str, Any]]:
    """What all clients wrote down; the last line of one that was killed may be half a line."""
    found = []
    for log in logs:
        for line in log.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def check(history: Sequence[dict[str, Any]], dsn: str) -> Verdict:
    """Hold what clients were told against what is in the tables, of which no row is ever deleted."""
    verdict = Verdict(Counter(f"{entry['act']} {entry['outcome']}" for entry in history))
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT q_name, data #>> '{}', dequeued_at IS NOT NULL, attempts FROM queue"
        ).fetchall()
        effects = Counter(token for (token,) in connection.execute("SELECT token FROM effects"))
    told: dict[tuple[str, str], set[str]] = defaultdict(set)
    for entry in history:
        told[entry["act"], entry["outcome"]].update(entry.get("tokens", ()))
    there = Counter(token for _, token, _, _ in rows)
    done = {
        queue: {token for name, token, over, _ in rows if name == queue and over}
        for queue in ("transaction", "lease", "pop")
    }

    def expect(what: str, tokens: Iterable[str]) -> None:
        verdict.losses += [f"{what}: {token}" for token in sorted(tokens)]

    acknowledged, refused, unknown = (told["put", outcome] for outcome in ("ok", "failed", "unknown"))
    expect("put, acknowledged, and not there", acknowledged - set(there))
    expect("put, said to have failed, and there", refused & set(there))
    expect("put once, and there twice", {token for token, number in there.items() if number > 1})
    expect("there, and put by nobody", set(there) - told["put", "begun"])
    verdict.counts["put unknown, and there"] = len(unknown & set(there))
    verdict.counts["put unknown, and not there"] = len(unknown - set(there))

    expect("an effect twice", {token for token, number in effects.items() if number > 1})
    expect("taken in a transaction, without its effect", done["transaction"] - set(effects))
    expect("an effect, and its job not taken", set(effects) - done["transaction"])
    expect("taken, acknowledged, and without effect", told["take", "ok"] - set(effects))
    taken, failed = (_times(history, "take", outcome) for outcome in ("begun", "failed"))
    expect("an effect, and each who took it was told that it failed", {t for t in effects if failed[t] >= taken[t]})

    expect("acknowledged, and not finished", told["ack", "ok"] - done["lease"])
    expect("finished, and nobody tried to", done["lease"] - told["ack", "begun"])
    acks = _times(history, "ack", "ok")
    expect("two acknowledgements accepted", {token for token, number in acks.items() if number > 1})
    leases = Counter((entry["tokens"][0], entry["attempt"]) for entry in history if entry["act"] == "leased")
    expect("one lease given to two", {token for (token, _), number in leases.items() if number > 1})

    pops = _times(history, "pop", "ok")
    expect("popped by two", {token for token, number in pops.items() if number > 1})
    expect("popped, and there for others", set(pops) - done["pop"])
    unheard = len(done["pop"] - set(pops))
    explained = (
        verdict.counts["pop unknown"]
        + verdict.counts["pop begun"]
        - sum(verdict.counts[f"pop {outcome}"] for outcome in ("ok", "unknown", "failed"))
    )
    if unheard > explained:
        verdict.losses.append(f"{unheard} jobs were popped and reached nobody, of which {explained} are explained")
    verdict.counts["popped, and lost with a client or an answer"] = unheard
    return verdict


def _times(history: Sequence[dict[str, Any]], act: str, outcome: str) -> Counter[str]:
    """How often each job had an act end so."""
    chosen = [entry for entry in history if (entry["act"], entry["outcome"]) == (act, outcome)]
    return Counter(token for entry in chosen for token in entry["tokens"])
