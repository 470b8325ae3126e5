#!/usr/bin/env bash
# The whole experiment, from the repository's root: the search, its choice, the headline and what is like
# it. evaluation/experiment.sh [WORKERS]; 12 a GPU went well. Run again, it goes on where it stopped, and
# tries again what failed; how long it takes is in docs/evaluation.md.
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
echo "the search ended with $? after $SECONDS s"
# A search that was cut off chooses nothing, and without its choice there is no fair headline. A trial that
# fails has lost.
python3 -m evaluation choose "$search" "$run/search" --out "$run/chosen.toml" || exit
python3 -m evaluation "${headline[@]}" --workers "$workers" --until "${HEADLINE_FOR:-inf}" \
  --work "$run" --out "$run/headline" --chosen "$run/chosen.toml"
code=$?
echo "all ended with $code after $SECONDS s"
exit $code
