"""MDS, the shard format of Mosaic Streaming: read and written.

A data set is a folder with `index.json`, which lists its shards. A shard, little endian, holds the number of samples N
(uint32), N + 1 offsets from the start of the file (uint32), its configuration as JSON, and the samples. A sample is the
sizes (uint32) of the values of its columns of variable size, then the values of all columns.
"""

from lmlab.data.sources.mds.encoding import MDSError
from lmlab.data.sources.mds.index import mds_entries, mds_indexes, read_mds_index
from lmlab.data.sources.mds.shard import MDSShard, read_shard
from lmlab.data.sources.mds.writer import SIZE_LIMIT, MDSWriter

__all__ = [
    "SIZE_LIMIT",
    "MDSError",
    "MDSShard",
    "MDSWriter",
    "mds_entries",
    "mds_indexes",
    "read_mds_index",
    "read_shard",
]
