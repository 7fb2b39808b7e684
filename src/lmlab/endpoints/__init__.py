"""Models behind an OpenAI-compatible API."""

from lmlab.endpoints.cache import ReplyCache
from lmlab.endpoints.client import Client, Endpoint, answer
from lmlab.endpoints.costs import BudgetExceeded, Price, load_price
from lmlab.endpoints.protocol import ChatRequest, Choice, Reply, TokenLogProb, Usage

__all__ = [
    "BudgetExceeded",
    "ChatRequest",
    "Choice",
    "Client",
    "Endpoint",
    "Price",
    "Reply",
    "ReplyCache",
    "TokenLogProb",
    "Usage",
    "answer",
    "load_price",
]
