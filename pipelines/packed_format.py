"""The packed format: tar files of JPEG images beside an index that says where each image's bytes begin.

A folder of it holds ``train-000000.tar``, ``train-000001.tar``, ... and ``val-000000.tar``, ...: plain ustar tars with
the members ``%09d.jpg`` and, where there are labels, ``%09d.cls``, so that readers of WebDataset read them too.
``train.npy`` and ``val.npy`` are the indices, one row an image. The manifest is written last and holds::

    {"format": 1, "classes": [...], "splits": {"train": {"images": N, "bytes": total,
     "shards": [{"name": "train-000000.tar", "bytes": of the file, "images": n}, ...],
     "index": {"name": "train.npy", "crc32": of the file}}, "val": {...}}, "settings": {...}, "made_by": {...},
     "rejected": count}
"""

from __future__ import annotations

import numpy as np

FORMAT = 1
ENTRY = np.dtype([("offset", "<i8"), ("size", "<i4"), ("shard", "<i4"), ("label", "<i4"), ("checksum", "<u4")])
"""A row of an index: where the image's bytes begin in its shard, how many there are, the shard's number, the label, and
``zlib.crc32`` of the bytes."""
MANIFEST = "dataset.json"
REJECTED = "rejected.csv"
"""What was not packed: columns name, reason."""
