#!/usr/bin/env bash
# Trains the adapters that ship, each as SHiRA and as its LoRA twin of equal parameter count.
# From the repository's root: adapters/train.sh [NAME ...]; two at a time, one core each.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1

train() { # name preset title license prompts
  for method in shira lora; do
    suffix=$([ "$method" = lora ] && echo " (LoRA)" || true)
    python -m training "training/presets/$2.toml" --set "data=examples/$1" "method=$method" \
      "title=$3$suffix" "license=$4" "sample_prompts=$5" overwrite=true &
  done
  wait
}

for name in "${@:-high-contrast monotone openmoji unicorn robot octopus rocket}"; do
  for one in $name; do
    case $one in
      high-contrast) train "$one" emoji-style "High contrast" MIT \
        '["lion, flat style, ink", "car, flat style, ink", "cat, flat style, ink"]' ;;
      monotone) train "$one" emoji-style "Monotone" CC-BY-4.0 \
        '["dog, emojione style, outline", "house, emojione style, outline", "fish, emojione style, outline"]' ;;
      openmoji) train "$one" emoji-style "OpenMoji" CC-BY-SA-4.0 \
        '["fox, twemoji style, comic", "tractor, twemoji style, comic", "tulip, twemoji style, comic"]' ;;
      unicorn | robot | octopus | rocket) train "$one" emoji-concept "${one^}" CC-BY-4.0 \
        "[\"$one, noto style\", \"$one, fluent style\", \"$one, twemoji style\"]" ;;
      *) echo "there is no example called $one" >&2; exit 2 ;;
    esac
  done
done
