#!/usr/bin/env bash
# NVIDIA's compute-sanitizer over every kernel at small sizes: accesses outside of allocations, races in shared memory.
# Needs a GPU; says "absent" where the tool, a part of the CUDA toolkit, is not there.
#
#   tests/kernels/sanitize_gpu.sh
#   PYTHON=...                    a Python that has storm_fast's dependencies (python3)
set -uo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
command -v compute-sanitizer >/dev/null || { echo "absent: compute-sanitizer"; exit 0; }
failed=0
for tool in memcheck racecheck; do
  echo "== $tool"
  # Without PyTorch's cache each tensor is an allocation of its own, whose ends the tool knows.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "${PYTHON:-python3}" -m pytest -q -p no:cacheprovider tests/kernels/test_values.py -k "small and equal" || failed=1
done
exit "$failed"
