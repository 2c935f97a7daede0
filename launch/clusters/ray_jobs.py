"""A Ray cluster, by Ray's own job client: all jobs of a launch are one job there."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from data_shards.errors import UserError
from data_shards.remote.transfer import in_a_line, without_secrets
from launch.clusters.folder import Launch, read_section
from launch.clusters.place import CHAIN, chain_rows
from launch.clusters.sections import RaySection

_STARTS_WITHIN_S = 60.0


class RayJobs:
    """Jobs of a Ray cluster: see `Place`. RAY_AUTH_TOKEN and RAY_AUTH_MODE are taken from the environment."""

    def check(self, made: Launch) -> None:
        """Ask whether the cluster answers."""
        with _client(made) as client:
            client.list_jobs()

    def submit(self, made: Launch) -> Launch:
        """Submit the chain of all jobs."""
        asked = read_section(made, RaySection, "ray")
        with _client(made) as client:
            number = _once_up(
                client.submit_job,
                entrypoint=f"bash {shlex.quote(str(made.script(CHAIN)))}",
                submission_id=f"dipole-{made.name}",
                # The folder goes along, so that what was launched can be read in the cluster too; scripts name it
                # where it lies on the shared disk, and write there.
                runtime_env={"working_dir": str(made.folder), "excludes": ["logs", "code.tar.gz"]},
                entrypoint_num_cpus=asked.cpus or None,
                entrypoint_num_gpus=asked.gpus or None,
                metadata={"launch": made.name},
            )
        made = replace(made, jobs=tuple(replace(job, id=number) for job in made.jobs))
        made.save()
        return made

    def rows(self, made: Launch) -> list[dict[str, Any]]:
        """See `Place`."""
        number = made.jobs[0].id
        if number is None:
            return chain_rows(made, "LOST")
        with _client(made) as client:
            try:
                info = client.get_job_info(number)
            except RuntimeError as error:
                if "404" in str(error):  # of an earlier life of the cluster
                    return chain_rows(made, "LOST")
                raise
        rows = chain_rows(made, str(info.status.value))
        if info.message and str(info.status.value) == "FAILED":
            rows[-1]["reason"] = without_secrets(info.message.strip().splitlines()[0])
        return rows

    def cancel(self, made: Launch) -> None:
        """See `Place`; Ray sends SIGTERM, and kills what is still there some seconds later."""
        number = made.jobs[0].id
        if number is not None:
            with _client(made) as client:
                client.stop_job(number)


def _once_up(submit: Callable[..., str], **what: Any) -> str:
    """Submit, waiting for a cluster whose head has answered but whose agents are still starting."""
    deadline = time.monotonic() + _STARTS_WITHIN_S
    while True:
        try:
            return submit(**what)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1.0)


@contextmanager
def _client(made: Launch) -> Iterator[Any]:
    """Yield Ray's client; whatever it raises becomes one line."""
    from ray.job_submission import JobSubmissionClient

    address = read_section(made, RaySection, "ray").address
    quiet = logging.getLogger("ray.dashboard")
    quiet.setLevel(logging.WARNING)
    try:
        yield JobSubmissionClient(address)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the Ray cluster at {without_secrets(address)} refuses or does not answer: {in_a_line(error)}; check "
            "ray.address (that of its dashboard, port 8265 by default), and RAY_AUTH_TOKEN where it wants a token"
        ) from error
