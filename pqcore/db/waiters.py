"""The waiters of a process, or of one of its event loops, by their channels."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from threading import Lock

from pqcore.db import channels
from pqcore.db.channels import Channels
from pqcore.db.runtime import Event, Runtime
from pqcore.db.shared_poll import Look, SharedLook, Sharer


class Waiters(Channels):
    """The waiters by channel, including those on channels that are not registered.

    Args:
        runtime: The runtime, which waits.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._forget()
        self._runtime = runtime
        self._lock = Lock()  # protects the attributes below
        self._waiters: dict[str, set[Event]] = {}
        # The unregistered channels, each with the time of its last `snapshot`.
        self._paused: dict[str, float] = {}
        # The channels of `_paused` that were woken after their last `snapshot`.
        self._woken: set[str] = set()
        # The time when channels without waiters were last forgotten.
        self._trimmed = 0.0
        self._shared = SharedLook(self.wake_waiters)

    @property
    def crowd(self) -> int:
        """Return the number of channels with waiters."""
        return len(self._waiters)

    def snapshot(self, channel: str) -> int | None:
        """See `Channels.snapshot`. A later `wake` has an effect even if the channel is not registered."""
        ticket = super().snapshot(channel)
        if ticket is None:
            now = self._paused[channel] = time.monotonic()
            if len(self._paused) > channels.MOST and now - self._trimmed > channels.SLICE:
                self._trim(now)
        return ticket

    def _trim(self, now: float) -> None:
        """Forget channels on which nobody waits any more."""
        self._trimmed = now
        for channel in [name for name, when in list(self._paused.items()) if when < now - channels.LINGER]:
            if channel not in self._waiters:
                self._paused.pop(channel, None)
                self._woken.discard(channel)

    async def pause(self, channel: str, seconds: float) -> None:
        """Wait on a channel that is not registered: for ``seconds``, or until this process wakes the channel."""
        event = self._runtime.event()
        await self._pause_on(channel, event, partial(event.wait, seconds))

    async def share(self, channel: str, queue: str, seconds: float, look: Look) -> None:
        """Wait on a channel that is not registered, as `pause` does; a shared look that finds a job ends the wait, too.

        Args:
            channel: The queue's channel.
            queue: The queue's name.
            seconds: The largest number of seconds to wait.
            look: The function that looks for jobs, if this waiter does that for all waiters.
        """
        sharer = Sharer(queue, channel, self._runtime.event)
        await self._pause_on(channel, sharer, partial(self._shared.wait, sharer, seconds, look))

    async def _pause_on(self, channel: str, event: Event, pause: Callable[[], Awaitable[object]]) -> None:
        self._add(channel, event)
        try:
            if channel in self._woken:  # woken since the ticket was drawn
                self._woken.discard(channel)
            else:
                await pause()
        finally:
            self._remove(channel, event)

    def _add(self, channel: str, event: Event) -> None:
        with self._lock:
            self._waiters.setdefault(channel, set()).add(event)

    def _remove(self, channel: str, event: Event) -> None:
        with self._lock:
            if waiters := self._waiters.get(channel):
                waiters.discard(event)
                if not waiters:
                    del self._waiters[channel]

    def wake_waiters(self, channel: str) -> None:
        super().wake_waiters(channel)
        with self._lock:
            events = list(self._waiters.get(channel, ()))
            if not events and channel in self._paused:
                self._woken.add(channel)
        for event in events:
            event.set()

    def wake(self, channel: str) -> None:
        """Wake the waiters on a channel; if an unregistered channel has no waiter, the next waiter does not wait."""
        self._paused.setdefault(channel, time.monotonic())
        self.wake_waiters(channel)
