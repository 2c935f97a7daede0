"""One thread: the machine has better use for the others."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
