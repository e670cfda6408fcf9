#!/usr/bin/env bash
# The job of a CI server: makes the model's .tflite, holds it against the budgets and the baseline, and
# writes the table into the summary. Fails where one does not hold. Data and budgets stand in pyproject.toml.
#
#     docs/ci/job.sh MODEL
set -euo pipefail
model=${1:?MODEL is missing}
name=$(basename "${model%.*}")
file=out/$name.tflite baseline=$name.baseline.json
lqconvert() { python -I -m lqconvert "$@"; } # imports nothing that lies in the checkout

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
# Where all budgets hold, the file is the new baseline: commit it to let no later one grow.
lqconvert check "$file" "${options[@]}" --save-baseline "$baseline" |
    tee -a "$summary"
