#!/bin/sh
# Builds the collector under ThreadSanitizer and AddressSanitizer and runs stress.py in each. Needs CMake, g++ and a
# Python with nanobind, numpy and ale-py: PYTHON=.venv/bin/python ALE_SOURCE_DIR=... tests/envs/sanitize.sh
set -eu
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/../.." && pwd)
for kind in ${*:-thread address}; do
  build=${BUILD:-$root/build}/sanitize-$kind
  mkdir -p "$build"
  cmake -S "$root" -B "$build" -DPython_EXECUTABLE="$(command -v "$python")" -DCOLLECTOR_SANITIZE=$kind \
    -DALE_SOURCE_DIR="${ALE_SOURCE_DIR:-}" >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
  cmake --build "$build" --parallel >>"$build.log" 2>&1
  case $kind in
    thread) library=libtsan.so ;;
    address) library=libasan.so ;;
  esac
  # Python itself is not instrumented: its own leaks are not ours.
  # The C++ library goes along, so that the sanitizer finds what throws.
  LD_PRELOAD="$(g++ -print-file-name=$library) $(g++ -print-file-name=libstdc++.so)" TSAN_OPTIONS=halt_on_error=1:exitcode=66 \
    ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1 \
    "$python" "$root/tests/envs/stress.py" "$build"
  echo "$kind sanitizer: clean"
done
