"""The sessions of a pool in one process or event loop, and the waiters for them."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import Any
from weakref import ref

from pqcore.db.runtime import Event
from pqcore.db.session import Session
from pqcore.db.sources import Loan, discard

CLOSING = 1.0
"""Seconds after which connections that are slow to close are broken off."""


class Waiter:
    """A waiter for a session.

    Attributes:
        event: An event that is set when the waiter should look again.
        held: The session that was handed over to the waiter.
        over: Whether the waiter has stopped waiting.
    """

    __slots__ = ("event", "held", "over")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.held: list[Session] = []
        self.over = False


class Place:
    """A token for a session that is open or being opened; the pool counts the token while something refers to it."""

    __slots__ = ("__weakref__",)


class Sessions:
    """The sessions of one process or event loop.

    There is no lock, because an interrupt could leave it locked. Each step is one method of a list, set or deque, and
    no two threads can do the same step concurrently.

    Attributes:
        idle: The sessions that nobody uses.
        waiting: The waiters for a session, in turn.
        places: One token for each session that is open, also while it is in use, or that is being opened.
        over: Whether sessions that come back are closed.
        end: The function that closes idle sessions when the event loop ends.
    """

    def __init__(self) -> None:
        self.idle: list[Session] = []
        self.waiting: deque[Waiter] = deque()
        self.places: set[ref[Place]] = set()
        self.over = False
        self.end: object = None

    def reserve(self, size: int) -> Place | None:
        """Return a token for another session, if fewer than ``size`` sessions have a token."""
        while len(self.places) < size:
            place = Place()
            try:
                self.places.add(ref(place, self.places.discard))
                if len(self.places) <= size:
                    return place
                # Several threads added tokens concurrently, so there are too many: each of these threads tries again.
                self.places.discard(ref(place))
            except BaseException:  # a traceback may keep the token
                self.places.discard(ref(place))
                raise
        return None

    def free(self, place: Any) -> None:
        """Stop counting a session, so that another may be opened."""
        self.places.discard(ref(place))
        with suppress(IndexError):
            self.waiting[0].event.set()

    def stir(self) -> None:
        """Make all waiters check whether there is room for another session."""
        for waiter in list(self.waiting):
            waiter.event.set()

    def hand_over(self) -> None:
        """Hand free sessions to the waiters, in turn."""
        while self.idle and self.waiting:
            try:
                waiter = self.waiting.popleft()
            except IndexError:
                return
            try:
                waiter.held.append(self.idle.pop())
            except IndexError:
                self.waiting.appendleft(waiter)
                continue
            waiter.event.set()
            if waiter.over:
                self.withdraw(waiter)

    def withdraw(self, waiter: Waiter) -> None:
        """Stop waiting, and pass on a session that was handed over meanwhile."""
        waiter.over = True
        with suppress(ValueError):
            self.waiting.remove(waiter)
        with suppress(IndexError):
            self.idle.append(waiter.held.pop())
            self.hand_over()


def pop_idle(sessions: list[Session]) -> Session | None:
    """Take a session out of the idle sessions, and return it; None if there is none."""
    try:
        return sessions.pop()
    except IndexError:
        return None


async def end_sessions(sessions: Sessions) -> None:
    """Close idle sessions because the event loop ends; sessions in use are closed when they are given back."""
    sessions.over = True
    await close_idle_sessions(sessions)


async def close_idle_sessions(sessions: Sessions) -> None:
    """Close the idle connections; if closing one takes long, break off the remaining ones."""
    loan = Loan()
    began = time.monotonic()
    while sessions.idle:
        with suppress(IndexError):
            loan.append(sessions.idle.pop())
            if time.monotonic() - began > CLOSING:
                loan.abort()
            await give_up(loan)


async def give_up(loan: Loan) -> None:
    """Close the session of a loan, so that the pool can open another session."""
    session = loan.session
    session.pool.free(session.place)
    await discard(session)
    loan.clear()
