#!/usr/bin/env bash
# All that needs a GPU, on a machine that may have no network, in parts of at most ten minutes each.
#
#   bench/gpu_check.sh [PART...]     all of these, in this order, unless some are named:
#
#     install    from WHEELS=DIR, where dependencies are missing (ALE_SOURCE_DIR=DIR names ALE's sources)
#     tests      what is marked `gpu`           suite      every other test
#     sanitize   the kernels under compute-sanitizer, where tests/kernels/sanitize_gpu.sh is there
#     aot        kernels compiled ahead of time golden     numbers of the released code
#     step  scaling  collect  kernels           the benchmarks; `bench` stands for these four
#     launches   of each phase and operation    profile    of a step of `storm` and of `lean`
#     train      2,000 steps of `storm`         resume     500 more, and an evaluation      lean       2,000 steps
#
#   PYTHON=...                       a Python that has storm_fast's dependencies (python3)
#   STORM_RELEASED=DIR               a checkout of the released code, to be timed beside ours
#   STORM_COMMIT=...                 the commit, where there is no .git to tell it
#
# Outputs of parts lie in runs/gpu-check. What is to be kept goes to bench/results/<device>/: after each benchmark one run
# of all those that are there, of this call or an earlier one, with its report; checks.txt has a line for each part. A
# part that fails does not keep the others from running; the exit status tells. Not yet run on a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${GPU_CHECK_OUT:-runs/gpu-check}
benchmarks=(step scaling collect kernels)
all=(tests suite sanitize aot golden "${benchmarks[@]}" launches profile train resume lean)
[ -n "${WHEELS:-}" ] && all=(install "${all[@]}")
parts=()
for name in "${@:-${all[@]}}"; do
  case $name in
    bench) parts+=("${benchmarks[@]}") ;;
    install | tests | suite | sanitize | aot | golden | step | scaling | collect | kernels | launches | profile | train | resume | lean)
      parts+=("$name") ;;
    *) echo "want parts of: install ${all[*]} bench; got $name" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
nvidia-smi >"$out/nvidia-smi.txt" 2>&1 || { echo "want a machine with an NVIDIA GPU; nvidia-smi failed" >&2; exit 2; }
results=
failed=0

run() {  # run NAME COMMAND...: keep its output, and a line on how it went
  local name=$1 start=$SECONDS status
  shift
  timeout 600 "$@" >>"$out/$name.txt" 2>&1
  status=$?
  printf '%-10s exit %3d, %4d s: %s\n' "$name" "$status" $((SECONDS - start)) "$(tail -n 1 "$out/$name.txt")" |
    tee -a "$results/checks.txt"
  [ "$status" -eq 0 ] || failed=1
}

benchmark() {  # benchmark NAME PYTEST-ARGUMENTS...: and the report of all that there are
  local name=$1
  shift
  run "$name" "$python" -m pytest "$@" --benchmark-only --benchmark-json="$out/$name.json"
  local made=()
  for other in "${benchmarks[@]}"; do
    [ -s "$out/$other.json" ] && made+=("$out/$other.json")
  done
  if [ ${#made[@]} -gt 0 ]; then
    run report "$python" -m bench.instrument.report "${made[@]}" --merge "$results/benchmarks.json"
  fi
}

part() {
  case $1 in
    install)
      # Editable, so that what runs from this folder finds the compiled collector.
      local pip=("$python" -m pip install --no-index --find-links "${WHEELS:?names no folder of wheels}")
      run install "${pip[@]}" scikit-build-core nanobind
      run install "${pip[@]}" --no-build-isolation --editable ".[test,bench]" ;;
    tests) run tests "$python" -m pytest -m gpu ;;
    suite) run suite "$python" -m pytest -m "not gpu" ;;
    sanitize) if [ -f tests/kernels/sanitize_gpu.sh ]; then run sanitize bash tests/kernels/sanitize_gpu.sh; fi ;;
    aot) run aot "$python" -m pytest tests/aot ;;
    golden)
      for form in "" "--kernels triton" "--kernels triton --layout channels_last"; do
        # shellcheck disable=SC2086  # a form is several words
        run golden "$python" tests/golden/check.py tests/golden/released_code_small --device cuda $form
      done ;;
    step | scaling | collect | kernels) benchmark "$1" "bench/bench_$1.py" ;;
    launches)
      run launches "$python" -m bench.launches
      run launches "$python" -m bench.launches phases
      cp "$out/launches.txt" "$results/" ;;
    profile)
      for preset in storm lean; do run profile "$python" -m bench.profile --preset "$preset"; done
      cp "$out/profile.txt" "$results/" ;;
    lean)
      rm -rf "$out/lean"
      run lean "$python" -m storm_fast.train --preset lean --game Boxing --compile --overlap --steps 2000 \
        --checkpoint-every 2000 --run-dir "$out/lean"
      run lean "$python" -m storm_fast.evaluate "$out/lean" --episodes 2 --num-envs 2
      rm -rf "$out/lean" ;;
    train)
      rm -rf "$out/run"
      run train "$python" -m storm_fast.train --preset storm --game Pong --compile --steps 2000 \
        --checkpoint-every 1500 --demonstration none --run-dir "$out/run" ;;
    resume)
      run resume "$python" -m storm_fast.train --resume "$out/run" --steps 2500
      run resume "$python" -m storm_fast.evaluate "$out/run" --episodes 2 --num-envs 2
      cp "$out/run/metrics.jsonl" "$out/run/env.json" "$results/"
      rm -rf "$out/run" ;;  # weights and replay: large, and made again by these commands
  esac
}

for name in "${parts[@]}"; do
  rm -f "$out/$name.txt"
  # Torch names the device, once it is installed.
  if [ "$name" = install ]; then results=$out; else
    results=$("$python" -c 'from bench.instrument import guard; print(guard.stored_path().parent)') || exit 2
    mkdir -p "$results"
  fi
  part "$name"
done
exit "$failed"
