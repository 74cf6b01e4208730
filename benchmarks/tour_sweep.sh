#!/usr/bin/env bash
# Six variants swept in the real console, by keyboard at 80x24, one of them killed meanwhile; what was on screen becomes a page:
#   bash benchmarks/tour_sweep.sh docs/tour-sweep.md      (three to ten minutes; needs tmux; PYTHON chooses the interpreter)
set -eu
page=$(realpath "${1:-docs/tour-sweep.md}")
source "$(dirname "$0")/tour_tools.sh"
runs=$work/checkpoints
mamba() { (cd "$work"; PYTHONPATH=$root OMP_NUM_THREADS=1 "$python" -m mamba_tui.cli.main "$@"); }
# A text typed as a person types it, and keys, slowly enough that Esc is a key of its own.
type() { tm send-keys -l -- "$1"; sleep 0.5; }
# Wait for a shell condition, for as long as six trainings may take.
await() { for _ in $(seq 2400); do eval "$1" && return; sleep 0.5; done; echo "did not happen: $1" >&2; tm capture-pane -p >&2; exit 1; }
pid_of() { "$python" -c 'import json,sys; print(json.loads(open(sys.argv[1]).read().rstrip("\0 "))["pid"])' "$runs/$1/run.lock"; }

cat > "$page" <<'TEXT'
# A tour of a sweep, by keyboard only

Six variants of a tiny model on two CPU cores, one of them killed with `kill -9` on the way; then the best one, what makes it
different, and a text of its own. `benchmarks/tour_sweep.sh` wrote this page: it drives the real console in tmux at 80x24.
TEXT
mamba data sample --write > /dev/null
open launch --set n_embd=[32,24,32] --set attention_type=mamba --set n_head=2 --set block_size=32 --set batch_size=4 \
     --set max_iters=300 --set eval_interval=25 --set eval_iters=4 --set warmup_iters=20 --set tokenizer=byte \
     --set checkpoint_interval=25 --set sample_tokens=0 --set dropout=0
see "Ctrl\+R +a new run"
key C-w; see "Vary"
type "learning_rate=1e-4,1e-3,8e-3 attention_type=mamba,standard"; see "6 variants, .* in all"
show "Six variants (Ctrl+W in Configure)" "The dialog takes what \`mamba-tui train --sweep\` takes: settings, each with its values, and makes every combination. It says
how many that is, how many fit the machine at once, and about how long they take together."
key Enter Enter; type 2; key Enter Enter Enter; see "6 variants, 2 at once"; sleep 1; key Enter; see "sweep-001 trains in the background"; see "◌|●"
see "● training"; sleep 3
show "The sweep begins" "The Runs tab shows the sweep's runs and only what differs between them. Each is an ordinary run. The queue that starts
them is a process of its own: the console may be closed."
await 'ls "$runs"/sweep-001-2/checkpoint_step_*.json > /dev/null 2>&1'
before=$(ls "$runs"/sweep-001-2/checkpoint_step_*.pt | sed 's/.*step_//; s/\.pt//' | sort -n | tail -1)
kill -9 "$(pid_of sweep-001-2)"
see "sweep-001-2 +✘ died"
show "One trainer is killed (kill -9)" "sweep-001-2 had a checkpoint of step $before when its process was killed from outside, as a machine that runs out of memory would."
see "sweep-001-2 +(◌ preparing|● training)"; see "sweep-001-2 +● training"; sleep 2
show "The queue resumes it" "Nobody pressed a key: the queue starts it again, and it goes on from its newest checkpoint. After a reboot, \`Q\` in the Runs tab
or \`mamba-tui sweep sweep-001 --resume\` does the same for the whole sweep."
await '[ "$(grep -c "\"kind\":\"end\".*\"finished\"" "$runs"/sweep-001-*/events.jsonl | grep -c ":1$")" = 6 ]'
await '! tm capture-pane -p | grep -qE "training|preparing|new "'
key Q; see "6 runs: 6 finished"
show "All six have finished (w)" "\`w\` lists all sweeps: what became of their runs, and whether a queue is at work."
key Escape; sleep 1; key s s s; see "sorted by best"; key Home; sleep 1
show "The best first (s)" "\`s\` sorts by the next column, here by the lowest validation loss in bits per byte."
best=$(tm capture-pane -p | grep -oE "sweep-001-[0-9]" | head -1)
key I; see "Which setting mattered"; sleep 0.5
show "Which setting mattered (i)" "How much of the difference between the runs each setting explains, and the mean best loss of its values."
key Escape; sleep 1; key m; see "differs from the default"; sleep 0.5
show "The best run against the default (m)" "Every setting of $best that isn't at its default: the default, then its own."
key Escape; sleep 1; key Space End Space c; see "Gradient norm"; sleep 3
show "Best and worst curve together (Space, Space, c)" "Marked runs are drawn over one another in Train, the first one in full."
key F7; sleep 1; key Escape; sleep 1
key s; see "sorted by"; await 'tm capture-pane -p | grep -q "sorted by best" || { key s; false; }'; key Home; sleep 1; key g
see "$best"; see "parameters on"; sleep 1; type "The value "; key C-g; see "300 tokens"; sleep 2
show "What it has learned to write (g)" "\`g\` loads the best checkpoint of the run into Generate. A few hundred steps of a tiny model make syllables, not sense."
key C-q; see "the console ended"
{
    printf '\n## The same from the command line\n\nThe queue keeps a log, in which the killed run appears:\n\n```text\n'
    cat "$runs/.sweeps/sweep-001.log"
    printf '```\n\n`mamba-tui sweep sweep-001` prints the table and the effects:\n\n```text\n'
    mamba sweep sweep-001
    printf '```\n'
} | sed 's/ *$//' >> "$page"
