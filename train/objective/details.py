"""What a logged step shows beyond the loss: histograms of scores, alignment and uniformity.

Sums, like the rest of `LossOutput.sums`; over ranks, and then:

- `positive_score_histogram`, `negative_score_histogram`: counts in `BINS` equal bins over [-1, 1], of the queries'
  positives and of their own hard negatives.
- `alignment` over `positives`: mean squared distance of query and positive.
- the logarithm of `uniformity` over `uniformity_pairs`: mean exp(−2 d²) over pairs of passages.
- `temperature` over `queries`.

Source: alignment and uniformity: Wang and Isola 2020, equations 2 and 3 (t = 2).
Axes: b queries and n passages of this rank, m of those passages, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.objective.batch import Batch
from train.objective.labels import Labels
from train.objective.own import select

BINS = 40
_UNIFORMITY_PASSAGES = 512


@torch.no_grad()
def logged_details(batch: Batch, labels: Labels, temperature: float) -> dict[str, Tensor]:
    """Return the sums that only logged steps show, of this rank."""
    query_nD = select(batch.query_bD, labels.owner_n)
    score_n = (query_nD * batch.passage_nD).sum(1)
    distance_n = (query_nD - batch.passage_nD).square().sum(1)
    uniformity, pairs = _uniformity(batch.passage_nD)
    return {
        "positive_score_histogram": _histogram(score_n[labels.positive_n]),
        "negative_score_histogram": _histogram(score_n[~labels.positive_n]),
        "alignment": distance_n[labels.positive_n].sum(),
        "positives": score_n.new_tensor(len(batch.pairs)),
        "uniformity": uniformity,
        "uniformity_pairs": score_n.new_tensor(pairs),
        "temperature": score_n.new_tensor(len(batch.query_bD)) * temperature,
    }


def _histogram(score_m: Tensor) -> Tensor:
    """Count; rounding above 1 or below −1 stays in the outermost bins, and what is no number in none.

    The check of the loss is to end a run that diverged, and not a bin that does not exist.
    """
    bin_m = ((score_m[~score_m.isnan()] + 1) * (BINS / 2)).floor().clamp(0, BINS - 1)
    return torch.bincount(bin_m.long(), minlength=BINS).to(score_m.dtype)


def _uniformity(passage_nD: Tensor) -> tuple[Tensor, int]:
    """Return the sum over pairs of exp(−2 d²) and their number, over passages spread evenly over the rank's."""
    passage_mD = passage_nD[:: -(-len(passage_nD) // _UNIFORMITY_PASSAGES) or 1]
    return (-2 * torch.pdist(passage_mD).square()).exp().sum(), len(passage_mD) * (len(passage_mD) - 1) // 2
