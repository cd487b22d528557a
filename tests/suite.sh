#!/bin/sh
# The suite in two parts: what may run side by side, a process a core, then what wants the machine for itself (the mark `alone`).
# sh tests/suite.sh PYTHON [ARGUMENTS OF PYTEST]
#
# Exit status: of the part that failed; 5, no tests, is none where the other part had some.
python=$1
shift

"$python" -m pytest --part beside -n auto --dist worksteal "$@"
beside=$?
case $beside in 2 | 3 | 4) exit "$beside" ;; esac # interrupted, broken, or wrong arguments: so would the other be
"$python" -m pytest --part alone "$@"
alone=$?

[ "$beside" -eq 0 ] || [ "$beside" -eq 5 ] || exit "$beside"
[ "$alone" -ne 5 ] || exit "$beside"
exit "$alone"
