#!/bin/bash
#SBATCH --job-name=tldr-index
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --output=/shared/launches/20261201-120000-tldr/logs/index-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
#SBATCH --comment=20261201-120000-tldr
#SBATCH --partition=gpu
#SBATCH --account=search
#SBATCH --mem=900G
#SBATCH --constraint=h100
#SBATCH --comment="two words"
# index of launch 20261201-120000-tldr
#
# Made by `dipole launch slurm`; it stands alone:
#   sbatch /shared/launches/20261201-120000-tldr/index.sh
# Run again after whatever stopped it, it goes on where it was.
set -uo pipefail

launch=/shared/launches/20261201-120000-tldr
say() { echo "[index $(date +%FT%T)] $*"; }
finish() { echo "$1" > "$launch/index.exit"; exit "$1"; }
rm -f "$launch/index.exit"

# Keys come from a file that is read where the job runs; none is written here.
secrets=/home/me/keys
[ -r "$secrets" ] || { say "cannot read $secrets on $(hostname); put it there, or change launch.secrets_file"; finish 2; }
[ -z "$(find -L "$secrets" -perm /077)" ] || { say "others may read $secrets; chmod 600 it"; finish 2; }
while IFS= read -r line || [ -n "$line" ]; do
  [[ $line =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] && export "${line?}"
done < "$secrets"

module load cuda/12.8
ulimit -l unlimited

export PATH=/shared/venv/bin:"$PATH" PYTHONUNBUFFERED=1
export NCCL_IB_HCA=mlx5
export WORDS='a '"'"'b'"'"' $c'
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # srun does not take it over from sbatch by itself
command -v dipole >/dev/null || { say "no dipole in /shared/venv on $(hostname): see launch.venv"; finish 2; }

words=(dipole index build --embeddings /shared/runs/tldr/embeddings --out /shared/runs/tldr/index --factory auto --wanted-recall 0.95)
say "job ${SLURM_JOB_ID:-} on ${SLURM_JOB_NODELIST:-}, restart ${SLURM_RESTART_COUNT:-0}: ${words[*]}"

# The job is told to stop by a signal: passed on, since bash would only note it.
"${words[@]}" &
child=$!
told=
trap 'told=yes; kill -s TERM "$child" 2>/dev/null' TERM INT USR1
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
say "ended with exit code $code"

# 75: stopped in good order, by the time limit or a preemption. What a person cancels is no longer RUNNING.
state=$(scontrol show job -o "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z_]*')
if [ "$state" = JobState=RUNNING ] && { [ "$code" -eq 75 ] || { [ -n "$told" ] && [ "$code" -ne 0 ]; }; }; then
  if [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
    trap '' TERM
    say "back into the queue"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60  # which ends this script
  fi
  say "queued again 50 times already; raise slurm.requeues, and submit this script again to go on"
fi
finish "$code"
