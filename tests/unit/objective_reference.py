"""A global batch with everything that can confuse the objective, and a slow reference: one pair, one score at a time.

Nothing of the code under test is used: no tensors of masks, no blocks, no gathering. Only autograd is shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from train.objective import Labels, LossConfig

DIM = 6


@dataclass(frozen=True)
class Text:
    """A passage of the batch."""

    owner: int
    positive: bool
    hash: int
    weight: float
    teacher: float


@dataclass(frozen=True)
class Problem:
    """All queries and passages, and which rank has which queries."""

    query_QD: Tensor
    passage_ND: Tensor
    base_query_QD: Tensor
    base_passage_ND: Tensor
    query_hash: list[int]
    known: list[set[int]]
    """The hashes of each query's known positives."""
    texts: list[Text]

    def owned(self, query: int, *, positive: bool) -> list[int]:
        """Return the places of a query's positives or negatives."""
        return [j for j, text in enumerate(self.texts) if text.owner == query and text.positive == positive]

    def part(self, queries: range) -> tuple[Labels, list[int]]:
        """Return the labels of the rank that has these queries, and the places of its passages."""
        places = [j for j, text in enumerate(self.texts) if text.owner in queries]
        mine = [self.texts[j] for j in places]
        most = max((len(self.known[query]) for query in queries), default=1)
        known = [sorted(self.known[query]) for query in queries]
        labels = Labels(
            query_hash_b=torch.tensor([self.query_hash[query] for query in queries], dtype=torch.int64),
            positive_hash_bK=torch.tensor([(row * most)[:most] for row in known], dtype=torch.int64).reshape(
                len(queries), most
            ),
            passage_hash_n=torch.tensor([text.hash for text in mine], dtype=torch.int64),
            owner_n=torch.tensor([text.owner - queries.start for text in mine], dtype=torch.int64),
            positive_n=torch.tensor([text.positive for text in mine], dtype=torch.bool),
            weight_n=torch.tensor([text.weight for text in mine], dtype=torch.float64),
            teacher_n=torch.tensor([text.teacher for text in mine], dtype=torch.float64),
        )
        return labels, places

    def whole(self) -> Labels:
        """Return the labels where one process has all."""
        return self.part(range(len(self.query_hash)))[0]


def problem(*, queries: int = 8, seed: int = 0) -> Problem:
    """Make uneven numbers of positives and negatives, interleaved; equal queries, duplicates, shared positives."""
    draw = torch.Generator().manual_seed(seed)
    texts = []
    for query in range(queries):
        for turn in range(1 + query % 3 // 2 + query % 2):
            relevance = float(torch.rand((), generator=draw)) + 0.1
            texts.append(Text(query, True, 1000 + 10 * query + turn, relevance, 0.0))
        texts += [Text(query, False, 2000 + 10 * query + turn, 9.0, 0.0) for turn in range(query % 4)]
    texts = [texts[j] for j in torch.randperm(len(texts), generator=draw).tolist()]
    known = [{text.hash for text in texts if text.owner == query and text.positive} for query in range(queries)]
    known[0] |= known[queries - 1]  # a positive of a query on another rank
    query_hash = [100 + query for query in range(queries)]
    query_hash[queries // 2] = query_hash[1]  # another rank asks the same
    copied = next(iter(sorted(known[2])))
    texts = [
        Text(
            text.owner,
            text.positive,
            copied if not text.positive and text.owner == queries - 1 and text.hash % 10 == 0 else text.hash,
            text.weight,
            float(torch.randn((), generator=draw)) * 3,
        )
        for text in texts
    ]
    known[queries - 2] |= {9000, 9001, 9002}  # positives that are not in the batch: the ranks differ in K
    known[3].add(query_hash[0])  # a text that is a query here and a positive there

    def vectors(count: int) -> Tensor:
        made = torch.randn(count, DIM, dtype=torch.float64, generator=draw)
        return torch.nn.functional.normalize(made + 0.7, dim=1)

    return Problem(
        query_QD=vectors(queries),
        passage_ND=vectors(len(texts)),
        base_query_QD=vectors(queries),
        base_passage_ND=vectors(len(texts)),
        query_hash=query_hash,
        known=known,
        texts=texts,
    )


def reference(
    made: Problem, config: LossConfig, *, log_scale: float | None = None
) -> tuple[float, dict[str, Tensor]]:
    """Return the global loss and its gradients: `query`, `passage`, and `log_scale`, one over temperature's log."""
    query, passage = made.query_QD.clone().requires_grad_(), made.passage_ND.clone().requires_grad_()
    scale = torch.tensor(1 / config.temperature, dtype=torch.float64).log()
    if log_scale is not None:
        scale = torch.tensor(log_scale, dtype=torch.float64)
    scale.requires_grad_()
    weights = config.matryoshka_weights or (1.0,) * len(config.matryoshka_dims)
    sizes = {DIM: 1.0} | dict(zip(config.matryoshka_dims, weights, strict=True))
    pairs = [(text.owner, j) for j, text in enumerate(made.texts) if text.positive]
    total = torch.zeros((), dtype=torch.float64)
    for size, factor in sizes.items():
        q = [v if size == DIM else v[:size] / v[:size].norm() for v in query]
        p = [v if size == DIM else v[:size] / v[:size].norm() for v in passage]
        view = _View(made, config, q, p, scale)
        for o, i in pairs:
            loss = view.triplet(o, i) if config.kind == "triplet" else view.infonce(o, i)
            if config.distill == "kl":
                loss = loss + config.distill_weight * view.divergence(o)
            if config.distill == "margin_mse":
                loss = loss + config.distill_weight * view.margin_error(o, i)
            total = total + factor * made.texts[i].weight * loss
    if config.base_weight:
        for o, i in pairs:
            own = made.owned(o, positive=True) + made.owned(o, positive=False)
            passages = sum(((passage[j] - made.base_passage_ND[j]) ** 2).sum() for j in own) / len(own)
            queries = ((query[o] - made.base_query_QD[o]) ** 2).sum()
            total = total + config.base_weight * made.texts[i].weight * (queries + passages) / 2
    loss = total / sum(made.texts[i].weight for _, i in pairs)
    loss.backward()
    gradients = {"query": query.grad, "passage": passage.grad, "log_scale": scale.grad}
    return float(loss.detach()), {name: torch.zeros(()) if g is None else g for name, g in gradients.items()}


@dataclass(frozen=True)
class _View:
    """The batch at one size of its vectors."""

    made: Problem
    config: LossConfig
    q: list[Tensor]
    p: list[Tensor]
    log_scale: Tensor

    def infonce(self, o: int, i: int) -> Tensor:
        made, config = self.made, self.config
        right = self._logit(self.q[o] @ self.p[i])
        terms = [right]
        for j, text in enumerate(made.texts):
            if j != i and not self._unseen(o, text) and not self._false(o, self.q[o] @ self.p[j], self._known(o, j)):
                terms.append(self._logit(self.q[o] @ self.p[j]))
        if config.query_query:
            for j in range(len(self.q)):
                same = made.query_hash[j] == made.query_hash[o] or made.query_hash[j] in made.known[o]
                if j != o and not self._false(o, self.q[o] @ self.q[j], same):
                    terms.append(self._logit(self.q[o] @ self.q[j]))
        if config.passage_passage:
            for j, text in enumerate(made.texts):
                same = self._known(o, j) or text.hash == made.texts[i].hash
                if j != i and not self._unseen(o, text) and not self._false(o, self.p[i] @ self.p[j], same):
                    terms.append(self._logit(self.p[i] @ self.p[j]))
        loss = torch.logsumexp(torch.stack(terms), 0) - right
        if not config.symmetric:
            return loss
        back = [right]
        for j in range(len(self.q)):
            known = made.query_hash[j] == made.query_hash[o] or made.texts[i].hash in made.known[j]
            if j != o and not self._false(o, self.q[j] @ self.p[i], known):
                back.append(self._logit(self.q[j] @ self.p[i]))
        return (loss + torch.logsumexp(torch.stack(back), 0) - right) / 2

    def triplet(self, o: int, i: int) -> Tensor:
        seen = [
            j
            for j, text in enumerate(self.made.texts)
            if j != i and not self._unseen(o, text) and not self._false(o, self.q[o] @ self.p[j], self._known(o, j))
        ]
        hinge = {
            j: (self.q[o] @ self.p[j] - self.q[o] @ self.p[i] + self.config.triplet_margin).clamp(min=0) for j in seen
        }
        own = [hinge[j] for j in seen if j in self.made.owned(o, positive=False)]
        if own:
            return torch.stack(own).mean()
        return max(hinge.values(), key=Tensor.item) if hinge else torch.zeros((), dtype=torch.float64)

    def divergence(self, o: int) -> Tensor:
        own = [
            j
            for j in self.made.owned(o, positive=True) + self.made.owned(o, positive=False)
            if self.made.texts[j].teacher == self.made.texts[j].teacher
        ]
        student = torch.stack([self._logit(self.q[o] @ self.p[j]) for j in own]).softmax(0)
        teacher = [self.made.texts[j].teacher / self.config.distill_temperature for j in own]
        target = torch.tensor(teacher, dtype=torch.float64).softmax(0)
        return sum((t * (t.log() - s.log()) for t, s in zip(target, student, strict=True)), torch.zeros(()))

    def margin_error(self, o: int, i: int) -> Tensor:
        texts = self.made.texts
        errors = []
        for j in self.made.owned(o, positive=False):
            if texts[j].teacher == texts[j].teacher:
                student = self._logit(self.q[o] @ self.p[i]) - self._logit(self.q[o] @ self.p[j])
                errors.append(
                    (student - (texts[i].teacher - texts[j].teacher) / self.config.distill_temperature) ** 2
                )
        return torch.stack(errors).mean() if errors else torch.zeros((), dtype=torch.float64)

    def _logit(self, score: Tensor) -> Tensor:
        return score * self.log_scale.exp()

    def _known(self, o: int, j: int) -> bool:
        text = self.made.texts[j]
        equal = text.positive and self.made.query_hash[text.owner] == self.made.query_hash[o]
        return equal or text.hash in self.made.known[o]

    def _unseen(self, o: int, text: Text) -> bool:
        return self.config.hard_negatives == "own" and not text.positive and text.owner != o

    def _false(self, o: int, score: Tensor, known: bool) -> bool:
        if self.config.mask_duplicates and known:
            return True
        if self.config.mask_margin is None:
            return False
        best = max(float((self.q[o] @ self.p[j]).detach()) for j in self.made.owned(o, positive=True))
        return float(score.detach()) > best + self.config.mask_margin
