"""What requests cost, and a ceiling that is never passed: the worst case of every request under way is set aside before
it is sent.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from lmlab.config import Config, validate
from lmlab.endpoints.protocol import ChatRequest, Usage
from lmlab.errors import LmlabError, UserError
from lmlab.files import read_yaml

EXIT_BUDGET = 4
_MILLION = 1_000_000


class BudgetExceeded(LmlabError):
    """The next request could pass the ceiling; everything paid for is kept."""

    exit_code = EXIT_BUDGET


class BadPriceTable(UserError):
    """A table of prices that is none: nothing has been asked."""


Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(Config):
    """US dollars per million tokens; `cached_prompt` is the price of prompt otherwise. In one word: 0.15,0.60."""

    spelling: ClassVar[str] = "PROMPT,COMPLETION"

    prompt: Dollars
    completion: Dollars
    cached_prompt: Dollars | None = None

    @model_validator(mode="before")
    @classmethod
    def _in_one_word(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        prompt, comma, completion = data.partition(",")
        if not comma:
            raise ValueError(f"'{data}': expected {cls.spelling}, such as 0.15,0.60")
        return {"prompt": prompt, "completion": completion}

    def of(self, usage: Usage) -> float:
        cached = self.prompt if self.cached_prompt is None else self.cached_prompt
        return (
            (usage.prompt - usage.cached) * self.prompt + usage.cached * cached + usage.completion * self.completion
        ) / _MILLION

    def worst(self, request: ChatRequest) -> float:
        """No reply costs more: every byte of the prompt a token, every answer as long as it may be; infinite where
        nothing bounds an answer.
        """
        dearest, new = max(self.prompt, self.cached_prompt or 0), request.most_new_tokens()
        if new is None and self.completion:
            return math.inf
        return (request.most_prompt_tokens() * dearest + (new or 0) * self.completion) / _MILLION


def load_price(path: str | Path, model: str) -> Price | None:
    """The price of a model from a YAML table of models to prices; None if it is not in the table.

    Raises:
        BadPriceTable: the file is no such table, or one of its prices is no amount.
    """
    path = Path(path)
    try:
        prices = {str(name): validate(Price, value, f"'{path}', {name}") for name, value in read_yaml(path).items()}
    except UserError as error:
        raise BadPriceTable(
            f"BadPriceTable: {error.message}", "Write MODEL: {prompt: ..., completion: ...}, in USD per million tokens."
        ) from None
    return prices.get(model)


class Purse:
    """Money spent and set aside, in US dollars.

    Arguments:
        price: None for an unknown one: then costs are unknown as well.
        ceiling: most that may be spent, what was `spent` before included; None for no limit.

    Raises:
        UserError: a ceiling without a price.
    """

    def __init__(self, price: Price | None, ceiling: float | None = None, spent: float = 0.0) -> None:
        import asyncio  # here: prices are fields of configurations, which help reads

        if ceiling is not None and price is None:
            raise UserError(
                "A ceiling of cost needs the price of the model.",
                "Give price: {prompt: ..., completion: ...}, in USD per million tokens.",
            )
        self.price, self.ceiling, self.spent = price, ceiling, spent
        self.at_risk = 0.0
        self._reserved, self._under_way = 0.0, 0
        self._changed = asyncio.Condition()

    async def reserve(self, request: ChatRequest) -> float:
        """Set the worst case aside; wait for requests under way if only what they have set aside stands in the way.

        Raises:
            BudgetExceeded: nothing is under way, and the request could pass the ceiling.
        """
        worst = 0.0 if self.price is None or self.ceiling is None else self.price.worst(request)
        if math.isinf(worst):
            raise UserError(
                "A ceiling of cost needs answers of a bounded length, and the requests have none.",
                "Do not leave out max_tokens, or give max_completion_tokens in extra_body.",
            )
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(worst) or self._under_way == 0)
            if not self._fits(worst):
                raise BudgetExceeded(
                    f"${self.spent + self.at_risk:.4f} of ${self.ceiling:.4f} are spent, and the next request could"
                    f" cost ${worst:.4f}.",
                    "Raise max_cost_usd and run the same command again: what was paid for is not asked for again.",
                )
            self._reserved, self._under_way = self._reserved + worst, self._under_way + 1
        return worst

    async def settle(self, reserved: float, spent: float = 0.0, at_risk: float = 0.0) -> None:
        """Release what was set aside, and count what was spent and what may have been (`at_risk`: a request whose reply
        never came).
        """
        async with self._changed:
            self._under_way -= 1
            self._reserved = self._reserved - reserved if self._under_way else 0.0
            self.spent += spent
            self.at_risk += at_risk
            self._changed.notify_all()

    def _fits(self, worst: float) -> bool:
        return self.ceiling is None or self.spent + self.at_risk + self._reserved + worst <= self.ceiling
