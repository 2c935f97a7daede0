"""From vectors to the loss and its exact gradient."""

from train.objective.config import LossConfig
from train.objective.labels import Labels, LossOutput
from train.objective.objective import Objective

__all__ = ["Labels", "LossConfig", "LossOutput", "Objective"]
