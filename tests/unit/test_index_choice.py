"""What is chosen from size, dimension, memory and wanted recall, and how it is explained."""

from __future__ import annotations

import pytest

from data_shards.errors import UserError
from index_build.index_choice import WORKING_BYTES, budget_bytes, choose, free_memory, lists_for
from index_build.index_config import IndexConfig

MILLION = 1_000_000
GIB = 1 << 30


def chosen(rows: int = MILLION, dim: int = 384, memory_gib: float = 64.0, **wishes) -> tuple[str, bool, str]:
    found = choose(rows, dim, IndexConfig(memory_gib=memory_gib, **wishes))
    assert found.memory_bytes <= memory_gib * GIB
    return found.factory, found.on_disk, found.why


def test_number_of_lists() -> None:
    assert lists_for(6_704) == "IVF128"  # 2 * sqrt(6704) = 164, nearest power of two 128
    assert lists_for(MILLION) == "IVF2048"
    assert lists_for(1_500) == "IVF32"  # 2 * sqrt(1500) = 77: 64 lists would leave k-means 23 rows each
    assert lists_for(1_000 * MILLION) == "IVF65536_HNSW32"  # so many centroids are found by a graph


def test_few_vectors_are_searched_exactly() -> None:
    factory, on_disk, why = chosen(5_000)
    assert (factory, on_disk) == ("Flat", False)
    assert "5,000 vectors are searched exactly" in why
    assert chosen(5_001)[0] == "IVF128,SQfp16"


def test_codes_get_coarser_as_memory_gets_less_and_no_coarser_than_recall_allows() -> None:
    assert chosen(memory_gib=2.0)[0] == "IVF2048,SQfp16"
    factory, _, why = chosen(memory_gib=1.0)
    assert factory == "IVF2048,SQ8"
    # 1M * (768 + 8) bytes and 288 MiB
    assert "1.01 GiB with SQfp16 exceed the budget of 1.00 GiB; SQ8 codes fit, with 0.65 GiB" in why
    assert chosen(memory_gib=0.6, wanted_recall=0.9)[0] == "IVF2048,RaBitQ6"
    assert chosen(memory_gib=0.5, wanted_recall=0.8)[0] == "IVF2048,RaBitQ4"
    assert chosen(memory_gib=1.0, wanted_recall=0.99)[:2] == ("IVF2048,SQfp16", True)


def test_what_does_not_fit_stays_on_disk() -> None:
    factory, on_disk, why = chosen(memory_gib=0.6)
    assert (factory, on_disk) == ("IVF2048,SQfp16", True)
    assert "coarser codes do not reach a recall of 0.95" in why
    assert "stay on disk: 0.73 GiB" in why
    with pytest.raises(UserError, match=r"1,000,000 vectors of 384 dimensions do not fit: .*give more memory"):
        chosen(memory_gib=0.4, on_disk="never")
    with pytest.raises(UserError, match="even with its lists on disk .* takes 0.28 GiB of memory"):
        chosen(memory_gib=0.1)


def test_latency_takes_a_graph_where_it_fits() -> None:
    assert chosen(prefer="latency")[0] == "HNSW32,SQfp16"
    factory, _, why = chosen(prefer="latency", memory_gib=1.2)
    assert factory == "IVF2048,PQ192x4fs,Refine(SQfp16)"
    assert "1.25 GiB of a graph exceed the budget of 1.20 GiB" in why
    assert "takes too long to build" in chosen(10 * MILLION, prefer="latency")[2]
    assert chosen(prefer="latency", memory_gib=0.7)[0] == "IVF2048,SQ8"


def test_a_given_factory_is_taken_and_goes_on_disk_or_is_refused_where_it_does_not_fit() -> None:
    assert chosen(factory="IVF100,SQ8")[:2] == ("IVF100,SQ8", False)
    factory, on_disk, why = chosen(factory="IVF100,SQ8", memory_gib=0.5)
    assert (factory, on_disk) == ("IVF100,SQ8", True)
    assert "as given; 0.65 GiB exceed the budget of 0.50 GiB: on disk" in why
    with pytest.raises(
        UserError, match=r"'HNSW32' takes .* GiB for 1,000,000 vectors of 384 dimensions, and the bud"
    ):
        chosen(factory="HNSW32", memory_gib=1.0)
    with pytest.raises(
        UserError, match=r"'HNSW32' cannot lie on disk: only inverted lists .* such as IVF2048,SQfp16"
    ):
        chosen(factory="HNSW32", on_disk="always")
    with pytest.raises(UserError, match="'Nonsense' cannot be built on 1000000 vectors of 384: could not parse"):
        chosen(factory="Nonsense")


def test_a_billion_on_one_machine() -> None:
    assert chosen(1_000 * MILLION)[:2] == ("IVF65536_HNSW32,SQfp16", True)


def test_without_a_budget_the_machine_gives_it() -> None:
    assert WORKING_BYTES < 0.9 * free_memory() < 2**50
    assert budget_bytes(IndexConfig(memory_gib=1.5)) == 3 << 29
    with pytest.raises(UserError, match="index.memory_gib is 0.0, wanted above 0"):
        IndexConfig(memory_gib=0.0)
