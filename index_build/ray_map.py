"""Work spread over the processes of a Ray cluster, or of a Ray on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from data_shards.errors import UserError
from index_build.ray_session import ray_session

_WAITING_PER_WORKER = 2
_DEATHS_PER_JOB = 3


RunJobs = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


@contextmanager
def ray_map(workers: int, address: str | None) -> Iterator[RunJobs]:
    """Yield a function that calls another for each item on Ray, and yields results as they come.

    Args:
        workers: calls at a time, of one CPU each; where the cluster has fewer CPUs free, some wait.
        address: of an existing cluster; None starts Ray on this machine.

    Raises:
        UserError: no cluster answers, or a call ended its worker again and again.
    """
    with ray_session(workers, address):
        import ray

        def run(job: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
            call = ray.remote(_call).options(num_cpus=1, max_retries=_DEATHS_PER_JOB)
            shared = ray.put(job)
            rest = iter(items)
            running: list[Any] = []
            while True:
                for item in rest:
                    running.append(call.remote(shared, item))
                    if len(running) >= workers * _WAITING_PER_WORKER:
                        break
                if not running:
                    return
                ended, running = ray.wait(running, num_returns=1)
                yield from map(_result, ended)

        yield run


def _call(job: Callable[[Any], Any], item: Any) -> Any:
    return job(item)


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"a Ray worker was lost {_DEATHS_PER_JOB} times over one part ({reason})") from error
