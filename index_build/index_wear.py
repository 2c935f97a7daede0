"""How far an index is from a fresh one: dead rows, added rows, lists grown uneven, vectors far from their lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index_build.faiss_shape import inverted
from index_build.recall import Recall
from index_build.slots import Slots

Float32s = NDArray[np.float32]

MOST_DEAD_SHARE = 0.2
"""Dead rows are passed over one by one: a fifth of them costs a fifth of the search."""
MOST_ADDED_SHARE = 0.5
"""Of the passages, those that the lists were not made for."""
MOST_IMBALANCE = 1.5
"""Times the imbalance at the build; a probed list is as slow as it is long."""
MOST_DISTANCE = 1.25
"""Times the mean squared distance to the list's centre that the rows had at the build."""

SAMPLE_ROWS = 2_000


def wear_of(
    index: faiss.Index, slots: Slots, built: Mapping[str, float], rows: Float32s, added: int
) -> dict[str, float]:
    """Measure an index.

    Args:
        index: its FAISS index.
        slots: of the index.
        built: what this function said when the index was built; empty for one that is being built.
        rows: a sample of the vectors, at a build of all, later of those that were added.
        added: slots since the build.

    Returns:
        `dead_share` of the slots, `added_share` of them since the build; with lists also `imbalance` (1 for lists of
        one length) and `distance` to their centres, each also as it was at the build.
    """
    found = {
        "dead_share": round(slots.dead / max(len(slots), 1), 6),
        "added_share": round(added / max(len(slots), 1), 6),
        "slots_built": built.get("slots_built", float(len(slots))),
    }
    lists = inverted(index)
    if lists is None:
        return found
    now = {"imbalance": round(float(lists.invlists.imbalance_factor()), 4)}
    if len(rows):
        now["distance"] = round(_distance(index, rows), 6)
    elif "distance" in built:
        now["distance"] = built["distance"]
    return {**found, **now, **{f"{name}_built": built.get(f"{name}_built", value) for name, value in now.items()}}


def why_rebuild(wear: Mapping[str, float], recall: Recall, least_recall: float) -> str:
    """Return why the index should be built anew; empty where nothing has passed its bound.

    Args:
        wear: see `wear_of`.
        recall: as it is now.
        least_recall: what was wanted, or was had, if that was less.
    """
    causes = []
    if wear["dead_share"] > MOST_DEAD_SHARE:
        causes.append(f"{wear['dead_share']:.0%} of its rows are dead (bound {MOST_DEAD_SHARE:.0%})")
    if wear["added_share"] > MOST_ADDED_SHARE:
        causes.append(f"{wear['added_share']:.0%} of its rows came since it was built (bound {MOST_ADDED_SHARE:.0%})")
    for name, what, bound in (
        ("imbalance", "its lists have grown uneven, their imbalance is", MOST_IMBALANCE),
        ("distance", "what was added lies far from its lists, the squared distance is", MOST_DISTANCE),
    ):
        before = wear.get(f"{name}_built", 0.0)
        if before > 0 and wear[name] > bound * before:
            causes.append(f"{what} {wear[name] / before:.2f} times that of the build (bound {bound:g})")
    if recall.high < least_recall:
        causes.append(
            f"its recall is {recall.value:.3f}, at most {recall.high:.3f}, and was to be {least_recall:.3f}"
        )
    return "; ".join(causes)


def _distance(index: faiss.Index, rows: Float32s) -> float:
    """Return the mean squared distance of vectors to the centre of the list that they are in."""
    lists = inverted(index)
    assert lists is not None
    whole: Any = faiss.downcast_index(index)
    if isinstance(whole, faiss.IndexRefine):
        whole = faiss.downcast_index(whole.base_index)
    if isinstance(whole, faiss.IndexPreTransform):
        chain: Any = whole.chain
        for at in range(chain.size()):
            rows = faiss.downcast_VectorTransform(chain.at(at)).apply(rows)
    _, nearest = lists.quantizer.search(rows, 1)
    centres = lists.quantizer.reconstruct_batch(nearest[:, 0])
    return float(np.square(rows - centres).sum(axis=1).mean())
