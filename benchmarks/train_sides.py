"""Our side of the training benchmarks: the trainer's own loader, step, engine and optimiser in one process."""

from __future__ import annotations

from pathlib import Path

from data_shards.beir import BeirFolder
from data_shards.docstrings import write_docstring_data
from data_shards.reader import PairDataset
from data_shards.samples import Pair
from data_shards.writer import ShardWriter
from encoder.attention import Attention
from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot
from train.batches import BatchConfig, BatchLoader
from train.engine import EngineConfig, Precision, start_engine
from train.grad_cache import train_step
from train.objective import LossConfig, Objective
from train.schedule import OptimizerConfig

RATE = 1e-4
_CHUNK_COST = 256


def shards_of(beir: Path | None, split: str, folder: Path) -> PairDataset:
    """Write the pairs of a BEIR split, or the standard library's docstrings, as shards."""
    if beir is None:
        return PairDataset(write_docstring_data(folder / "docstrings").train)
    source = BeirFolder(beir)
    passages = {passage.id: passage for passage in source.corpus()}
    queries = source.queries()
    with ShardWriter(folder / "pairs", "pairs") as writer:
        for name, judged in source.qrels(split).items():
            positives = tuple(passages[passage] for passage, grade in judged.items() if grade > 0)
            if positives:
                writer.add(Pair(query_id=name, query=queries[name], positives=positives[:1]))
    return PairDataset(folder / "pairs")


def random_model(
    data: PairDataset, folder: Path, *, layers: int, width: int, vocabulary: int = 30_000, max_tokens: int = 256
) -> Path:
    """Write an untrained BERT with a tokenizer for these pairs."""
    texts = [text for pair in data for text in (pair.query, pair.positives[0].content)]
    scratch = ScratchConfig(layers=layers, width=width, heads=max(2, width // 64), vocab_size=vocabulary)
    save_snapshot(scratch_encoder(scratch, EncoderSettings(max_tokens=max_tokens), texts, seed=0), folder / "model")
    return folder / "model"


class Ours:
    """A trainer without the loop around it."""

    def __init__(
        self,
        data: PairDataset,
        model: Path,
        *,
        batch: int,
        precision: Precision,
        tokens_per_chunk: int,
        attention: Attention = "auto",
    ) -> None:
        encoder = load_encoder(model).train()
        config = EngineConfig(precision=precision, attention=attention)
        self._engine = start_engine(encoder, config, OptimizerConfig(learning_rate=RATE, max_grad_norm=0.0))
        self._objective = Objective(LossConfig(temperature=0.05), device=self._engine.device)
        batches = BatchConfig(
            batch_size=batch,
            query_max_tokens=encoder.settings.max_tokens,
            tokens_per_chunk=tokens_per_chunk,
            chunk_cost_tokens=_CHUNK_COST,
        )
        self._loader = BatchLoader(
            dataset=data,
            order=data.order(batch_size=batch, seed=0),
            encoder=encoder,
            config=batches.on(self._engine.device, precision),
            rank=0,
            world=1,
        )
        self._step = 0

    def train(self, steps: int, *, keep_graphs: bool) -> None:
        """Train on the next steps of the order."""
        first, self._step = self._step, self._step + steps
        for parts in self._loader.steps(first, self._step):
            train_step(self._engine, parts, self._objective, seed=0, keep_graphs=keep_graphs)
            self._engine.step(RATE)
