#!/usr/bin/env bash
# The whole experiment, from the repository's root: the search, its choice, the headline and what is like
# it. evaluation/experiment.sh [WORKERS]; 12 a GPU went well. Run again, it goes on where it stopped.
# SEARCH_FOR and HEADLINE_FOR end the two after so many seconds; SEARCH, HEADLINE name other plans.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
workers=${1:-2}
run=${RUN:-runs/evaluation}
search=${SEARCH:-tune}
read -ra headline <<<"${HEADLINE:-headline merges crowds strengths recipes}"

python3 -m evaluation "$search" --workers "$workers" --until "${SEARCH_FOR:-inf}" \
  --work "$run" --out "$run/search"
# An unfinished search chooses nothing, and without its choice there is no fair headline.
python3 -m evaluation choose "$search" "$run/search" --out "$run/chosen.toml" || exit
python3 -m evaluation "${headline[@]}" --workers "$workers" --until "${HEADLINE_FOR:-inf}" \
  --work "$run" --out "$run/headline" --chosen "$run/chosen.toml"
