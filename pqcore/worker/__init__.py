"""The process that runs tasks: `Worker`, and several of them under a `Supervisor`."""

from pqcore.worker.worker import Worker

__all__ = ["Worker"]
