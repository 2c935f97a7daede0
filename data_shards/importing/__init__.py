"""Raw text in, shards out: in parts, side by side, interrupted and resumed."""
