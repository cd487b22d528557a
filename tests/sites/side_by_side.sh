#!/usr/bin/env bash
# The tests of real servers, in two halves side by side: each mostly waits. bash tests/sites/side_by_side.sh PYTHON [ARGUMENTS OF PYTEST]
#
# Networks of their own (SLURM, partitions) are one half; the other is servers (Prefect, S3, Kubernetes' operator).
# Exit status: of the half that failed; 5, no tests, is none where the other half had some.
set -uo pipefail

python=$1
shift
networks=(tests/sites/test_slurm.py tests/sites/test_partition.py)
servers=(tests/sites/test_prefect.py tests/sites/test_s3.py tests/kubernetes)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$python" -m pytest -m site -p no:cacheprovider "${networks[@]}" "$@" >"$log" 2>&1 &
half=$!
trap 'kill -INT "$half" 2>/dev/null' INT TERM
"$python" -m pytest -m site -p no:cacheprovider "${servers[@]}" "$@"
second=$?
wait "$half"
first=$?
cat "$log"

((first == 5 && second == 5)) && exit 5
for status in "$first" "$second"; do
    ((status == 0 || status == 5)) || exit "$status"
done
