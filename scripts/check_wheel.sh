#!/usr/bin/env bash
# Build sdist and wheel into dist/, then use the wheel as a stranger would: in a new virtual environment that stands
# inside a git repository of the stranger's own.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD uv=$PWD/.venv/bin/uv
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE

rm -rf dist
"$uv" build --quiet --python .venv/bin/python --out-dir dist # the wheel is built from the sdist, so both are complete

cd "$there"
git init --quiet
git -c user.name=stranger -c user.email=stranger@localhost commit --quiet --allow-empty --message "Their work"
"$uv" venv --quiet --python "$repository/.venv/bin/python" .venv
# The lock only constrains: what the wheel does not ask for is not installed.
"$uv" pip install --quiet --python .venv/bin/python --constraint "$repository/requirements.lock" "$repository"/dist/*.whl
export PATH=$there/.venv/bin:$PATH

mkdir -p conf/strategy
cat > my_strategies.py <<'PY'
from mergestream.strategies.strategy import strategy


@strategy(scale=1.0)
def middle(taus):
    """The median of the task vectors."""
    return taus.median(0).values
PY
cat > conf/strategy/middle.yaml <<'YAML'
_target_: my_strategies.middle
_partial_: true
scale: 1.0
YAML

mergestream-train tasks=2 epochs=1
PYTHONPATH=. mergestream-merge --multirun --config-dir conf tasks=2 epochs=1 strategy=magmax,middle \
	'allow_targets=[my_strategies]'
mergestream-report
mergestream-evaluate --help > /dev/null
mergestream-analyze --help > /dev/null
mergestream-fetch dataset=digits > /dev/null
mergestream-pipeline tasks=2 epochs=1 'stages=[train,merge]' > /dev/null # finished
mergestream-merge tasks=2 epochs=1 export=classifier
mergestream-predict tasks=2 epochs=1 images="$repository/docs/results" top=2 > /dev/null
mergestream-predict classifier=runs/digits/class-2/tiny/seq/seed-5/merges/magmax-0.5/classifier \
	images="$repository/docs/results" out=answers.csv

python - <<'PY'
import json
from pathlib import Path

import mergestream

assert Path(mergestream.__file__).is_relative_to(Path.cwd() / ".venv"), mergestream.__file__
run = Path("runs/digits/class-2/tiny/seq/seed-5")
merges = {path.parent.name for path in run.glob("merges/*/merged.safetensors")}
assert merges == {"magmax-0.5", "middle-1"}, merges
assert Path("runs/_report/report.html").is_file()
assert Path("answers.csv").read_text().startswith("path,class,probability,")
for path in (run / "metrics.json", *(run / "merges" / name / "metrics.json" for name in sorted(merges))):
    metrics = json.loads(path.read_text())
    assert metrics["git"] is None, f"{path} records the commit of another repository: {metrics['git']}"
    assert metrics["environment"]["mergestream"] == mergestream.__version__
    assert metrics["summary"]["final_accuracy"] > metrics["zero_shot"]["overall"], path
PY
echo "The wheel trains, merges and reports outside the repository."
