#!/usr/bin/env bash
# A CI job: makes the model's .tflite, checks it against the limits and the baseline, and writes the table into
# the summary. Fails if a limit does not hold. Data and limits are in pyproject.toml.
#
#     docs/ci/job.sh MODEL
set -euo pipefail
model=${1:?MODEL is missing}
name=$(basename "${model%.*}")
file=out/$name.tflite baseline=$name.baseline.json
lqconvert() { python -I -m lqconvert "$@"; } # imports nothing from the checkout

if [[ ! $file -nt $model ]]; then # a cache of out/ saves the training
    lqconvert quantize --quiet -o "$file" -- "$model"
fi
options=(--markdown --junit out/junit.xml)
if [[ -f $baseline ]]; then
    options+=(--against "$baseline")
fi
summary=${GITHUB_STEP_SUMMARY:-}
if [[ ! $summary ]]; then
    summary=out/summary.md
    rm -f "$summary" # tee would follow a link
fi
# If all limits hold, the file is the new baseline. Commit it, and later files must not be larger.
lqconvert check "$file" "${options[@]}" --save-baseline "$baseline" |
    tee -a "$summary"
