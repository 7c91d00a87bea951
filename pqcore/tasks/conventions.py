"""The conventions by which a class of queues declares and calls tasks: `pqcore.PQ`'s own, or the ones of pq 1.9.1."""

from __future__ import annotations

import builtins
import functools
import inspect
import re
import sys
import types
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ForwardRef, Literal, TypeAlias, Union, get_args, get_origin

from pqcore.argument_hints import instead_of_option
from pqcore.errors import ConfigurationError, InvalidCall
from pqcore.job import AsyncJob, BaseJob, Job
from pqcore.tasks.retry import Exponential, RetryPolicy

First: TypeAlias = Literal["id", "job", "nothing"]
"""The first argument of a function, before the arguments of the call: the job's id, the job, or nothing."""


class _ByConvention:
    """The default of an option whose value the queue's conventions decide."""

    def __repr__(self) -> str:
        return "BY_CONVENTION"


BY_CONVENTION: Any = _ByConvention()
"""The marker for an option that was not given."""


@dataclass(frozen=True)
class Conventions:
    """The rules for declaring and calling tasks.

    Attributes:
        always_id: Whether a function always gets the job's id first. Otherwise the function gets the job first if its
            first parameter is annotated as a job; if not, it gets only the arguments of the call.
        max_retries: The default number of retries after exceptions.
        retry: The retry policy of a task whose declaration has neither a policy nor a fixed pause; None for pauses of
            30 seconds.
    """

    always_id: bool
    max_retries: int
    retry: RetryPolicy | None

    def first(self, function: Callable[..., Any], path: str) -> First:
        """Return the argument that a function gets before the arguments of the call.

        Args:
            function: The function.
            path: The function's path, for the message.

        Raises:
            ConfigurationError: The annotation of the first parameter cannot be read, so the parameter may be a job.
        """
        if self.always_id:
            return "id"
        return "job" if _takes_job(function, path) else "nothing"


FRONT_DOOR = Conventions(always_id=False, max_retries=3, retry=Exponential())
"""The conventions of `pqcore.PQ` and `pqcore.AsyncPQ`."""
OF_PQ = Conventions(always_id=True, max_retries=0, retry=None)
"""The conventions of `pqcore.tasks.PQ` and `pqcore.tasks.AsyncPQ`: those of pq 1.9.1."""


def _takes_job(function: Callable[..., Any], path: str) -> bool:
    """Return whether the first parameter of a function is annotated as a job."""
    try:
        parameters = list(signature_of(function).parameters.values())
    except (TypeError, ValueError):  # the function is not written in Python
        return False
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        return False
    annotation = parameters[0].annotation
    return annotation is not inspect.Parameter.empty and _is_job(annotation, _names_of(function), path)


def signature_of(function: Callable[..., Any], *, follow_wrapped: bool = True) -> inspect.Signature:
    """Return the signature of a function.

    Args:
        function: The function.
        follow_wrapped: Whether to return the signature of the function inside a decorated function. The decorator may
            pass more arguments to this function than it gets.

    Raises:
        TypeError, ValueError: The function's signature cannot be read, because it is not written in Python.
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        # Names imported only under TYPE_CHECKING stay unresolved, and raise nothing.
        return inspect.signature(function, follow_wrapped=follow_wrapped, annotation_format=Format.FORWARDREF)
    return inspect.signature(function, follow_wrapped=follow_wrapped)


def _is_job(annotation: Any, names: Mapping[str, Any], path: str) -> bool:
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, {"__builtins__": {}}, names)  # noqa: S307 - the module's own code, as typing does
        except Exception as exc:
            if not re.search(r"\b(Async)?Job\b", annotation):
                return False
            msg = (
                f"{path}: the annotation {annotation!r} of its first parameter cannot be read, so pqcore does"
                f" not know whether to pass the job: {exc}; import the name at run time, or write 'pqcore.Job'"
            )
            raise ConfigurationError(msg) from exc
        return _is_job(annotation, names, path)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_job(get_args(annotation)[0], names, path)
    if origin in (Union, types.UnionType):
        return any(_is_job(part, names, path) for part in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, BaseJob)


def _names_of(function: Any) -> Mapping[str, Any]:
    """Return the names that an annotation may use.

    The names of pqcore's own classes are included, because a module may import these classes only for type checkers.
    """
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif inspect.ismethod(function):
            function = function.__func__
        elif not inspect.isroutine(function) and not inspect.isclass(function):
            function = type(function).__call__
        else:
            break
    closure = {}
    if inspect.isfunction(function):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # the cell is empty, as for the name of a function that is being decorated
                closure[name] = cell.cell_contents
    ours = {"Job": Job, "AsyncJob": AsyncJob, "pqcore": sys.modules["pqcore"]}
    return ChainMap(closure, getattr(function, "__globals__", {}), vars(builtins), ours)


def called_by(function: Callable[..., Any]) -> Any:
    """Return the function inside ``functools.partial`` objects and objects with ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__


def refuse_generator(function: Callable[..., Any], path: str) -> None:
    """Raise for a function with ``yield``, because calling such a function runs nothing.

    Args:
        function: The function.
        path: The function's name, for the message.

    Raises:
        ConfigurationError: The function is a generator function or an asynchronous generator function.
    """
    within = called_by(function)
    if inspect.isgeneratorfunction(within) or inspect.isasyncgenfunction(within):
        kind = "an asynchronous generator function" if inspect.isasyncgenfunction(within) else "a generator function"
        msg = (
            f"{path} is {kind}, and cannot be a task: a call would not run its body;"
            " remove its yield, or declare a function that iterates over it"
        )
        raise ConfigurationError(msg)


def refuse_unknown(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise if a declaration has an option that no task has.

    Args:
        options: The names of the given options.
        known: The names of a task's options.

    Raises:
        InvalidCall: An option is unknown.
    """
    for name in set(options) - set(known):
        if name in ("cron", "every", "schedule"):
            advice = "put a task at each tick with queue.periodic(cron)"
        else:
            advice = instead_of_option(name, sorted(known))
        msg = f"not an option of a task: {name!r}; {advice}"
        raise InvalidCall(msg)
