"""Several passages that are optimized at once, each by its own search in a thread of its own: what they ask of the
network is asked in one batch. A GPU is hardly busy with the fifty candidates of one passage.

Every search waits until all others wait too; the last one asks for all of them, in the order of their numbers. So what
stands in one batch depends on the searches alone, and not on which thread was faster.

Shapes: B passages, W their tokens with what the encoder puts around, D width of a token, H width of a vector.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.hardware.gemm import fast_inference
from lmlab.methods.corpus_poisoning.attack.searching.objective import Objective
from lmlab.retrieval import AnyEncoder
from lmlab.retrieval.config import Precision
from lmlab.retrieval.encoders.encoder import autocast


class Network:
    """What a search asks of an encoder: vectors of ids, and gradients."""

    def __init__(self, encoder: AnyEncoder) -> None:
        self.encoder = encoder

    def vectors(self, rows_BW: Tensor, precision: Precision) -> Tensor:
        """Vectors of wrapped ids, [B, H], in fp32."""
        with torch.inference_mode(), fast_inference(), autocast(self.encoder.device, precision):
            return self.encoder.encode_ids(rows_BW).float()

    def gradients(self, rows: Sequence[Tensor], objectives: Sequence[Objective]) -> list[Tensor | None]:
        """Of the mean objective of each group of wrapped ids [B, W], the gradient at the embeddings of each of its
        tokens, [B, W, D]; None where there is none.
        """
        with torch.enable_grad():
            ids = torch.cat(list(rows))
            embeddings = self.encoder.embedding_matrix_VD[ids].detach().requires_grad_()
            parts = self.encoder.encode_embeds(embeddings).split([len(each) for each in rows])
            values = [objective(part).mean() for objective, part in zip(objectives, parts, strict=True)]
            total = torch.stack(values).sum()
            if not total.requires_grad:
                return [None] * len(rows)
            (found,) = torch.autograd.grad(total, embeddings, allow_unused=True)
        return [None] * len(rows) if found is None else list(found.split([len(each) for each in rows]))


@dataclass
class _Asked:
    kind: str
    rows: Tensor
    detail: Any
    found: Any = None
    error: BaseException | None = None


class Together:
    """A network that several searches share.

    Arguments:
        count: searches; each of them must leave at its end.
    """

    def __init__(self, encoder: AnyEncoder, count: int) -> None:
        self._network = Network(encoder)
        self._changed = threading.Condition()
        self._live, self._waiting = count, dict[int, _Asked]()
        self._stopped = False

    def member(self, number: int) -> Network:
        """What the search of a number asks."""
        return _Member(self, number, self._network.encoder)

    def leave(self) -> None:
        """A search has ended."""
        with self._changed:
            self._live -= 1
            self._serve_if_all_wait()

    def stop(self) -> None:
        """End all searches at their next question."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def ask(self, number: int, asked: _Asked) -> Any:
        """Wait for the answer to a search's question."""
        with self._changed:
            self._waiting[number] = asked
            self._serve_if_all_wait()
            self._changed.wait_for(lambda: self._stopped or number not in self._waiting)
            if self._stopped:
                raise KeyboardInterrupt
        if asked.error is not None:
            raise asked.error
        return asked.found

    def _serve_if_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) < self._live or self._stopped:
            return
        order = [self._waiting[number] for number in sorted(self._waiting)]
        kinds = dict.fromkeys((each.kind, each.detail if each.kind == "vectors" else None) for each in order)
        for kind, precision in kinds:
            some = [each for each in order if each.kind == kind and (kind != "vectors" or each.detail == precision)]
            try:
                self._answer(kind, some)
            except Exception as error:  # belongs to all who asked
                for each in some:
                    each.error = error
        self._waiting.clear()
        self._changed.notify_all()

    def _answer(self, kind: str, some: Sequence[_Asked]) -> None:
        if kind == "vectors":
            vectors = self._network.vectors(torch.cat([each.rows for each in some]), some[0].detail)
            parts: Sequence[Any] = vectors.split([len(each.rows) for each in some])
        else:
            parts = self._network.gradients([each.rows for each in some], [each.detail for each in some])
        for each, part in zip(some, parts, strict=True):
            each.found = part


class _Member(Network):
    def __init__(self, together: Together, number: int, encoder: AnyEncoder) -> None:
        super().__init__(encoder)
        self._together, self._number = together, number

    def vectors(self, rows_BW: Tensor, precision: Precision) -> Tensor:
        found: Tensor = self._together.ask(self._number, _Asked("vectors", rows_BW, precision))
        return found

    def gradients(self, rows: Sequence[Tensor], objectives: Sequence[Objective]) -> list[Tensor | None]:
        return [
            self._together.ask(self._number, _Asked("gradient", each, objective))
            for each, objective in zip(rows, objectives, strict=True)
        ]


def run_together(
    encoder: AnyEncoder, searches: Sequence[Callable[[Network], Any]], done: Callable[[int, Any], None]
) -> None:
    """Run searches at once, and hand over each result as it is there.

    Raises:
        BaseException: what a search raised, after all have ended.
    """
    together = Together(encoder, len(searches))
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            done(number, searches[number](together.member(number)))
        except BaseException as error:
            errors.append(error)
        finally:
            together.leave()

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(searches))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        together.stop()
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]
