#!/usr/bin/env bash
# The trial of a GPU: its tests, then the suite; logs and figures in a folder.
#
#   tools/gpu_trial.sh OUT [options of `bench suite`]        such as --quick, --budget 300, --original DIR
#
# Needs torch, transformers, safetensors, einops, diffusers, numpy, Pillow, pytest, pytest-timeout and hypothesis; not
# PyAV, soxr, ftfy or Ray (tests that want them are skipped and say so). PYTHON names the interpreter, WHEELS a folder
# of wheels to install beside it where there is no package index.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?name a folder for logs and figures}
shift
python=${PYTHON:-python3}
mkdir -p "$out"

if [ -n "${WHEELS:-}" ]; then
  packages=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$packages" "$WHEELS"/*.whl || exit
  export PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1

"$python" -m pytest tests/gpu -m gpu -p no:cacheprovider -rs --durations=5 2>&1 | tee "$out/tests.log"
tests=$?
"$python" -m liveavatar bench suite --json "$out" "$@" 2>&1 | tee "$out/suite.log"
suite=$?
exit $((tests || suite))
