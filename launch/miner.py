"""The miner of a run: serves the trainer's requests for negatives versions. `python -m launch.miner RUN`.

It sees the trainer only through files: a request comes in, a version is published. So either can be killed and
started again, and the work that was done stays done.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from data_shards.atomic import write_json
from data_shards.errors import UserError
from data_shards.negatives import published_versions
from encoder.snapshot import snapshot_step
from index_build.mine import KnownPositives, MiningReport, mine
from index_build.ray_pool import EmbedPool
from launch.config import RunConfig, load_config
from train.engine import bfloat16_pays
from train.refresh import RefreshRequest, failed_path, request_paths
from train.run_folder import RunFolder
from train.stops import die_with_parent

_log = logging.getLogger(__name__)
_POLL_S = 0.2
_NICE = 5
"""What tokenises and searches beside training gets the cores that training leaves."""
_BY_HAND_STEPS = 100
"""Steps that a refresh by hand serves where the config names no cadence."""


def main(arguments: list[str]) -> int:
    """Serve requests until ended; with `--once`, those that are there."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s miner %(levelname)s %(name)s: %(message)s")
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    run = RunFolder(Path(arguments[0]))
    once = "--once" in arguments[1:]
    config = load_config(run.config)
    if config.refresh.way == "async":
        os.nice(_NICE)
    with Miner(run, config) as miner:
        while os.getppid() != 1:  # re-parented: whoever started us is gone
            request = miner.next_request()
            if request is not None:
                _serve(miner, run, request)
            elif once:
                break
            else:
                time.sleep(_POLL_S)
    return 0


def _serve(miner: Miner, run: RunFolder, request: RefreshRequest) -> None:
    """Make one version, or leave word of why it cannot be made."""
    try:
        miner.serve(request, run.negatives)
    except Exception as error:
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_json(failed_path(run, request.version), {"cause": cause})
        raise


class Miner:
    """Keeps Ray workers, data and known positives ready between requests."""

    def __init__(self, run: RunFolder, config: RunConfig) -> None:
        """Open the data; Ray starts on entering."""
        self._run, self._config = run, config
        self._pairs = config.pair_source.open(run.quarantine("miner"))
        self._order = self._pairs.order(batch_size=config.batch.batch_size, seed=config.run.seed, config=config.order)
        self._pool = mining_pool(config)
        self._known: KnownPositives | None = None
        self._left_out: set[int] = set()

    def __enter__(self) -> Miner:
        """Start the workers."""
        self._pool.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        """End the workers."""
        self._pool.__exit__(None, None, None)

    def next_request(self) -> RefreshRequest | None:
        """Return the request to serve: in phases the oldest whose version is not published.

        Beside training it is the newest: a version that training has gone past is of no use. Those in between are
        left out, and said to be.
        """
        published = set(published_versions(self._run.negatives))
        paths = request_paths(self._run)
        if self._config.refresh.way == "async":
            waiting = sorted(version for version in paths if version > max(published, default=0))
            for version in set(waiting[:-1]) - self._left_out:
                _log.info("version %d is left out: a newer one is asked for", version)
            self._left_out.update(waiting[:-1])
            waiting = waiting[-1:]
        else:
            waiting = sorted(paths.keys() - published)
        return RefreshRequest.read(paths[waiting[0]]) if waiting else None

    @property
    def every_steps(self) -> int:
        """Steps from one refresh to the next; 0 where there is one alone."""
        return self._config.refresh.cadence(self._order, sys.maxsize).every

    def serve(self, request: RefreshRequest, root: Path) -> MiningReport:
        """Make one version: embed, index, search, filter, publish."""
        self._known = self._known or KnownPositives(self._pairs)
        _log.info("version %d for steps %d to %d", request.version, request.from_step, request.to_step)
        return mine(
            snapshot=self._run.root / request.snapshot,
            snapshot_step=request.snapshot_step,
            pool=self._pool,
            train=self._pairs,
            known=self._known,
            ordinals=self._pairs.sound(self._order.stretch(request.from_step, request.to_step)),
            corpus=Path(self._config.data.corpus),
            work_dir=self._run.root / "mining" / f"v{request.version:06d}",
            negatives_root=root,
            version=request.version,
            from_step=request.from_step,
            to_step=request.to_step,
            config=replace(self._config.mining, sources=request.sources or self._config.mining.sources),
            index_config=self._config.index,
            cache_dir=self._run.root / "mining",
        )


def request_by_hand(run: RunFolder, root: Path, *, every_steps: int) -> RefreshRequest:
    """Return a request for the steps ahead of the newest snapshot, up to where the next refresh would come."""
    snapshots = [path for path in (run.root / "snapshots").glob("*") if (path / "dipole.json").exists()]
    # The adapted one is of step 0 as well, and newer than the first.
    newest = max(snapshots, key=lambda path: (snapshot_step(path), path != run.initial, path.name))
    step = snapshot_step(newest)
    return RefreshRequest(
        version=max(published_versions(root), default=0) + 1,
        snapshot=str(newest.relative_to(run.root)),
        snapshot_step=step,
        from_step=step,
        to_step=step + (every_steps or _BY_HAND_STEPS),
    )


def mining_pool(config: RunConfig) -> EmbedPool:
    """Return the pool that a run's config asks for; mining may compute in bfloat16, since its ranks suffice."""
    import torch

    fast = bfloat16_pays(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return EmbedPool(
        workers=config.workers.count,
        threads_per_worker=config.workers.threads,
        address=config.workers.address or None,
        precision="bfloat16" if fast and config.engine.precision != "float32" else "float32",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
