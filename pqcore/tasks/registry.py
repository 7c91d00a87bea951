"""The registry of tasks: the functions that queues declare, and the lookup of the function that a row names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pqcore.errors import ConfigurationError, UnknownTask
from pqcore.tasks.conventions import OF_PQ, Conventions, called_by, refuse_generator
from pqcore.tasks.declaring import Task, TaskOptions

if TYPE_CHECKING:
    from pqcore.tasks.periodic import Periodic

logger = logging.getLogger("pqcore.tasks")


PATH_ATTRIBUTE = "_path"
"""The attribute in which pq, too, stores the path of a declared function."""


class TaskDeclarations:
    """The tasks that queues declare; the blocking and the asynchronous queue share this class.

    Attributes:
        handler_registry: A dict of paths to functions, shared by all queues, as in pq.
        trusted_modules: Names of modules whose functions rows may name without a declaration.
        conventions: The conventions by which tasks of this class are declared and called.
        performs_taken: Whether `Queue.perform` is expected to perform jobs that `get` took, so that their follow-ups
            wait for it. True after a task was declared on the queue.
        declares_tasks: Whether a task is declared on this queue.
    """

    handler_registry: ClassVar[dict[str, Callable[..., Any]]] = {}
    trusted_modules: tuple[str, ...] = ()
    conventions: ClassVar[Conventions] = OF_PQ
    performs_taken: bool = False
    declares_tasks: bool = False
    logger = logger
    _tasks: ClassVar[dict[str, Task]] = {}
    _queues_of_tasks: ClassVar[set[str | None]] = set()  # None stands for any queue
    _periodics: list[Periodic] | None = None

    @property
    def periodics(self) -> list[Periodic]:
        """Return the periodic tasks of this queue."""
        if self._periodics is None:
            self._periodics = []
        return self._periodics

    def add_periodic(self, periodic: Periodic) -> None:
        """Add a periodic task.

        Raises:
            ConfigurationError: The queue has a periodic task of this name.
        """
        if any(other.name == periodic.name for other in self.periodics):
            msg = f"a periodic task {periodic.name!r} exists already: give this one another name"
            raise ConfigurationError(msg)
        self.periodics.append(periodic)

    def declare(
        self,
        function: Callable[..., Any],
        options: TaskOptions,
        name: str | None = None,
        aliases: Sequence[str] = (),
        queues: Iterable[str] | None = None,
    ) -> Task:
        """Declare a function, and mark it with its path as pq does; a second declaration replaces the first.

        Args:
            function: The function.
            options: The options with which the task is put and run.
            name: The path in rows; None for ``module.qualname``.
            aliases: Other paths of the task in rows.
            queues: The names of the queues with jobs of the task; None for this queue, or any if it has no name.

        Raises:
            ConfigurationError: The function has ``yield``, so that a call runs nothing; or it has no name that a worker
                can find; or the annotation of its first parameter cannot be read, so that the parameter may be a job;
                or a name is invalid, or belongs to another function.
        """
        if isinstance(declared := getattr(function, "task", None), Task):
            function = declared.function
        location = _path_of(function)
        path = location if name is None else name
        refuse_generator(function, path)
        paths = _checked_paths(path, aliases)
        for one in paths:
            if (other := self._tasks.get(one)) is not None and not _is_same(other.function, function):
                msg = (
                    f"two functions are declared under the name {one!r}: {_path_of(other.function)} and {location};"
                    " give one of them another name"
                )
                raise ConfigurationError(msg)
        setattr(function, PATH_ATTRIBUTE, path)
        task = Task(path, function, options, self.conventions.first(function, path))
        self.performs_taken = self.declares_tasks = True
        self.add_queues_of_tasks([getattr(self, "name", None)] if queues is None else queues)
        for one in paths:
            self.handler_registry[one] = function
            self._tasks[one] = task
        return task

    @classmethod
    def add_queues_of_tasks(cls, names: Iterable[str | None]) -> None:
        """Record names of queues that may have jobs of the declared tasks; see `queues_of_tasks`.

        Args:
            names: The names of the queues; None among them stands for any queue.
        """
        cls._queues_of_tasks.update(names)

    @classmethod
    def declared_task(cls, path: str) -> Task | None:
        """Return the task that a queue has declared under a path; None if no queue has declared one."""
        return cls._tasks.get(path)

    def find_task(self, path: str) -> Task:
        """Return the task that a row names.

        Raises:
            UnknownTask: The function is not declared, and its module is not trusted.
        """
        function = self.handler_registry.get(path)
        if function is None and (path in self._tasks or self._trusts(path)):
            from pydoc import locate  # this import takes milliseconds, and few programs need it

            found = locate(path)
            if callable(found):
                # If the import has declared the function, the registry has it now. Otherwise the name may refer to a
                # decorated function, which has the function itself in `__wrapped__`.
                function = self.handler_registry.setdefault(path, getattr(found, "__wrapped__", found))
        if function is None:
            msg = f"unknown function {path!r}: declare it with @queue.task, or list its module in trusted_modules"
            raise UnknownTask(msg)
        declared = self._tasks.get(path)
        if declared is None:
            return Task(path, function, first=self.conventions.first(function, path))
        return declared if declared.function is function else dataclasses.replace(declared, function=function)

    def known_tasks(self) -> list[str]:
        """Return the paths of the functions that `find_task` finds.

        ``module.*`` stands for the functions of a trusted module.
        """
        return sorted({*self.handler_registry, *self._tasks, *(f"{module}.*" for module in self.trusted_modules)})

    def queues_of_tasks(self) -> Sequence[str]:
        """Return the names of the queues on which tasks are declared, if this queue is not one of them.

        Returns:
            The names, in order. The list is empty if a task is declared on this queue, if the queue may have jobs of
            any module or task, or if no task is declared at all.
        """
        names = {name for name in self._queues_of_tasks if name is not None}
        if self.trusted_modules or len(names) < len(self._queues_of_tasks) or getattr(self, "name", None) in names:
            return ()
        return sorted(names)

    def most_crashes(self) -> int:
        """Return the largest ``max_crashes`` of all declared tasks; the default if no task is declared."""
        return max((task.options.max_crashes for task in self._tasks.values()), default=TaskOptions.max_crashes)

    @classmethod
    def any_runs_in_process(cls) -> bool:
        """Return whether a declared task says that it runs in a process of its own."""
        return any(task.options.run_in == "process" for task in cls._tasks.values())

    def _trusts(self, path: str) -> bool:
        return any(path.startswith(module + ".") for module in self.trusted_modules)


def _checked_paths(path: str, aliases: Sequence[str]) -> list[str]:
    """Return the names of a task: its path, and then its aliases."""
    if isinstance(aliases, str) or not isinstance(aliases, Iterable):
        msg = f"aliases is {aliases!r}; give a list of names"
        raise ConfigurationError(msg)
    paths = [path, *aliases]
    for one in paths:
        if not isinstance(one, str) or not one.strip() or "\0" in one:
            msg = f"the name of a task is {one!r}; give text that is not empty"
            raise ConfigurationError(msg)
    return paths


def _is_same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Return whether two objects are one function, declared twice: its module was reloaded, or run as a program."""
    if one is other or _path_of(one) == _path_of(other):
        return True
    mine, others = (getattr(called_by(function), "__code__", None) for function in (one, other))
    return (
        mine is not None
        and others is not None
        and (mine.co_filename, mine.co_name) == (others.co_filename, others.co_name)
        and "__main__" in (one.__module__, other.__module__)
    )


def _path_of(function: Callable[..., Any]) -> str:
    try:
        return f"{function.__module__}.{function.__qualname__}"
    except AttributeError:
        msg = (
            f"a {type(function).__qualname__} cannot be a task, because workers find tasks by name: {function!r};"
            " declare a function that calls it"
        )
        raise ConfigurationError(msg) from None
