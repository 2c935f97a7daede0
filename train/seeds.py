"""Randomness as a function of the step, so that none of it needs to be in a checkpoint."""

from __future__ import annotations

import hashlib

import torch

from train.collectives import rank


def seed_everything(seed: int, step: int, chunk: int) -> None:
    """Seed torch's generators from (seed, step, rank, chunk).

    Dropout in a chunk is then the same in both passes of the gradient cache, and the same after a resume.
    """
    key = f"{seed} {step} {rank()} {chunk}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True))
