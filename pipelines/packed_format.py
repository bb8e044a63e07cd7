"""The packed format: WebDataset shards, an index into them, and a manifest that is written last."""

from __future__ import annotations

import numpy as np

FORMAT = 1
ENTRY = np.dtype(
    [("offset", "<i8"), ("size", "<i4"), ("shard", "<i4"), ("label", "<i4"), ("checksum", "<u4")],
)
"""A row of a split's index: where an image's bytes begin in which shard, how many, its label, their CRC-32."""
MANIFEST = "dataset.json"
REJECTED = "rejected.csv"
