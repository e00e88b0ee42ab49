#!/usr/bin/env bash
# All that needs a GPU, in one go: tests, benchmarks and a short training, on a machine that may have no network.
#
#   bench/gpu_check.sh [FOLDER]      results go to FOLDER, runs/gpu-check-<utc> by default
#   PYTHON=...                       a Python that has storm_fast's dependencies (python3)
#   WHEELS=DIR ALE_SOURCE_DIR=DIR    where they are missing: wheels to install without network, and ALE's sources
#   STORM_RELEASED=DIR               a checkout of the released code, to be timed beside ours
#
# A part that fails does not keep the others from running; summary.txt says which did, and the exit status too.
# Not yet run on a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu-check-$(date -u +%Y%m%d-%H%M%S)}
python=${PYTHON:-python3}
mkdir -p "$out"
failed=0

part() {  # part NAME COMMAND...: run it, keep its output and status
  local name=$1 start=$SECONDS
  shift
  "$@" >"$out/$name.txt" 2>&1
  local status=$?
  printf '%-12s exit %3d, %4d s\n' "$name" "$status" $((SECONDS - start)) | tee -a "$out/summary.txt"
  [ "$status" -eq 0 ] || failed=1
}

git rev-parse HEAD >"$out/commit.txt" 2>/dev/null
nvidia-smi >"$out/nvidia-smi.txt" 2>&1 || { echo "want a machine with an NVIDIA GPU; nvidia-smi failed" >&2; exit 2; }
if [ -n "${WHEELS:-}" ]; then
  # Editable, so that what runs from this folder finds the compiled collector.
  part build-tools "$python" -m pip install --no-index --find-links "$WHEELS" scikit-build-core nanobind
  part install "$python" -m pip install --no-index --find-links "$WHEELS" --no-build-isolation --editable ".[test,bench]"
fi
part tests "$python" -m pytest  # on a GPU nothing marked `gpu` is skipped
for name in step scaling collect; do
  part "bench-$name" "$python" -m pytest "bench/bench_$name.py" --benchmark-only --benchmark-json="$out/$name.json"
done
part bench-kernels "$python" -m pytest bench --benchmark-only --benchmark-json="$out/kernels.json" \
  --ignore=bench/bench_step.py --ignore=bench/bench_scaling.py --ignore=bench/bench_collect.py
part report "$python" -m bench.report "$out"/{step,scaling,collect,kernels}.json --merge "$out/benchmarks.json"
run=$out/run
part train "$python" -m storm_fast.train --preset storm --game Pong --compile --steps 2000 --checkpoint-every 1500 \
  --demonstration none --run-dir "$run"
part resume "$python" -m storm_fast.train --resume "$run" --steps 2500
part evaluate "$python" -m storm_fast.evaluate "$run" --episodes 2 --num-envs 2
cp "$run/metrics.jsonl" "$run/env.json" "$out/" 2>/dev/null
rm -rf "$run"  # weights and replay: large, and made again by these commands
exit "$failed"
