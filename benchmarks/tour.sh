#!/usr/bin/env bash
# Drives the real console in tmux by keyboard only, at 80x24, and writes what was on screen to a page:
#   bash benchmarks/tour.sh docs/tour.md        (about two minutes; needs tmux; PYTHON chooses the interpreter)
set -eu
page=$(realpath "${1:-docs/tour.md}")
source "$(dirname "$0")/tour_tools.sh"

cat > "$page" <<'TEXT'
# A tour, by keyboard only

From an empty folder to a trained model, two checkpoints that write side by side, and a second run that branches off
the first. `benchmarks/tour.sh` wrote this page: it drives the real console in tmux at 80x24, the smallest
comfortable size, with a model small enough to learn while you watch.
TEXT
open launch --set threads=1 --set block_size=32 --set batch_size=4 --set max_iters=40000 --set eval_interval=200 \
     --set eval_iters=2 --set tokenizer=byte --set sample_tokens=60 --set keep_last=50
see "There is no text in"
show "A first start" "The Configure tab. Each row of the upper half is a layer: its type, its width, its share of parameters and work. The
shape on the right is the hourglass. Below it is every other setting, explained at the bottom as you move."
key v; see "Widths"; tm send-keys C-u; key "64,48,32,32,48,64" Enter; see "1 . mamba +64"
key v; see "Widths"; tm send-keys C-u; key "m,a,m,m,a,m" Enter; see "unsaved changes"
sleep 4
show "An hourglass of six layers, from two lists (v)" "Press v and type a list: first the widths, then the types (m for mamba, a for attention). Parameters, FLOPs and memory
follow at once."
key C-r; see "Python language"
show "Start (Ctrl+R) offers a text where there is none" "There is nothing to learn from yet, so Start offers the Python language reference, which comes with Python."
key Enter; see "validation"; see "★"
show "It learns" "The Train tab: loss on top, then gradient norm, speed and learning rate, then a text sample. The star on the axis is a
checkpoint that is the best so far. Training is a process of its own; the console only watches."
key + + Space Left Left Left; sleep 1
show "Zoomed into the newest steps (+), with a crosshair (Space)" "The arrow keys move the crosshair, and every chart shows its value at that step. The thin lines are the range of single
steps behind the smoothed curve."
key 0 p; see "paused"
show "Paused (p)" "The run waits after its current step; p again continues it. The gap costs nothing: speed counts training time only."
key p; see "● run-001  training"
sleep 8; key F4; see "verifies its hash"; see "run-001 +[4-8]00"; sleep 2; key Space Down Space; sleep 1; key C-d; see "Let both write|Generate with both"
show "Two checkpoints compared (F4, Space, Ctrl+D)" "The Checkpoints tab lists what all runs have kept. Mark two with Space, compare them with Ctrl+D: their losses, and where
their configurations differ."
key Enter; see "the same prompt and seed"; see "parameters on"; sleep 3; key "The value " C-g; see "300 tokens"; sleep 4
show "Both continue one prompt" "The same prompt and random seed for both, side by side. Tab enters the text, where each token shows how surprising it was
and what else was likely."
key F3; see "Gradient norm"; key x; see "saves a checkpoint and (ends|stops)"; key Enter; see "stopped"
key F4; see "verifies its hash"; sleep 1; key b; see "Name of the new run"; key Enter; see "run-002"; see "Gradient norm"; sleep 2
show "A new run from a checkpoint (b)" "b branches: a new run begins where the checkpoint stood, with its tokenizer and its validation text, and with whatever the
Configure tab now says."
key C-q; see "(goes on|keeps training).* console|console.* closes"
show "Leaving (Ctrl+Q) leaves it training" "Quitting asks what to do with a run that is training. By default it keeps training."
key Enter; see "the console ended"
tm kill-server; sleep 0.5
open attach run-002
see "run-002"; see "Gradient norm"; sleep 2
show "Back again: mamba-tui attach run-002" "Any number of consoles may watch a run, and each finds its whole history."
key x; see "saves a checkpoint and (ends|stops)"; key Enter; see "stopped"
