"""Several devices on one picture: strips of rows whose borders travel, or heads that are dealt out.

Both give the result of one device. Ranks are processes (:class:`ProcessPeers`) or threads of one process
(:class:`ThreadPeers`).
"""

from .attention import clear_attention_strip
from .heads import attend_by_heads
from .peers import Peers, PeersError, Transfer
from .process_peers import ProcessPeers
from .strips import split_rows, transposed
from .thread_peers import ThreadPeers, run_together
from .traffic import StripTraffic, heads_traffic, strip_traffic

__all__ = [
    "Peers",
    "PeersError",
    "ProcessPeers",
    "StripTraffic",
    "ThreadPeers",
    "Transfer",
    "attend_by_heads",
    "clear_attention_strip",
    "heads_traffic",
    "run_together",
    "split_rows",
    "strip_traffic",
    "transposed",
]
