#!/bin/bash
# launch 20261201-120000-tldr: its jobs one after another, each once the one before it has ended well.
#
# Made by `dipole launch local`; it stands alone: bash /shared/launches/20261201-120000-tldr/all.sh
launch=/shared/launches/20261201-120000-tldr
for job in train embed index evaluate; do
  bash "$launch/$job.sh" >> "$launch/logs/$job.log" 2>&1 &
  child=$!
  trap 'kill -s TERM "$child" 2>/dev/null' TERM INT
  wait "$child"; code=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  echo "$job ended with exit code $code"
  [ "$code" -eq 0 ] || exit "$code"
done
