"""Token vectors to one vector a text."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Pooling = Literal["mean", "cls", "last", "weighted_mean"]

# Axes: B texts, T tokens, D dimensions.


def pool(token_BTD: Tensor, mask_BT: Tensor, how: Pooling) -> Tensor:
    """Pool in float32, whatever the backbone computes in.

    Args:
        token_BTD: the backbone's last hidden state.
        mask_BT: 1 for a token, 0 for padding; padding may stand on either side.
        how: `mean` over tokens, `cls` for the first token, `last` for the last one, `weighted_mean` for a mean in
            which the n-th token weighs n.

    Returns:
        float32 [B, D], not normalised.
    """
    token_BTD = token_BTD.float() if token_BTD.dtype.itemsize < 4 else token_BTD
    if how in ("mean", "weighted_mean"):
        weight_BT = mask_BT if how == "mean" else mask_BT * mask_BT.cumsum(1)
        weight_BT1 = weight_BT.unsqueeze(-1).to(token_BTD.dtype)
        return (token_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)
    # argmax finds the first 1, so left padding needs no case of its own.
    place_B = mask_BT.argmax(1) if how == "cls" else mask_BT.shape[1] - 1 - mask_BT.flip(1).argmax(1)
    rows = place_B.view(-1, 1, 1).expand(-1, 1, token_BTD.shape[-1])
    return token_BTD.gather(1, rows).squeeze(1)
