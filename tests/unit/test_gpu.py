"""Where mining searches: what is decided and refused. The search on a GPU itself is tested where there is one."""

from __future__ import annotations

import faiss
import pytest

from data_shards.errors import UserError
from index_build import gpu
from index_build.gpu import check_depth, gpus_to_use


def machine(monkeypatch: pytest.MonkeyPatch, *, faiss_gpus: int, cuda: int) -> None:
    """Stand in for a machine: how many GPUs FAISS can use, and how many there are."""
    monkeypatch.setattr(gpu, "_faiss_gpus", lambda: faiss_gpus)
    monkeypatch.setattr(gpu, "_cuda_devices", lambda: cuda)


@pytest.mark.parametrize(("device", "used"), [("auto", 4), ("gpu", 4), ("cpu", 0)])
def test_gpus_are_used_where_faiss_can(monkeypatch: pytest.MonkeyPatch, device: gpu.Device, used: int) -> None:
    machine(monkeypatch, faiss_gpus=4, cuda=4)
    assert gpus_to_use(device) == used


def test_without_gpus_the_cpu_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, faiss_gpus=0, cuda=0)
    assert gpus_to_use("auto") == gpus_to_use("cpu") == 0
    with pytest.raises(UserError, match='index.device is "gpu", but this machine has no GPU; set it to "auto"'):
        gpus_to_use("gpu")


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_a_faiss_that_cannot_use_the_gpus_is_never_a_silent_fall(
    monkeypatch: pytest.MonkeyPatch, device: gpu.Device
) -> None:
    machine(monkeypatch, faiss_gpus=0, cuda=2)
    with pytest.raises(UserError, match="2 GPUs, but this FAISS is built for the CPU; install faiss-gpu"):
        gpus_to_use(device)
    assert gpus_to_use("cpu") == 0


def test_depth_beyond_a_gpus_limit_is_refused_in_words() -> None:
    check_depth(2_048, 1)
    check_depth(5_000, 0)
    with pytest.raises(UserError, match="mining.depth is 2049, and on a GPU FAISS finds at most 2048 neighbours"):
        check_depth(2_049, 1)


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS is built for GPUs")
def test_a_faiss_for_the_cpu_has_no_gpus() -> None:
    """Though it does have the function that counts them."""
    assert hasattr(faiss, "get_num_gpus")
    assert gpu._faiss_gpus() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not gpu._faiss_gpus(), reason="needs a CUDA device and faiss-gpu")
@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQfp16"])
@pytest.mark.parametrize("layout", ["replicate", "shard"])
def test_a_gpu_finds_what_the_cpu_finds(factory: str, layout: gpu.Layout) -> None:
    import numpy as np

    vectors = np.random.default_rng(0).normal(size=(4_000, 32)).astype(np.float16).astype(np.float32)
    index = faiss.index_factory(32, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    faiss.ParameterSpace().set_index_parameters(index, "nprobe=16" if factory != "Flat" else "")
    _, wanted = index.search(vectors[:50], 10)
    _, found = gpu.to_gpus(index, gpu._faiss_gpus(), layout).search(vectors[:50], 10)
    assert np.mean([len(set(left) & set(right)) / 10 for left, right in zip(wanted, found, strict=True)]) > 0.95
