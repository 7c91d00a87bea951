"""The commands ``pqcore backends``, ``plugins`` and ``conformance``: installed plugins, and whether they work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from pqcore.backend import BackendSpec, Capability
from pqcore.backend_registry import BACKENDS, importable
from pqcore.cli.errors import CommandFailed, UsageError, remember
from pqcore.cli.options import json_option
from pqcore.cli.output import emit, printable, table, write
from pqcore.db.dsn import redact
from pqcore.errors import ConfigurationError, PluginError, PQError
from pqcore.instruments import GROUP as INSTRUMENTS
from pqcore.plugin_loader import PLUGINS, check_api
from pqcore.plugins import SERIALIZERS, plugins
from pqcore.serializers.protocol import is_wrapper

GROUPS = (BACKENDS, SERIALIZERS, INSTRUMENTS, PLUGINS)
"""The entry point groups, as in docs/plugins.md."""


def _driver(spec: BackendSpec) -> dict[str, str | None]:
    """Return the versions of the modules that a backend needs; None for modules that are not installed."""
    owners = importlib.metadata.packages_distributions()
    found: dict[str, str | None] = {}
    for module in spec.requires:
        if not importable(module):
            found[module] = None
            continue
        found[module] = "unknown"
        with suppress(importlib.metadata.PackageNotFoundError, IndexError):  # no package installed the module
            found[module] = importlib.metadata.version(owners.get(module.partition(".")[0], [])[0])
    return found


def _why_not(spec: BackendSpec) -> str | None:
    """Return why a backend cannot be used; None if it can."""
    try:
        plugins.make(spec, prepared=True)
    except PQError as exc:
        return str(exc)
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever its constructor raises, it is reported
        return f"{type(exc).__name__}: {exc}"
    return None


def _backend(spec: BackendSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "mode": spec.mode,
        "drivers": _driver(spec),
        "usable": (why := _why_not(spec)) is None,
        "why_not": why,
        "capabilities": sorted(cap.name for cap in spec.capabilities),
        "missing": {cap.name: reason for cap, reason in spec.missing.items()},
        "missing_on_adopted": {cap.name: reason for cap, reason in spec.missing_on_adopted.items()},
        "schemes": list(spec.schemes),
    }


def _broken_backends() -> list[tuple[str, PluginError]]:
    faults = {name: plugins.fault(BACKENDS, name) for name in plugins.backend_names()}
    return [(name, error) for name, error in faults.items() if error is not None]


@click.command()
@json_option
def backends(as_json: bool) -> None:
    """List the backends, with their drivers and capabilities.

    The list says which backends can be used.
    """
    specs = [_backend(spec) for spec in plugins.backend_specs()]
    broken = _broken_backends()
    if as_json:
        for spec in specs:
            emit(spec)
        for name, error in broken:
            emit({"name": name, "mode": None, "drivers": {}, "usable": False, "why_not": str(error)})
        return
    rows: list[tuple[Any, ...]] = [
        (
            spec["name"],
            spec["mode"],
            ", ".join(f"{module} {version or '(missing)'}" for module, version in spec["drivers"].items()),
            ", ".join(name.lower() for name in spec["capabilities"]),
            spec["why_not"] or "yes",
        )
        for spec in specs
    ]
    rows += [(name, "", "", "", str(error)) for name, error in broken]
    table(("backend", "mode", "driver", "can", "usable"), rows)
    for spec in specs:
        for name, reason in spec["missing"].items():
            write(f"{spec['name']} ({spec['mode']}) has no {name.lower()}: {reason}")
        for name, reason in spec["missing_on_adopted"].items():
            write(f"{spec['name']} ({spec['mode']}) has no {name.lower()} on the caller's connection: {reason}")


def _loaded(group: str, point: importlib.metadata.EntryPoint) -> str | None:
    """Load a plugin as pqcore would; return why that fails, or None."""
    try:
        if group in (BACKENDS, PLUGINS):
            error = plugins.fault(group, point.name)
            return None if error is None else str(error)
        if group == SERIALIZERS:
            registered = plugins.registered_serializer(point.name)
            if registered is None:
                return f"it brings no serializer {point.name!r}"
            with suppress(ConfigurationError):  # the plugin works, but needs for example a key
                plugins.serializer(f"json+{point.name}" if is_wrapper(registered) else point.name)
        else:
            loaded = point.load()
            check_api(loaded, point.name)
            plugins.manager.check_hooks(loaded, point.name)
    except PQError as exc:
        return str(exc)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # noqa: BLE001 - a broken plugin must not affect other plugins
        return f"{type(exc).__name__}: {exc}"
    return None


def _plugin(group: str, point: importlib.metadata.EntryPoint) -> dict[str, Any]:
    why = _loaded(group, point)
    can: list[str] = []
    if group == BACKENDS and why is None:
        specs = [spec for spec in plugins.backend_specs() if spec.name == point.name]
        can = sorted({cap.name for spec in specs for cap in Capability if cap in spec.capabilities})
        unusable = [reason for spec in specs if (reason := _why_not(spec)) is not None]
        why = unusable[0] if unusable and len(unusable) == len(specs) else None
    return {
        "group": group,
        "name": point.name,
        "from": point.value,
        "distribution": point.dist.name if point.dist else None,
        "version": point.dist.version if point.dist else None,
        "capabilities": can,
        "ok": why is None,
        "error": why,
    }


@click.command("plugins")
@json_option
def plugins_(as_json: bool) -> None:
    """List the plugins, with their capabilities.

    The list has the package and the version of each plugin, and says why a plugin cannot be used.
    """
    found = []
    for group in GROUPS:
        points = {(point.name, point.value): point for point in importlib.metadata.entry_points(group=group)}
        found += [_plugin(group, point) for _, point in sorted(points.items())]
    if as_json:
        for each in found:
            emit(each)
        return
    rows = [
        (
            each["group"].removeprefix("pqcore."),
            each["name"],
            each["from"],
            f"{each['distribution']} {each['version']}",
            ", ".join(name.lower() for name in each["capabilities"]),
            each["error"] or "ok",
        )
        for each in found
    ]
    table(("group", "name", "from", "distribution", "can", "state"), rows)


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in plugins.backend_names() if name.startswith(incomplete)]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PYTEST ARGUMENT]...")
@click.option(
    "--backend", metavar="NAME", required=True, shell_complete=_names, help="The backend to test, in all its modes."
)
@click.option(
    "--dsn",
    metavar="URL",
    envvar="PQCORE_TEST_DSN",
    show_envvar=True,
    help="The server; by default an embedded server, or a container of the image that PQCORE_TEST_CONTAINER names.",
)
@click.option("--report", metavar="PATH", help="Write the report to PATH.json and PATH.md.")
@json_option
@click.pass_context
def conformance(
    ctx: click.Context, /, arguments: tuple[str, ...], backend: str, dsn: str | None, report: str | None, as_json: bool
) -> None:
    """Run the conformance suite for a backend.

    Arguments after -- are for pytest.
    """
    if backend not in plugins.backend_names():
        raise UsageError(f"unknown backend {backend!r}; installed: {', '.join(plugins.backend_names()) or 'none'}")
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("pytest_timeout") is None:
        raise UsageError("the conformance suite needs pytest: pip install 'pqcore[testing]'")
    variables = dict(os.environ)
    if dsn is not None:
        remember(ctx, dsn)
        if "://" not in dsn:
            raise UsageError(f"--dsn is {redact(dsn, dsn)}; give a URL, postgresql://user@host/database")
        variables["PQCORE_TEST_DSN"] = dsn
    with tempfile.TemporaryDirectory(prefix="pqcore-conformance-") as folder:
        path = report or str(Path(folder) / "report")
        command = [sys.executable, "-m", "pytest", "--pyargs", "pqcore.testing.suite"]
        # A project's own `addopts` could deselect tests, so `--override-ini` clears them.
        command += ["--override-ini", "addopts=", f"--pqcore-backend={backend}", f"--pqcore-report={path}", *arguments]
        done = subprocess.run(  # noqa: S603 - this interpreter
            command, env=variables, stdout=sys.stderr if as_json else None, check=False
        )
        if as_json and (document := Path(path + ".json")).exists():
            click.echo(document.read_text("utf-8"), nl=False)
    if done.returncode == 4:  # pytest's exit code for a wrong command line
        raise UsageError(
            "pytest does not know an argument after --, or found no test that an argument names; see pytest's message"
            " above"
        )
    if done.returncode != 0:
        raise CommandFailed(printable(f"{backend} does not conform, or the run ended early: see above"))


COMMANDS = (backends, plugins_, conformance)
