#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, from this repository alone; leaves JSON in bench/results/.
#
#   bench/gpu_session.sh [tests] [sanitizer] [bench] [compiled] [profile]     no word: all, so ordered
#
# Needs torch with CUDA and Triton (pip install -e '.[gpu,dev]'); PYTHON names the interpreter.
# RESULTS names another folder for what it writes, COMMIT the commit where there is no repository.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
results=${RESULTS:-bench/results}
unset TRITON_INTERPRET
mkdir -p "$results"
name=$("$python" - <<'PY'
import datetime, re, torch
from bench.commit import commit
if not torch.cuda.is_available():
    raise SystemExit("error: PyTorch finds no CUDA GPU here")
gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
print(f"{datetime.date.today()}-{gpu}-{commit()}")
PY
)
parts=${*:-tests sanitizer bench compiled profile}
failed=()

stage() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

for part in $parts; do
    stage "$part"
    case $part in
    tests)
        "$python" -m pytest -q tests/kernels tests/replay/test_prefetch.py tests/test_agent.py tests/test_update.py \
            tests/backend/test_load.py tests/backend/test_cuda_graph.py tests/test_learner.py \
            tests/backend/test_selfcheck.py \
            --junitxml "$results/$name-tests.xml" || failed+=("$part")
        ;;
    sanitizer)
        if ! command -v compute-sanitizer >/dev/null; then
            echo "compute-sanitizer is not on this machine: nothing checked"
            continue
        fi
        for tool in memcheck racecheck; do
            # One case of each operation: under the sanitizer a test takes minutes.
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
                "$python" -m pytest -q tests/kernels -k "agrees and (rows0 or 5-3-2-2 or 5-7 or 7-33 or 3-5-batch)" \
                || failed+=("$part $tool")
        done
        ;;
    bench)
        # Without torch.compile, which takes minutes for a rollout: a part of its own.
        PROVIDERS="reference fused persistent" "$python" -m pytest -q bench --benchmark-only -s --benchmark-json "$results/$name-bench.json" \
            --ignore bench/bench_update.py --ignore bench/bench_collect.py \
            --ignore bench/bench_replay.py --ignore bench/bench_replay_peers.py || failed+=("$part")
        ;;
    compiled)
        "$python" -m pytest -q bench/bench_rssm_imagine.py bench/bench_rssm_observe.py \
            --benchmark-only -s --benchmark-json "$results/$name-compiled.json" || failed+=("$part")
        ;;
    profile)
        "$python" -m bench.profile_update "$results/$name-profile.json" || failed+=("$part")
        ;;
    *)
        echo "error: parts are tests, sanitizer, bench, compiled and profile, got $part" >&2
        exit 2
        ;;
    esac
done

stage "done"
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
