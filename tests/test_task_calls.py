"""Calls of tasks: arguments and options are checked before a put, and the error says what to write instead."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

import pqcore.tasks
from pqcore import PQ, AsyncPQ, Job, Queue
from pqcore.errors import LONGEST_MESSAGE, ConfigurationError, InvalidCall, InvalidTimeSpec, LeaseLost
from pqcore.tasks import TaskDeclarations, TaskOptions
from pqcore.worker import Worker

ROOT = Path(__file__).parent.parent
TYPED = ROOT / "tests/typed_calls.py"


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn) as opened:
        opened.create()
        yield opened


@pytest.fixture
def queue(pq: PQ) -> Any:
    return pq["calls"]


@pytest.fixture(autouse=True)
def _declarations() -> Iterator[None]:
    """Remove what a test declares."""
    registries: list[dict[str, Any]] = [TaskDeclarations.handler_registry, TaskDeclarations._tasks]
    before = [dict(registry) for registry in registries]
    yield
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)


def ship(order: int, fast: bool = False) -> None: ...


def double(number: int) -> int:
    return 2 * number


# Arguments


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        ((), {}, "missing a required argument: 'order'"),
        ((1, True, 3), {}, "too many positional arguments"),
        ((1,), {"nonsense": 1}, "unexpected keyword argument 'nonsense'"),
        ((1,), {"schedule_at": "1h"}, "write _schedule_at=..., or options(schedule_at=...)(...)"),
        ((1,), {"priority": 5}, "write _priority=..., or options(priority=...)(...)"),
        ((1,), {"connection": None}, "write _connection=..., or options(connection=...)(...)"),
        ((1,), {"_max_retris": 3}, "did you mean _max_retries?"),
        ((1,), {"_shedule_at": "1h"}, "did you mean _schedule_at?"),
    ],
)
def test_task_call_with_wrong_arguments_is_refused_and_puts_nothing(
    queue: Any, args: tuple[Any, ...], kwargs: dict[str, Any], told: str
) -> None:
    task = queue.task()(ship)
    for call in (task, task.call, task.options(priority=1)):
        with pytest.raises(InvalidCall, match=re.escape(told)) as refused:
            call(*args, **kwargs)
        assert "test_task_calls.ship cannot be called like this" in str(refused.value)
        assert isinstance(refused.value, TypeError)
    assert queue.stats().ready == queue.stats().scheduled == 0


def test_task_call_error_names_the_parameters_of_the_function(queue: Any) -> None:
    def send(job: Job, to: str, *, urgent: bool = False) -> None: ...

    with pytest.raises(InvalidCall, match=re.escape("it takes (to: 'str', *, urgent: 'bool' = False)")):
        queue.task()(send)()


def test_task_call_of_pqs_conventions_is_checked_after_the_id(dsn: str) -> None:
    with pqcore.tasks.PQ(dsn) as opened:
        opened.create()
        task = opened["calls"].task()(lambda job_id, kind: None)
        task("apple")
        with pytest.raises(InvalidCall, match="missing a required argument: 'kind'"):
            task()
        assert opened["calls"].stats().ready == 1


@in_loop
async def test_async_task_call_with_wrong_arguments_is_refused(dsn: str) -> None:
    async with AsyncPQ(dsn) as opened:
        await opened.create()
        task: Any = opened["calls"].task()(ship)
        with pytest.raises(InvalidCall, match="nonsense"):
            await task(1, nonsense=1)
        await task.options(schedule_at="1h")(1)
        assert (await opened["calls"].stats()).scheduled == 1


def test_task_of_a_decorated_function_takes_the_arguments_of_the_decorator(queue: Any) -> None:
    def with_database(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> None:
            function("database", *args, **kwargs)

        return call

    @with_database
    def store(database: str, number: int) -> None: ...

    queue.task()(store)(5)
    assert queue.stats().ready == 1


@pytest.mark.parametrize(
    "function", [partial(ship, fast=True), type("Sends", (), {"__call__": lambda self, order: order})()]
)
def test_task_call_of_any_callable_is_checked(queue: Any, function: Any) -> None:
    function.__module__, function.__qualname__ = __name__, "callable"
    task = queue.task()(function)
    task(1)
    with pytest.raises(InvalidCall):
        task()
    assert queue.stats().ready == 1


def test_task_call_of_a_function_that_takes_anything_refuses_a_misspelled_option(queue: Any) -> None:
    task = queue.task()(lambda **fields: None)
    task(schedule="weekly", _id=5)  # an argument of the function, because no option has this name
    with pytest.raises(InvalidCall, match="did you mean _schedule_at"):
        task(_schedul_at="1h")
    assert queue.stats().ready == 1


def test_periodic_task_of_wrong_arguments_is_refused_where_it_is_declared(queue: Any) -> None:
    with pytest.raises(InvalidCall, match="missing a required argument"):
        queue.periodic("0 3 * * *")(queue.task()(ship))
    queue.periodic("0 3 * * *", args=(1,))(queue.task()(ship))


# Options that share no namespace with arguments


def test_task_options_apply_only_to_calls_of_the_returned_task(queue: Any) -> None:
    task = queue.task()(lambda timeout: None)
    later = task.options(schedule_at="1h", timeout=9, headers={"trace": 1})
    later("an argument")
    later.options(schedule_at=None)("an argument")
    task("an argument")
    assert (queue.stats().ready, queue.stats().scheduled) == (2, 1)
    first, second = queue.get_many(2)
    assert (first.data["args"], first.headers["trace"], first.headers["run"]) == (["an argument"], 1, {"timeout": 9.0})
    assert second.raw_headers is None


def test_task_options_put_in_the_callers_transaction(queue: Any, dsn: str) -> None:
    import psycopg

    task = queue.task()(ship)
    with psycopg.connect(dsn) as connection:
        task.options(connection=connection)(1)
        connection.rollback()
        assert queue.stats().ready == 0
        task.options(connection=connection)(1)
    assert queue.stats().ready == 1


def test_task_options_of_bad_values_are_refused_before_the_call(queue: Any) -> None:
    task = queue.task()(ship)
    with pytest.raises(InvalidTimeSpec):
        task.options(schedule_at="soon")
    with pytest.raises(ConfigurationError):
        task.options(max_retries=-1)
    with pytest.raises(TypeError):
        task.options(run_in="process")


def test_retry_in_may_be_a_part_of_a_second(queue: Any) -> None:
    assert TaskOptions(retry_in="0.5s").retry_in == "0.5s"
    queue.task(retry_in="0.5s")(ship)(1)
    assert queue.get().data["retry_in"] == 0.5  # as pq's workers can read it


# Names


def test_task_name_stands_in_the_row_and_finds_the_function(queue: Any) -> None:
    task = queue.task(name="ship", aliases=["shop.old.ship"])(ship)
    task(1)
    assert queue.peek()[0].data["function"] == task.task.path == "ship"
    assert queue.find_task("ship").function is queue.find_task("shop.old.ship").function is ship
    assert {"ship", "shop.old.ship"} <= set(queue.known_tasks())


@pytest.mark.parametrize("run_in", ["thread", "process"])
@in_loop
async def test_worker_runs_a_task_by_its_name_and_its_aliases(queue: Any, run_in: Any) -> None:
    task = queue.task(name="double", aliases=["before.double"], keep_result="1h", run_in=run_in)(double)
    first = task(2)
    second = queue.put({**queue.peek()[0].data, "function": "before.double"})
    await Worker(queue, burst=True).run()
    assert first.result() == 4
    assert queue.status(second) == "done"


def test_task_name_of_another_function_is_refused(queue: Any) -> None:
    queue.task(name="ship")(ship)
    queue.task(name="ship")(ship)  # as when a module is reloaded
    with pytest.raises(ConfigurationError, match="two functions are declared under the name 'ship'"):
        queue.task(name="ship")(lambda order: None)
    with pytest.raises(ConfigurationError, match="two functions"):
        queue.task(aliases=["ship"])(lambda order: None)


@pytest.mark.parametrize(
    "names", [{"name": ""}, {"name": 5}, {"aliases": "ship"}, {"aliases": [None]}, {"name": "a\0"}]
)
def test_task_name_that_is_invalid_is_refused(queue: Any, names: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        queue.task(**names)(ship)


# Errors that name the next step


@pytest.mark.parametrize(
    ("name", "told"), [("delay", r"ship\(\.\.\.\)"), ("apply_async", r"ship\.options"), ("s", r"ship\.call")]
)
def test_task_attribute_of_another_library_raises_an_error_with_advice(queue: Any, name: str, told: str) -> None:
    with pytest.raises(AttributeError, match=told):
        getattr(queue.task()(ship), name)
    assert not hasattr(queue.task()(ship), "nothing")


def test_chain_of_calls_that_were_put_is_refused_with_the_reason(queue: Any) -> None:
    task = queue.task()(ship)
    number = task(1)
    for put in (queue.chain, queue.batch, queue.put_calls, lambda *calls: queue.batch(then=calls[0])):
        with pytest.raises(InvalidCall, match=rf"write task\.call\(\.\.\.\).*job {int(number)} was put already"):
            put(number)
    assert queue.stats().ready == 1


def test_list_of_calls_is_refused_with_advice_and_puts_nothing(queue: Any) -> None:
    task = queue.task()(ship)
    calls = [task.call(number) for number in range(500)]
    for name in ("chain", "batch", "put_calls"):
        with pytest.raises(InvalidCall, match=rf"was given a list: write {name}\(\*calls\)"):
            getattr(queue, name)(calls)
    assert queue.stats().ready == 0


def test_call_shows_its_task_and_arguments(queue: Any) -> None:
    assert repr(queue.task(name="ship")(ship).call(1)) == "<call of ship(1) for queue 'calls'>"


def test_message_about_a_large_value_keeps_its_beginning_and_its_end(queue: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        queue.put(1, limits=["x"] * 100_000)
    message = str(refused.value)
    assert len(message) <= LONGEST_MESSAGE
    assert message == refused.value.args[0]
    assert message.startswith("limits is ['x', ")
    assert "characters left out" in message


@in_loop
async def test_async_chain_of_calls_without_await_is_refused_and_puts_nothing(dsn: str) -> None:
    async with AsyncPQ(dsn) as opened:
        await opened.create()
        task: Any = opened["calls"].task()(ship)
        with pytest.raises(InvalidCall, match=r"write task\.call"):
            await opened["calls"].chain(task(1))
        assert (await opened["calls"].stats()).ready == 0


@in_loop
async def test_queue_in_the_wrong_kind_of_with_raises_an_error_with_advice(pq: PQ, dsn: str) -> None:
    async with AsyncPQ(dsn) as opened:
        with pytest.raises(InvalidCall, match="async with queue"), opened["calls"]:  # type: ignore[attr-defined]
            pass
        with pytest.raises(InvalidCall, match="async with pq"), opened:  # type: ignore[attr-defined]
            pass
    with pytest.raises(InvalidCall, match="with queue"):
        async with pq["calls"]:  # type: ignore[attr-defined]
            pass
    with pytest.raises(InvalidCall, match="with pq"):
        async with pq:  # type: ignore[attr-defined]
            pass


def test_end_of_a_job_that_get_took_tells_of_lease(queue: Any) -> None:
    queue.put(1)
    job = queue.get()
    for method, arguments in (("ack", ()), ("nack", ()), ("extend", (60,))):
        with pytest.raises(LeaseLost, match=rf"job {job.id} has no lease: .* take jobs .* with lease\(\)"):
            getattr(job, method)(*arguments)


# Types


def test_type_checker_refuses_wrong_calls_and_no_others() -> None:
    wrong = {number for number, line in enumerate(TYPED.read_text().splitlines(), 1) if line.endswith("# wrong")}
    command = (sys.executable, "-m", "mypy", "--no-error-summary", TYPED.relative_to(ROOT))
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    told = {int(line) for line in re.findall(r"typed_calls\.py:(\d+): error:", said)}
    assert told == wrong, said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_retrys": 2}, "not an option of a task: 'max_retrys'; did you mean 'max_retries'?"),
        ({"cron": "* * * * *"}, r"'cron'; put a task at each tick with queue.periodic"),
        ({"nonsense": 1}, "'nonsense'; the options are "),
    ],
)
def test_unknown_option_of_a_declaration_is_refused_with_advice(queue: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidCall, match=re.escape(told)):
        queue.task(**options)(ship)


@pytest.mark.parametrize("options", [{"limits": ["key"]}, {"limits": 5}, {"aliases": 5}])
def test_option_of_another_kind_is_refused_at_the_declaration(queue: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        queue.task(**options)(ship)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"retentoin": "delete"}, "not an option of a queue: 'retentoin'; did you mean 'retention'?"),
        ({"lease": 60}, "not an option of a queue: 'lease'; it is a method"),
        ({"nonsense": 1}, "not an option of a queue: 'nonsense'; the options are timeout, "),
        ({"accept": 5}, "accept is 5"),
    ],
)
def test_unknown_option_of_a_queue_is_refused_with_advice(dsn: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        PQ(dsn, **options)
    with PQ(dsn) as pq, pytest.raises(ConfigurationError, match=re.escape(told)):
        pq.queue("q", **options)


def test_subclass_of_a_queue_has_options_of_its_own(dsn: str) -> None:
    class Shop(Queue):
        currency = "EUR"

    with PQ(dsn, queue_class=Shop, currency="CHF", owner="Ann") as pq:
        assert (pq["q"].currency, pq["q"].owner) == ("CHF", "Ann")  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="did you mean 'retention'"):
        PQ(dsn, queue_class=Shop, retentoin="keep")


@pytest.mark.parametrize("name", ["backend", "dialect"])
def test_name_of_a_plugin_that_is_no_text_is_refused(dsn: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name} is \['x'\]; give the name of a {name}"):
        PQ(dsn, **{name: ["x"]})  # type: ignore[arg-type]
