"""The amount of measurement: two minutes, a quarter of an hour, or any time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """The sizes of a run.

    Attributes:
        name: The name on the command line.
        rounds: The number of rounds; in each, every contender of a workload has one turn.
        seconds: The longest duration of one turn.
        cell: Seconds for one target of one backend.
        batch: The number of jobs in one ``put_many``.
        worked: The number of jobs in one turn of a worker; fewer, if the jobs are larger.
        paired_run: The number of jobs in one turn of a worker's target.
        backlog: The number of jobs that wait before a turn of takers.
        queues: The numbers of queues.
        consumers: The numbers of consumers.
        later: The number of jobs that are scheduled for tomorrow.
        finished: The number of finished rows in the table.
        horizon: The number of jobs taken while an old snapshot is held.
        window: The number of first and last jobs that are compared.
        patience: Seconds that the horizon may take.
        everywhere: Whether to measure server-related workloads over every backend.
        soak: The length of the soak test, in seconds.
        crowds: The lengths of a short and of a long backlog of one tenant.
        keys: The number of limits of such a backlog, if there are many.
        workers: The number of workers, if there are many.
        samples: The number of jobs of another tenant.
        limited: The number of empty jobs under a limit.
        limited_horizon: Seconds for which jobs under a limit run while an old snapshot is held.
        shares: Seconds for which tenants share a worker.
        held: The number of jobs that one process puts or takes while its memory is measured.
        large: The number of jobs of 100 KB, for the same measurement.
        waited: The number of queues that are waited on, for the same measurement.
        pace: The number of jobs per second in the soak test.
    """

    name: str
    rounds: int
    seconds: float
    cell: float
    batch: int
    worked: int
    paired_run: int
    backlog: int
    queues: tuple[int, ...]
    consumers: tuple[int, ...]
    later: int
    finished: int
    horizon: int
    window: int
    patience: float
    everywhere: bool
    soak: float
    crowds: tuple[int, int]
    keys: int
    workers: int
    samples: int
    limited: int
    limited_horizon: float
    shares: float
    held: int
    large: int
    waited: int
    pace: float = 200.0


QUICK = Scale(
    name="quick",
    rounds=2,
    seconds=0.15,
    cell=1.0,
    batch=2_000,
    worked=1_000,
    paired_run=2_000,
    backlog=3_000,
    queues=(1, 1_000),
    consumers=(1, 4, 16),
    later=50_000,
    finished=50_000,
    horizon=5_000,
    window=500,
    patience=8.0,
    everywhere=False,
    soak=2.0,
    crowds=(300, 3_000),
    keys=300,
    workers=4,
    samples=10,
    limited=300,
    limited_horizon=3.0,
    shares=3.0,
    held=50_000,
    large=300,
    waited=1_000,
)
DEFAULT = Scale(
    name="default",
    rounds=3,
    seconds=0.35,
    cell=5.0,
    batch=5_000,
    worked=5_000,
    paired_run=10_000,
    backlog=8_000,
    queues=(1, 100, 10_000),
    consumers=(1, 2, 4, 8, 16),
    later=1_000_000,
    finished=300_000,
    horizon=50_000,
    window=5_000,
    patience=30.0,
    everywhere=False,
    soak=6.0,
    crowds=(1_000, 10_000),
    keys=1_000,
    workers=8,
    samples=40,
    limited=2_000,
    limited_horizon=20.0,
    shares=10.0,
    held=1_000_000,
    large=2_000,
    waited=10_000,
)
FULL = Scale(
    name="full",
    rounds=5,
    seconds=2.0,
    cell=30.0,
    batch=5_000,
    worked=30_000,
    paired_run=20_000,
    backlog=40_000,
    queues=(1, 100, 10_000),
    consumers=(1, 2, 4, 8, 16),
    later=1_000_000,
    finished=10_000_000,
    horizon=50_000,
    window=5_000,
    patience=600.0,
    everywhere=True,
    soak=60.0,
    crowds=(1_000, 1_000_000),
    keys=10_000,
    workers=8,
    samples=200,
    limited=2_000,
    limited_horizon=600.0,
    shares=10.0,
    held=1_000_000,
    large=2_000,
    waited=10_000,
)
SCALES = {scale.name: scale for scale in (QUICK, DEFAULT, FULL)}
