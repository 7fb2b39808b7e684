from .backend import Backend
from .jobs import fan_out, num_cores
from .lease_stores import FolderStore, NoAtomicCreateError, SqliteStore, UrlStore
from .leases import TIME_S, Lease, Leases, Record, Store
from .processes import World, control_group, from_all, from_main, imagine, joined, sum_over_all, wait_for_all, world
from .scratch import remove_left_folders, remove_tree, scratch_folder
from .sharing import do_pieces

__all__ = [
    "TIME_S",
    "Backend",
    "FolderStore",
    "Lease",
    "Leases",
    "NoAtomicCreateError",
    "Record",
    "SqliteStore",
    "Store",
    "UrlStore",
    "World",
    "control_group",
    "do_pieces",
    "fan_out",
    "from_all",
    "from_main",
    "imagine",
    "joined",
    "num_cores",
    "remove_left_folders",
    "remove_tree",
    "scratch_folder",
    "sum_over_all",
    "wait_for_all",
    "world",
]
