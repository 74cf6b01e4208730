# What drives a console in tmux and writes a page of its screens; sourced by tour.sh and tour_sweep.sh, which set `page`.
root=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
python=${PYTHON:-python3}
tm() { tmux -L "mamba-tour-$$" "$@"; }
key() { for name in "$@"; do tm send-keys "$name"; sleep 0.25; done; }
# Wait until a text (an extended regular expression) is on screen.
see() { for _ in $(seq 300); do tm capture-pane -p | grep -qE -- "$1" && return; sleep 0.2; done; echo "not seen: $1" >&2; tm capture-pane -p >&2; exit 1; }
# Heading, sentences, screen.
show() { sleep 0.6; { printf '\n## %s\n\n%s\n\n```text\n' "$1" "$2"; tm capture-pane -p; printf '```\n'; } >> "$page"; }
open() { tm new-session -d -x 80 -y 24 "cd $work; PYTHONPATH=$root OMP_NUM_THREADS=1 $python -m mamba_tui.cli.main $*; echo; echo the console ended; sleep 600"; }
trap 'tm kill-server 2>/dev/null || true; rm -rf "$work"' EXIT
