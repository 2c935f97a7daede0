#!/bin/bash
# evaluate of launch 20261201-120000-tldr
#
# Made by `dipole launch local`; it stands alone:
#   bash /shared/launches/20261201-120000-tldr/evaluate.sh
# Run again after whatever stopped it, it goes on where it was.
set -uo pipefail

launch=/shared/launches/20261201-120000-tldr
say() { echo "[evaluate $(date +%FT%T)] $*"; }
finish() { echo "$1" > "$launch/evaluate.exit"; exit "$1"; }
rm -f "$launch/evaluate.exit"

export PATH=/shared/venv/bin:"$PATH" PYTHONUNBUFFERED=1
command -v dipole >/dev/null || { say "no dipole in /shared/venv on $(hostname): see launch.venv"; finish 2; }

words=(dipole evaluate --model /shared/runs/tldr/snapshots/final --data /shared/beir --split test --json)
say "${words[*]}"

# The job is told to stop by a signal: passed on, since bash would only note it.
"${words[@]}" > "$launch/.evaluate.json" &
child=$!
trap 'kill -s TERM "$child" 2>/dev/null' TERM INT USR1
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
[ "$code" -eq 0 ] && mv "$launch/.evaluate.json" "$launch/evaluate.json"
say "ended with exit code $code"
finish "$code"
