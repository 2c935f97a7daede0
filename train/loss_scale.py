"""The loss scale of float16: small gradients are multiplied into its range, and the factor follows overflows."""

from __future__ import annotations

from typing import Any

_GROW_AFTER_STEPS = 2000


class LossScale:
    """Halves at an overflow, doubles after many steps without one. The same on all ranks: the norm it sees is global.

    PyTorch's own scaler looks at each rank's gradients alone, which is not enough where they are sharded.
    """

    def __init__(self) -> None:
        """Begin high; a few overflows in the first steps are normal."""
        self.value = 2.0**16
        self._steady = 0

    def saw(self, *, finite: bool) -> None:
        """Take notice of a step's gradient."""
        if not finite:
            self.value, self._steady = max(self.value / 2, 1.0), 0
            return
        self._steady += 1
        if self._steady == _GROW_AFTER_STEPS:
            self.value, self._steady = self.value * 2, 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"value": self.value, "steady": self._steady}

    def load(self, state: dict[str, Any]) -> None:
        """Take it back; another engine's scale begins anew."""
        self.value = float(state.get("value", self.value))
        self._steady = int(state.get("steady", 0))
