"""The command line, ``pqcore``; see docs/command-line.md.

Each group of commands has a module, and `pqcore.cli.app` lists these modules. `pqcore.cli.options` and
`pqcore.cli.output` have what several groups use.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, *, name: str = "pqcore") -> int:
    """Run the command line, and end the process even if threads would keep it alive.

    Args:
        arguments: The arguments of the command line; None for those of this process.
        name: The program's name in messages.

    Returns:
        The exit code: 0 for success, 1 for failure, 2 if the command line, or an object that it names, is wrong.
    """
    try:
        import click
        import rich  # noqa: F401 - needed later; both are of the same extra
    except ImportError as exc:
        sys.stderr.write(f"the command line needs {exc.name}: pip install 'pqcore[cli]'\n")
        return 2
    del click
    from pqcore.cli.app import app
    from pqcore.cli.exit import leave

    try:
        code: object = app.main(args=arguments, prog_name=name)
    except SystemExit as exc:
        code = exc.code
    except BaseException:  # noqa: BLE001 - the error is shown, and the process ends
        sys.excepthook(*sys.exc_info())
        code = 1
    return leave(code if isinstance(code, int) else 0 if code is None else 1)
