"""The command line, as ``python -m pqcore``."""

from __future__ import annotations

import sys

from pqcore.cli import main

if __name__ == "__main__":  # spawned processes import this module too
    sys.exit(main())
