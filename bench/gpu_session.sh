#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, from this repository alone; leaves its results in bench/results/.
#
#   bench/gpu_session.sh [first] [tests] [barriers] [memcheck] [racecheck] [initcheck] [synccheck]
#                        [bench] [compiled] [profile]         no word: all, in this order
#
# A part takes at most 8 minutes (first 3) and consists of steps with time limits of their own.
# NAME-steps.tsv has a line for each step that ran: its name, its exit code (124: the time was up)
# and its seconds. A step that passed is left out when the script runs again; RERUN=1 repeats it.
#
# Needs torch with CUDA and Triton (pip install -e '.[gpu,dev]'). Of the environment it takes PYTHON
# (the interpreter), RESULTS (another folder to write to), COMMIT (where there is no repository),
# STEP_SECONDS (a limit for every step) and DRY_RUN=1: all parts without a GPU, to show that the
# script works. Tests are then only collected, benchmarks run once at small sizes, a stand-in takes
# the sanitizer's place, and RESULTS is a new temporary folder unless it is given.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-python}
dry=${DRY_RUN:-}
unset TRITON_INTERPRET
if [[ $dry ]]; then
    results=${RESULTS:-$(mktemp -d)}
    PATH=$results/bin:$PATH
    mkdir -p "$results/bin"
    # Leaves out the sanitizer's own options and runs the rest.
    printf '%s\n' '#!/usr/bin/env bash' 'while [[ $1 == --* ]]; do shift 2; done' 'exec "$@"' \
        >"$results/bin/compute-sanitizer"
    chmod +x "$results/bin/compute-sanitizer"
    echo "dry run, results in $results"
else
    results=${RESULTS:-bench/results}
fi
mkdir -p "$results"
name=$("$python" -m bench.surroundings ${dry:+--dry}) || exit 1
steps=$results/$name-steps.tsv
touch "$steps"
failed=()

# step LIMIT NAME COMMAND...: runs a command for at most LIMIT seconds and what is left of the part.
step() {
    local limit=${STEP_SECONDS:-$1} step=$part/$2 begun=$SECONDS left code
    shift 2
    if [[ ! ${RERUN:-} ]] && grep -q "^$step	0	" "$steps"; then
        echo "-- $step passed before"
        return
    fi
    left=$((part_ends - SECONDS))
    if ((left <= 0)); then
        echo "-- $step: no time left in this part; run it again"
        failed+=("$step (not run)")
        return
    fi
    echo "-- $step"
    timeout --kill-after 10 $((limit < left ? limit : left)) "$@"
    code=$?
    printf '%s\t%d\t%d\n' "$step" "$code" $((SECONDS - begun)) >>"$steps"
    ((code == 0)) || failed+=("$step ($code)")
}

tests() {  # LIMIT NAME ARGUMENTS...
    local limit=$1 of=$2
    shift 2
    if [[ $dry ]]; then
        step "$limit" "$of" "$python" -m pytest -q --collect-only "$@"
    else
        step "$limit" "$of" "$python" -m pytest -v --junitxml "$results/$name-$part-$of.xml" "$@"
    fi
}

# The tests of a kernel under a tool of the sanitizer; a case takes a minute there, so few of them.
sanitized() {  # FILE -k EXPRESSION
    local of=$1 run=(-v)
    shift
    [[ $dry ]] && run=(-q --collect-only)
    # Every tensor in memory of its own, which initcheck finds as it was allocated.
    step 240 "$of" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 UNFILLED_MEMORY=1 compute-sanitizer \
        --tool "$part" --error-exitcode 1 --log-file "$results/$name-$part-$of.log" \
        "$python" -m pytest "${run[@]}" "tests/kernels/test_$of.py" "$@"
}

benchmark() {  # LIMIT FILE
    local arguments=(--benchmark-only --benchmark-json "$results/$name-$part-$2.json")
    step "$1" "$2" env ${dry:+BENCH_SHORT=1} "$python" -m pytest -q -s "bench/bench_$2.py" "${arguments[@]}"
}

updates() {  # SECONDS WAYS
    step $(($1 + 15)) "$2" "$python" -m bench.profile_update "$results/$name-updates.json" \
        --ways "$2" --seconds "$1" --way-seconds 150 ${dry:+--short}
}

run_part() {
    case $part in
    first)
        updates 160 first
        ;;
    tests)
        local file
        tests 240 selfcheck tests/backend/test_selfcheck.py tests/backend/test_load.py tests/backend/test_trial.py
        for file in tests/kernels/test_*.py; do
            # Ahead-of-time compilation needs no GPU, and the barriers are a part of their own.
            [[ $file == *test_compile_kernels.py ]] && continue
            tests 240 "$(basename "$file" .py)" "$file" -k "not ten_thousand and not any_one_barrier"
        done
        tests 200 cuda_graph tests/backend/test_cuda_graph.py
        tests 240 update tests/test_update.py
        tests 240 agent tests/test_agent.py tests/test_learner.py
        tests 120 prefetch tests/replay/test_prefetch.py
        ;;
    barriers)
        tests 240 ten_thousand tests/kernels/test_rssm_observe_persistent.py -k ten_thousand
        tests 240 broken tests/kernels/test_rssm_observe_persistent.py -k any_one_barrier
        ;;
    memcheck | racecheck | initcheck | synccheck)
        # racecheck sees shared memory alone; races through global memory are for `barriers`.
        if ! command -v compute-sanitizer >/dev/null; then
            echo "compute-sanitizer is not on this machine: nothing checked"
            failed+=("$part (no compute-sanitizer)")
            return
        fi
        sanitized rssm_observe -k "observe_agrees and 3-5-batch"
        sanitized rssm_imagine -k "5-3-2-2-True-True"
        sanitized linear_norm_act -k "rows0-5-33-dtype0 or mlp_agrees"
        sanitized layernorm_gru -k "rows0-7-19-dtype0"
        sanitized batchnorm_posterior -k "7-33-True-dtype0"
        sanitized categorical -k "agrees and rows0-3-5-0.01 and not dtype1"
        sanitized two_hot -k "agrees and rows0-21 and not dtype1"
        sanitized lambda_return -k "dtype0-5-7-0.95 or episodes_begin"
        ;;
    bench)
        # Without torch.compile, which takes minutes for a rollout: a part of its own.
        export PROVIDERS="reference fused persistent"
        local file
        for file in rssm_observe rssm_imagine linear_norm_act layernorm_gru batchnorm_posterior \
            categorical two_hot lambda_return; do
            benchmark 150 "$file"
        done
        unset PROVIDERS
        ;;
    compiled)
        if [[ $dry ]]; then
            echo "left out of a dry run: at a small size, too, it compiles for minutes"
            return
        fi
        updates 200 compiled
        export PROVIDERS="reference compiled"
        benchmark 120 rssm_imagine
        benchmark 120 rssm_observe
        unset PROVIDERS
        ;;
    profile)
        updates 450 all
        ;;
    esac
}

everything="first tests barriers memcheck racecheck initcheck synccheck bench compiled profile"
for part in "$@"; do
    if [[ " $everything " != *" $part "* ]]; then
        echo "error: parts are ${everything// /, }; got $part" >&2
        exit 2
    fi
done
for part in ${*:-$everything}; do
    printf '\n== %s (%d s)\n' "$part" "$SECONDS"
    [[ $part == first ]] && part_ends=$((SECONDS + 180)) || part_ends=$((SECONDS + 480))
    run_part
done

printf '\n== done (%d s)\n' "$SECONDS"
if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
