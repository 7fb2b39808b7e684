from .backends import Backend, EndpointUnavailable, MockBackend, ReplayBackend, Transient, make_backend
from .client.batch import export_replies, read_batch, write_batch
from .client.cache import ReplyCache
from .client.client import Client, answer
from .client.costs import BadPriceTable, BudgetExceeded, Price, load_price
from .client.estimates import Estimate, estimate
from .endpoint import Endpoint
from .protocol import ChatRequest, Choice, Reply, TokenLogProb, Usage

__all__ = [
    "Backend",
    "BadPriceTable",
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
