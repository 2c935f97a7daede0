#!/bin/bash
# train of launch 20261201-120000-tldr
#
# Made by `dipole launch local`; it stands alone:
#   bash /shared/launches/20261201-120000-tldr/train.sh
# Run again after whatever stopped it, it goes on where it was.
set -uo pipefail

launch=/shared/launches/20261201-120000-tldr
run=/shared/runs/tldr
say() { echo "[train $(date +%FT%T)] $*"; }
finish() { echo "$1" > "$launch/train.exit"; exit "$1"; }
rm -f "$launch/train.exit"

export PATH=/shared/venv/bin:"$PATH" PYTHONUNBUFFERED=1
command -v dipole >/dev/null || { say "no dipole in /shared/venv on $(hostname): see launch.venv"; finish 2; }

[ -e /shared/runs/tldr/done.json ] && { say "done already"; finish 0; }
words=(dipole train /shared/launches/20261201-120000-tldr/config.toml)
[ -e "$run/run.json" ] && words+=(--resume)
say "${words[*]}"

# The job is told to stop by a signal: passed on, since bash would only note it.
"${words[@]}" &
child=$!
trap 'kill -s TERM "$child" 2>/dev/null' TERM INT USR1
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
say "ended with exit code $code"
finish "$code"
