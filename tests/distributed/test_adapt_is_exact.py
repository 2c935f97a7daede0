"""Invariants 1 to 3 hold for the `adapt` stage too.

On any number of ranks and any engine the same tokens are hidden, loss and gradients are those of one process on the
whole batch, and a stage that was stopped and resumed is the one that was not.

What fails here: a mean of the ranks' means (ranks hide different numbers of tokens), the loss W times too large or
small, idle passes that count, output embeddings that lost their tie to the input embeddings, texts in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForMaskedLM

from data_shards.atomic import read_json
from data_shards.reader import CorpusDataset
from encoder.masked_lm import MaskedLM, load_head
from encoder.snapshot import load_encoder
from launch.config import load_config
from launch.runs import load_job, prepare_run
from tests.distributed.ranks import run_ranks
from tests.unit.tiny import pair, passage, write_corpus, write_pairs
from train import adapt as adapt_room
from train.adapt import adapt
from train.adapt_batches import MaskedBatch, MaskedLoader
from train.collectives import rank, sum_over_ranks, world_size
from train.engine import EngineConfig, start_engine
from train.job import TrainJob
from train.masked_step import masked_step
from train.run_folder import RunFolder
from train.schedule import OptimizerConfig
from train.stops import EXIT_STOPPED, StopFlag
from train.tracker import read_metrics

pytestmark = pytest.mark.distributed
STEP = 0
_WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run ready to adapt: passages of one to twenty words, eight a step, and a projection that is not trained."""
    folder = tmp_path_factory.mktemp("adapt")
    texts = [" ".join(_WORDS[(k + j) % 12] for j in range(1 + 7 * k % 20)) for k in range(30)]
    write_corpus(folder / "corpus", (passage(f"p{k}", text) for k, text in enumerate(texts)))
    write_pairs(folder / "pairs", (pair(k) for k in range(8)))
    overrides = {
        "run.out": folder / "run",
        "data.pairs": folder / "pairs",
        "data.corpus": folder / "corpus",
        "scratch.width": 16,
        "scratch.vocab_size": 120,
        "scratch.dropout": 0.2,
        "encoder.max_tokens": 24,
        "encoder.projection_dim": 6,
        "adapt.steps": 4,
        "adapt.batch_size": 8,
        "adapt.tokens_per_chunk": 30,
        "adapt.learning_rate": 1e-2,
        "adapt.mask_share": 0.3,
        "engine.precision": "float32",
        "train.checkpoint_every_steps": 1,
        "tracker.mode": "disabled",
    }
    return prepare_run(load_config(None, [f"--{key}={value}" for key, value in overrides.items()]), resume=False)


def masked_lm(run: RunFolder, *, wide: bool) -> MaskedLM:
    encoder = load_encoder(run.initial)
    model = MaskedLM(encoder, load_head(encoder, run.adapt_head)).eval()  # no dropout: ranks draw their own
    return model.double() if wide else model


def batch_of(job: TrainJob, model: MaskedLM, rank: int, world: int) -> MaskedBatch:
    corpus = CorpusDataset(job.corpus)
    order = corpus.order(batch_size=job.adapt.batch_size, seed=job.seed, config=job.order)
    parts: dict[str, Any] = {"dataset": corpus, "order": order, "encoder": model.encoder}
    return MaskedLoader(**parts, config=job.adapt, batch=job.batch, rank=rank, world=world).load(STEP)


def hidden_texts(batch: MaskedBatch) -> list[tuple[list[int], list[int], list[int]]]:
    """Return (token ids, hidden places, their labels) of each text, sorted, so that chunks are out of sight."""
    found = []
    for chunk in batch.chunks:
        width = chunk.input_ids.shape[1]
        for row, (ids, mask) in enumerate(zip(chunk.input_ids, chunk.attention_mask, strict=True)):
            here = chunk.place_m // width == row
            found.append(
                (ids[mask.bool()].tolist(), (chunk.place_m[here] % width).tolist(), chunk.label_m[here].tolist())
            )
    return sorted(found)


def reference(job: TrainJob) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients by transformers' own model, text by text: no padding, no chunks, no head of ours."""
    model = masked_lm(job.run, wide=True)
    whole = AutoModelForMaskedLM.from_config(model.encoder.backbone.config).double().eval()
    base = {f"bert.{name}": value for name, value in model.encoder.backbone.state_dict().items()}
    whole.load_state_dict({**model.head.state_dict(), **base})
    texts = hidden_texts(batch_of(job, model, 0, 1))
    total = torch.zeros((), dtype=torch.float64)
    for ids, places, labels in texts:
        logits_TV = whole(input_ids=torch.tensor([ids])).logits[0]
        for place, label in zip(places, labels, strict=True):
            total = total - logits_TV[place].log_softmax(-1)[label]
    loss = total / sum(len(places) for _, places, _ in texts)
    loss.backward()
    found = {}
    for name, value in whole.named_parameters():
        named = name.replace("bert.", "encoder.backbone.", 1) if name.startswith("bert.") else f"head.{name}"
        assert value.grad is not None
        found[named] = value.grad
    return loss.item(), found


def _outcomes(run: RunFolder, kinds: list[str]) -> dict[str, tuple[float, dict[str, Tensor], list[Any], int]]:
    """Run in a rank: one step of each engine."""
    return {kind: _outcome(load_job(run), kind) for kind in kinds}


def _outcome(job: TrainJob, kind: str) -> tuple[float, dict[str, Tensor], list[Any], int]:
    _forget_engine()
    model = masked_lm(job.run, wide=not kind.startswith("zero"))
    config = EngineConfig(kind=kind, precision="float32")  # type: ignore[arg-type]
    engine = start_engine(model, config, OptimizerConfig(max_grad_norm=0.0))
    batch = batch_of(job, model, rank(), world_size())
    output = masked_step(engine, batch, seed=5)
    gradients = dict(_gradients(model, kind))
    loss = sum_over_ranks(output.sums)[0].item() / output.masked
    return loss, gradients, hidden_texts(batch), len(batch.chunks)


def _forget_engine() -> None:
    """Let the next engine of this process start as if it were the first."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _gradients(model: nn.Module, kind: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in model.named_parameters():
        if not value.requires_grad:
            continue
        if kind.startswith("zero"):
            from deepspeed.utils import safe_get_full_grad

            yield name, safe_get_full_grad(value).clone().cpu()
        else:
            assert value.grad is not None, name
            yield name, value.grad.full_tensor() if isinstance(value.grad, DTensor) else value.grad.clone()


def _assert_exact(run: RunFolder, kinds: list[str], ranks: int, folder: Path) -> None:
    results = run_ranks(_outcomes, ranks, folder, run, kinds)
    wanted_loss, wanted = reference(load_job(run))
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    job = load_job(run)
    whole = hidden_texts(batch_of(job, masked_lm(run, wide=False), 0, 1))
    for kind in kinds:
        tolerance = 1e-5 if kind.startswith("zero") else 1e-10
        outcomes = [result[kind] for result in results]
        assert sorted(text for _, _, texts, _ in outcomes for text in texts) == whole
        if ranks > 1:
            assert len({chunks for *_, chunks in outcomes}) > 1, "the ranks should differ in their chunks"
            hidden = {sum(len(places) for _, places, _ in texts) for _, _, texts, _ in outcomes}
            assert len(hidden) > 1, "and in their hidden tokens"
        for loss, gradients, _, _ in outcomes:
            assert loss == pytest.approx(wanted_loss, rel=tolerance), (kind, ranks)
            assert gradients.keys() == wanted.keys()
            for name, gradient in wanted.items():
                assert float((gradients[name].double() - gradient).abs().max()) <= tolerance * scale, (kind, name)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gradients_are_exact(ranks: int, run: RunFolder, tmp_path: Path) -> None:
    _assert_exact(run, ["ddp", "fsdp2"], ranks, tmp_path)


@pytest.mark.deepspeed
@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_are_exact_under_deepspeed(ranks: int, run: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    _assert_exact(run, ["zero1", "zero2", "zero3"] if ranks == 2 else ["zero2", "zero3"], ranks, tmp_path)


def _stages(run: RunFolder, folder: Path, kinds: list[tuple[str, str]]) -> None:
    """Run in a rank: the whole stage on each engine, and once more with a stop in between, after two steps."""
    for kind, precision in kinds:
        engine = EngineConfig(kind=kind, precision=precision)  # type: ignore[arg-type]
        for name in ("whole", "stopped"):
            job = replace(load_job(run), engine=engine, run=RunFolder(folder / f"{kind}-{precision}-{name}"))
            if name == "stopped":
                adapt_room.StopFlag = _StopsAfterTwo  # type: ignore[misc]
                _forget_engine()
                assert adapt(job) == EXIT_STOPPED
                adapt_room.StopFlag = StopFlag  # type: ignore[misc]
            _forget_engine()
            assert adapt(job) == 0


class _StopsAfterTwo(StopFlag):
    """Up when two steps are taken: asked once before the first, and once at the end of each."""

    asked = 0

    def asked_here(self) -> bool:
        self.asked += 1
        return self.asked == 3


def _assert_resumed(run: RunFolder, kinds: list[tuple[str, str]], folder: Path) -> None:
    for kind, precision in kinds:
        for name in ("whole", "stopped"):
            place = RunFolder(folder / f"{kind}-{precision}-{name}")
            place.adapt_head.parent.mkdir(parents=True)
            place.adapt_head.write_bytes(run.adapt_head.read_bytes())
            place.initial.parent.mkdir()
            place.initial.symlink_to(run.initial)
    run_ranks(_stages, 2, folder, run, folder, kinds)
    for kind, precision in kinds:
        whole, stopped = (RunFolder(folder / f"{kind}-{precision}-{name}") for name in ("whole", "stopped"))
        assert read_json(stopped.stopped) | {"reason": ""} == {"stage": "adapt", "step": 2, "of": 4, "reason": ""}
        rows, again = (read_metrics(place.metrics) for place in (whole, stopped))
        assert [row["step"] for row in rows] == [row["step"] for row in again] == [-4, -3, -2, -1]
        for name in ("loss", "accuracy", "lr", "grad_norm", "masked"):
            assert [row[name] for row in rows] == [row[name] for row in again], (kind, name)
        wanted, found, start = (
            load_file(path / "model.safetensors") for path in (whole.adapted, stopped.adapted, run.initial)
        )
        assert wanted.keys() == found.keys() == start.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items()), kind
        moved = [name for name, value in start.items() if not torch.equal(value, wanted[name])]
        assert len(moved) == len(start), "all of the backbone is trained"
        for encoder in map(load_encoder, (whole.adapted, run.initial)):
            assert encoder.projection is not None
        projections = [load_encoder(path).projection.weight for path in (whole.adapted, run.initial)]
        assert torch.equal(*projections), "and the projection is as it was"
        assert not whole.adapt_checkpoints.exists()


def test_a_stage_that_was_stopped_and_resumed_is_the_one_that_was_not(run: RunFolder, tmp_path: Path) -> None:
    _assert_resumed(run, [("ddp", "float32"), ("fsdp2", "float32"), ("fsdp2", "bfloat16")], tmp_path)


@pytest.mark.deepspeed
def test_a_stage_resumes_under_deepspeed(run: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    _assert_resumed(run, [("zero2", "float32"), ("zero3", "bfloat16")], tmp_path)
