"""Searching and training on GPUs. Without one no test reaches this: what is decided is tested, the work is not.

Where there is a GPU it is used, or somebody is told why not: a search that falls back to the CPU by itself would
make a refresh ten times as long and say nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import faiss

from data_shards.errors import UserError

Device = Literal["auto", "cpu", "gpu"]
Layout = Literal["replicate", "shard"]

MOST_NEIGHBOURS = 2_048
"""FAISS's kernels select no more, neighbours or probed lists."""


def gpus_to_use(device: Device) -> int:
    """Return on how many GPUs to search; 0 is the CPU.

    Args:
        device: `auto` takes GPUs where there are any.

    Raises:
        UserError: there are GPUs and FAISS cannot use them, or none is there and one was asked for.
    """
    if device == "cpu":
        return 0
    able = _faiss_gpus()
    if able:
        return able
    present = _cuda_devices()
    if present:
        raise UserError(
            f"this machine has {present} GPUs, but this FAISS is built for the CPU; install faiss-gpu "
            '(`make setup GPU=1`), or set index.device = "cpu" to search there'
        )
    if device == "gpu":
        raise UserError('index.device is "gpu", but this machine has no GPU; set it to "auto" or "cpu"')
    return 0


def check_depth(depth: int, gpus: int) -> None:
    """Refuse a search that is too deep for a GPU.

    Raises:
        UserError: with what to change.
    """
    if gpus and depth > MOST_NEIGHBOURS:
        raise UserError(
            f"mining.depth is {depth}, and on a GPU FAISS finds at most {MOST_NEIGHBOURS} neighbours; "
            'lower it, or set index.device = "cpu"'
        )


def to_gpus(index: faiss.Index, gpus: int, layout: Layout) -> faiss.Index:
    """Return a copy of an index on the GPUs; search parameters that were set go with it.

    Args:
        index: on the CPU.
        gpus: see `gpus_to_use`.
        layout: `replicate` puts all of it on each GPU, which then share the queries; `shard` cuts it up.

    Raises:
        UserError: FAISS cannot, such as for want of memory.
    """
    options: Any = faiss.GpuMultipleClonerOptions()
    options.shard = layout == "shard"
    options.useFloat16 = True  # embedding sets are float16: nothing is lost
    try:
        return faiss.index_cpu_to_all_gpus(index, co=options, ngpu=gpus)
    except RuntimeError as error:
        raise UserError(
            f"the index does not go onto {gpus} GPUs: {str(error).strip().splitlines()[-1]}; "
            'set index.gpu_layout = "shard", or index.device = "cpu"'
        ) from error


def train_on_gpus(index: faiss.Index, device: Device) -> bool:
    """Let the k-means of an index that is about to be trained run on GPUs, where FAISS can use some.

    It is by far the longest part of training, and gives lists of the same kind. cuVS does it where the wheel has it.

    Returns:
        Whether it will.

    Raises:
        UserError: GPUs were asked for and FAISS has none.
    """
    gpus = _faiss_gpus() if device != "cpu" else 0
    if device == "gpu" and not gpus:
        gpus = gpus_to_use(device)
    lists = faiss.try_extract_index_ivf(index)
    if not gpus or lists is None:
        return False
    options: Any = faiss.GpuMultipleClonerOptions()
    if "CUVS" in faiss.get_compile_options() and hasattr(options, "use_cuvs"):
        options.use_cuvs = True
    flat = faiss.IndexFlatIP if lists.metric_type == faiss.METRIC_INNER_PRODUCT else faiss.IndexFlatL2
    lists.clustering_index = faiss.index_cpu_to_all_gpus(flat(lists.d), co=options, ngpu=gpus)
    return True


def _faiss_gpus() -> int:
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
