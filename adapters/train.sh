#!/usr/bin/env bash
# Trains the adapters that ship, each as SHiRA and as its LoRA twin of equal parameter count.
# From the repository's root: adapters/train.sh [NAME ...]; the two of a pair run side by side.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1

train() { # name preset title license sample_prompts
  local pids=()
  python -m training "training/presets/$2.toml" --set "data=examples/$1" method=shira \
    "title=$3" "license=$4" "sample_prompts=$5" overwrite=true &
  pids+=($!)
  python -m training "training/presets/$2.toml" --set "data=examples/$1" method=lora \
    "title=$3 (LoRA)" "license=$4" "sample_prompts=$5" overwrite=true &
  pids+=($!)
  for pid in "${pids[@]}"; do wait "$pid"; done
}

names=("$@")
((${#names[@]})) || names=(high-contrast monotone openmoji cactus robot octopus rocket)
for name in "${names[@]}"; do
  case $name in
    high-contrast) train "$name" emoji-style "High contrast" MIT \
      '["lion, ink style", "car, ink style", "elephant, ink style"]' ;;
    monotone) train "$name" emoji-style "Monotone" CC-BY-4.0 \
      '["dog, outline style", "house, outline style", "car, outline style"]' ;;
    openmoji) train "$name" emoji-style "OpenMoji" CC-BY-SA-4.0 \
      '["fox, comic style", "tractor, comic style", "tulip, comic style"]' ;;
    cactus | robot | octopus | rocket) train "$name" emoji-concept "${name^}" CC-BY-4.0 \
      "[\"$name, noto style\", \"$name, fluent style\", \"$name, twemoji style\"]" ;;
    *) echo "there is no example called $name" >&2; exit 2 ;;
  esac
done
