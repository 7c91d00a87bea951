#!/usr/bin/env bash
# After gc.freeze(), Hypothesis doubts the random generator that trio's plugin registers, and warns.
#
# Versions: trio 0.35.0, hypothesis 6.170.17.
# Seen: trio has an entry point by which Hypothesis finds trio's random generator when Hypothesis is imported. Hypothesis asks the garbage
#   collector what refers to the generator. Objects that gc.freeze() has set aside are not looked at, so the module that holds the
#   generator is not found, and Hypothesis warns that the generator could be collected immediately. Without gc.freeze(), or with
#   Hypothesis imported before it, there is no warning.
# One would have guessed: gc.freeze() only saves the time of later collections, and changes no program's behaviour.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check trio==0.35.0 hypothesis==6.170.17
run() { "$work/venv/bin/python" -W always -c "$1" 2>&1 | grep --count HypothesisWarning || true; }
plain=$(run 'import gc, trio; import hypothesis')
frozen=$(run 'import gc, trio; gc.freeze(); import hypothesis')
before=$(run 'import gc, trio, hypothesis; gc.freeze(); import hypothesis')
echo "warnings without gc.freeze(): $plain"
echo "warnings with Hypothesis imported after it: $frozen"
echo "warnings with Hypothesis imported before it: $before"
[ "$plain" = 0 ]
[ "$frozen" = 1 ]
[ "$before" = 0 ]
