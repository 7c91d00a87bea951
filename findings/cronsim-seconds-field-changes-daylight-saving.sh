#!/usr/bin/env bash
# A leading field of seconds takes Debian cron's treatment of daylight saving away from a daily job.
#
# Versions: cronsim 2.8, Python 3.11.
# Seen: "30 2 * * *" in Europe/Berlin ticks once on each day: at 03:00 on the day in spring that has no 02:30, and
#   only once on the day in autumn that has two. "0 30 2 * * *", the same time of day to the second, ticks on the first of
#   these days not at all, and on the second twice.
# One would have guessed: a field of seconds that is 0 changes nothing but the precision.
set -euo pipefail
work=$(mktemp -d)
cleanup() { [ ! -e "$work/data/postmaster.pid" ] || kill -INT "$(head -1 "$work/data/postmaster.pid")"; wait; rm -rf "$work"; }
trap cleanup EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check cronsim==2.8 tzdata==2026.1
"$work/venv/bin/python" - <<'PYTHON'
from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim

BERLIN = ZoneInfo("Europe/Berlin")


def ticks(expression, *day):
    found = CronSim(expression, datetime(*day, 12, tzinfo=BERLIN))
    return [next(found).isoformat() for _ in range(2)]


seen = {expression: (ticks(expression, 2026, 3, 28), ticks(expression, 2026, 10, 24)) for expression in ("30 2 * * *", "0 30 2 * * *")}
for expression, (spring, autumn) in seen.items():
    print(f"{expression!r}: spring {spring}, autumn {autumn}")
assert seen["30 2 * * *"] == (
    ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
    ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
)
assert seen["0 30 2 * * *"] == (
    ["2026-03-30T02:30:00+02:00", "2026-03-31T02:30:00+02:00"],
    ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"],
)
PYTHON
