"""Models behind an OpenAI-compatible API: a client of any.

`lmlab.endpoints.server` offers our own models as one, and `lmlab.endpoints.local` asks them without a server; these two
load PyTorch.
"""

from lmlab.endpoints.backends import Backend, MockBackend, ReplayBackend, Transient, make_backend
from lmlab.endpoints.batch import export_replies, read_batch, write_batch
from lmlab.endpoints.cache import ReplyCache
from lmlab.endpoints.client import Client, EndpointUnavailable, answer
from lmlab.endpoints.costs import BudgetExceeded, Price, load_price
from lmlab.endpoints.endpoint import Endpoint
from lmlab.endpoints.estimate import Estimate, estimate
from lmlab.endpoints.protocol import ChatRequest, Choice, Reply, TokenLogProb, Usage

__all__ = [
    "Backend",
    "BudgetExceeded",
    "ChatRequest",
    "Choice",
    "Client",
    "Endpoint",
    "EndpointUnavailable",
    "Estimate",
    "MockBackend",
    "Price",
    "ReplayBackend",
    "Reply",
    "ReplyCache",
    "TokenLogProb",
    "Transient",
    "Usage",
    "answer",
    "estimate",
    "export_replies",
    "load_price",
    "make_backend",
    "read_batch",
    "write_batch",
]
