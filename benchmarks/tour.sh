#!/usr/bin/env bash
# Drives the real console in tmux by keyboard only, at 80x24, and writes what was on screen to a page:
#   bash benchmarks/tour.sh docs/tour.md        (about a minute; needs tmux; PYTHON chooses the interpreter)
set -eu
page=$(realpath "${1:-docs/tour.md}")
root=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
python=${PYTHON:-python3}
tm() { tmux -L mamba-tour "$@"; }
key() { for name in "$@"; do tm send-keys "$name"; sleep 0.25; done; }
# Wait until a text is on screen.
see() { for _ in $(seq 300); do tm capture-pane -p | grep -qF -- "$1" && return; sleep 0.2; done; echo "not seen: $1" >&2; tm capture-pane -p >&2; exit 1; }
show() { sleep 0.6; { printf '\n## %s\n\n```text\n' "$1"; tm capture-pane -p; printf '```\n'; } >> "$page"; }
open() { tm new-session -d -x 80 -y 24 "cd $work; PYTHONPATH=$root OMP_NUM_THREADS=1 $python -m mamba_tui.cli.main $*; echo; echo the console ended; sleep 600"; }
trap 'tm kill-server 2>/dev/null || true; rm -rf "$work"' EXIT

printf '# A tour, by keyboard only\n\nWritten by `benchmarks/tour.sh`, which drives the real console in tmux at 80x24.\n' > "$page"
open launch --set threads=1 --set block_size=32 --set batch_size=4 --set max_iters=40000 --set eval_interval=200 \
     --set eval_iters=2 --set tokenizer=byte --set sample_tokens=60 --set keep_last=50
see "There is no text in"; show "A first start"
key v; see "Widths"; tm send-keys C-u; key "64,48,32,32,48,64" Enter; see "took 6 widths"
key v; see "Widths"; tm send-keys C-u; key "m,a,m,m,a,m" Enter; see "took 6 types"
sleep 4; show "A six-layer hourglass, from two lists (v)"
key C-r; see "Python language"; show "Start (Ctrl+R) offers a text where there is none"
key Enter; see "validation"; see "★"; show "It learns"
key + + Space Left Left Left; sleep 1; show "Zoomed into the newest steps (+), with a crosshair (Space)"
key 0 p; see "paused"; show "Paused (p)"
key p; see "● run-001  training"
sleep 8; key F4; see "run-001"; sleep 2; key Space Down Space c; see "Let both write"; show "Two checkpoints compared (F4, Space, c)"
key Enter; see "the same prompt and seed"; see "parameters on"; sleep 3; key "The value " Enter; see "300 tokens"; sleep 4
show "Both write on from one prompt"
key F3; see "Gradient norm"; key x; see "saves a checkpoint and ends"; key Enter; see "stopped"
key F4; see "»"; key b; see "Name of the new run"; key Enter; see "run-002"; see "Gradient norm"; sleep 2; show "A new run from a checkpoint (b)"
key C-q; see "It goes on without the console"; show "Leaving (Ctrl+Q) leaves it training"
key Enter; see "the console ended"
tm kill-server; sleep 0.5
open attach run-002
see "run-002"; see "Gradient norm"; sleep 2; show "Back again: mamba-tui attach run-002"
key x; see "saves a checkpoint and ends"; key Enter; see "stopped"
