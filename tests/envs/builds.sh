#!/bin/sh
# Builds the wheel of HEAD in isolated environments: afresh; with the compiler hidden; and without network, from
# ALE_SOURCE_DIR. Then plays a step of what was built. Needs git, and a Python that has the package's dependencies:
# PYTHON=.venv/bin/python ALE_SOURCE_DIR=... tests/envs/builds.sh
set -eu
python=${PYTHON:-python3}
sources=${ALE_SOURCE_DIR:?ale-py\'s source distribution, unpacked}
unset ALE_SOURCE_DIR
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# NAME, WANTED (a part of the collector's name), then the command that runs pip.
build() {
  name=$1 wanted=$2
  shift 2
  mkdir -p "$work/$name/source" "$work/$name/package"
  git -C "$root" archive HEAD | tar -x -C "$work/$name/source"
  start=$(date +%s)
  (cd "$work/$name/source" && "$@" wheel --verbose --no-deps --wheel-dir "$work/$name" .) >"$work/$name/log" 2>&1 ||
    { tail -n 40 "$work/$name/log"; exit 1; }
  end=$(date +%s)
  "$python" -m zipfile -e "$work/$name"/storm_fast-*.whl "$work/$name/package"
  echo "$name: $((end - start)) s, $(du -k "$work/$name"/storm_fast-*.whl | cut -f 1) KB"
  grep -A 1 "storm_fast: the C++ collector is left out" "$work/$name/log" || true
  (cd "$work/$name/package" && PYTHONPATH=$PWD "$python" - "$wanted" <<'PLAY') || exit 1
import sys

import numpy as np

import storm_fast
from storm_fast.envs import open_collector
from storm_fast.config import EnvConfig

assert "package" in storm_fast.__file__, storm_fast.__file__
collector = open_collector("Pong", EnvConfig(num_envs=2))
collector.reset(0)
collector.step(np.ones(2, np.int64))
assert collector.name.startswith(sys.argv[1]), collector.name
sys.stdout.write(f"  {collector.name} plays\n")
PLAY
}

build fresh "Collector (C++" "$python" -m pip

build hidden AleVector env CXX=/bin/false "$python" -m pip

mkdir "$work/requirements"
"$python" -c 'import sys, tomllib; print(*tomllib.load(open(sys.argv[1], "rb"))["build-system"]["requires"], sep="\n")' \
  "$root/pyproject.toml" >"$work/requirements.txt"
"$python" -m pip download --quiet --dest "$work/requirements" --requirement "$work/requirements.txt" cmake ninja \
  2>"$work/requirements.log" || { cat "$work/requirements.log"; exit 1; }
cut="env"
if unshare -n true 2>/dev/null; then cut="unshare -n"; fi
build offline "Collector (C++" $cut env ALE_SOURCE_DIR="$sources" PIP_NO_INDEX=1 PIP_FIND_LINKS="$work/requirements" \
  "$python" -m pip
echo "  (without network: $cut, pip with --no-index)"
