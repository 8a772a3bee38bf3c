#!/bin/bash
# make test-slurm: start the cluster, run tests/slurm, stop it. Says why where that is not possible.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$1
shift

skip() { echo "tests/slurm skipped: $*"; exit 0; }
[ "$(id -u)" = 0 ] || skip "SLURM's daemons need root"
unshare --uts --mount true 2>/dev/null || skip "this machine cannot make namespaces, in which each node has its name"
"$here/cluster.sh" installed || skip "SLURM is not installed; type: scripts/slurm/cluster.sh install"
trap '"$here/cluster.sh" stop' EXIT
SLURM_CONF=$("$here/cluster.sh" start)
export SLURM_CONF MERGESTREAM_SLURM=1 OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE  # every job would compile the package again
# A folder of its own, which the other pytest sessions of this machine do not tidy away.
"$python" -m pytest -n 4 --dist loadfile --verbosity=1 --basetemp="$(dirname "$SLURM_CONF")/tests" tests/slurm "$@"
