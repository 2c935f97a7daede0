"""How training ranks are started: torchrun on this machine, or on every node of a Slurm allocation."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass

from data_shards.errors import UserError
from launch.config import RunConfig

_HANDLED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""torchrun dies of SIGUSR1 by default, which a queue sends to all of a step's processes."""
_CLIENT_TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class RankCommand:
    """What starts all ranks."""

    words: list[str]
    """The command."""
    stop_signal: signal.Signals = signal.SIGTERM
    """What asks it to stop."""


def check_nodes(config: RunConfig) -> None:
    """Refuse ranks on several machines where there is no allocation of so many.

    Raises:
        UserError: there is none, or it is smaller.
    """
    nodes = config.run.nodes
    if nodes == 1:
        return
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            f"run.nodes = {nodes} needs a Slurm allocation of {nodes} nodes, and this is none; submit it with "
            "`dipole launch slurm`, or set run.nodes to 1"
        )
    given = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if given < nodes:
        raise UserError(f"run.nodes = {nodes}, and this Slurm allocation has {given}; set run.nodes to {given}")


def rank_command(config: RunConfig, worker: list[str], *, shutdown_s: int) -> RankCommand:
    """Return what starts the ranks.

    Args:
        config: of the run.
        worker: the module that is a rank, and its arguments.
        shutdown_s: how long ranks that were asked to stop may take.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    torchrun += ["--nproc-per-node", str(config.run.ranks_per_node), "--shutdown-timeout", str(shutdown_s)]
    torchrun += ["--signals-to-handle", _HANDLED]
    if config.run.nodes == 1:
        return RankCommand(words=[*torchrun, "--standalone", "--module", *worker])
    nodes = str(config.run.nodes)
    torchrun += ["--nnodes", nodes, "--master-addr", _own_address(), "--master-port", str(_free_port())]
    # srun ends a step at SIGTERM by force; SIGUSR1 it hands to all tasks, whose torchrun knows it.
    return RankCommand(
        words=[
            *("srun", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1", "--overlap"),
            # One node's torchrun tells the others itself, and they may need a moment for their logs.
            *("--kill-on-bad-exit=0", "--wait=0"),
            *("bash", "-c", f'exec {shlex.join(torchrun)} --node-rank "$SLURM_NODEID" --module {shlex.join(worker)}'),
        ],
        stop_signal=signal.SIGUSR1,
    )


def _own_address() -> str:
    """Return how Slurm's other nodes reach this one: a host's own name may resolve to loopback there."""
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    done = subprocess.run(
        ["scontrol", "show", "node", "-o", node],
        capture_output=True,
        text=True,
        timeout=_CLIENT_TIMEOUT_S,
        check=False,
    )
    fields = dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
    if done.returncode or "NodeAddr" not in fields:
        raise UserError(
            f"Slurm does not tell the address of node {node}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return fields["NodeAddr"]


def _free_port() -> int:
    """Return a port that nobody uses at this moment; the first rank's torchrun takes it seconds later."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        return int(listening.getsockname()[1])
