"""For all tests: nothing reaches for a hub or an account. Set before any library reads its environment."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
