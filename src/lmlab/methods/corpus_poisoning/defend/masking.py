"""Detectors that look at which tokens carry a passage's similarity: its collapse when they are masked, and how likely a
masked language model finds them (GMTP, arXiv 2507.18202).

Shapes: T tokens, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.defend.detector import DetectorContext, Passages, Scores
from lmlab.retrieval import AnyEncoder

_MASKED = 10  # tokens with the largest gradients
_LEAST_LIKELY = 5  # tokens: the mean over all would hide a few that were flipped


def token_gradients(encoder: AnyEncoder, ids: list[int], query_H: Tensor) -> tuple[float, Tensor]:
    """The similarity of a passage with a query, and the length of its gradient at each word embedding, [T]."""
    rows = torch.tensor([ids], device=encoder.device)
    with torch.enable_grad():
        embeddings = encoder.embedding_matrix_VD[rows].detach().requires_grad_()
        similarity = (encoder.encode_embeds(embeddings) @ query_H.to(encoder.device))[0]
        (gradient,) = torch.autograd.grad(similarity, embeddings)
    return float(similarity.detach()), gradient[0].norm(dim=-1)


class _ByToken:
    """What both share: each passage is seen with the sentinel question that is nearest to it."""

    def __init__(self, context: DetectorContext, name: str) -> None:
        if context.sentinel_vectors is None:
            raise UserError(f"The detector {name} needs sentinel questions.", "Give --sentinels.")
        self._encoder = context.encoder
        self._sentinels = np.asarray(context.sentinel_vectors, np.float32)

    def _most_used(self, text: str, vector: Any) -> tuple[list[int], Tensor, float, list[int]]:
        """Ids, the question, the similarity, and the positions of text that carry it, most first."""
        query = torch.from_numpy(self._sentinels[int((self._sentinels @ vector).argmax())])
        ids = self._encoder.tokenize([text])[0]
        similarity, lengths = token_gradients(self._encoder, ids, query)
        special = self._encoder.tokenizer.special_ids
        inner = [place for place, id in enumerate(ids) if id not in special]
        mean = float(lengths[inner].mean()) if inner else 0.0
        order = sorted((place for place in inner if float(lengths[place]) >= mean), key=lambda p: -float(lengths[p]))
        return ids, query, similarity, order[:_MASKED]

    def state(self) -> dict[str, Any]:
        """The sentinels."""
        return {"sentinels": self._sentinels}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._sentinels = state["sentinels"]


class MaskCollapse(_ByToken):
    """The share of its similarity with the nearest sentinel question that a passage loses when the ten tokens that
    carry most of it are masked. It needs no second model.
    """

    def __init__(self, context: DetectorContext) -> None:
        super().__init__(context, "mask_collapse")
        if context.encoder.tokenizer.mask_id is None:
            raise UserError("The detector mask_collapse needs an encoder with a mask token.", "Leave it out.")
        self._mask = int(context.encoder.tokenizer.mask_id)

    def fit(self, clean: Passages) -> None:
        """Nothing is to be learned but the threshold."""

    @torch.no_grad()
    def score(self, passages: Passages) -> Scores:
        """The share that is lost."""
        found = []
        for text, vector in zip(passages.texts, passages.vectors, strict=True):
            ids, query, before, places = self._most_used(text, vector)
            masked = torch.tensor([[self._mask if place in places else id for place, id in enumerate(ids)]])
            after = float(
                (self._encoder.encode_ids(masked.to(self._encoder.device)) @ query.to(self._encoder.device))[0]
            )
            found.append((before - after) / max(abs(before), 1e-6))
        return np.array(found)


class GMTP(_ByToken):
    """Gradient-based masked token probability: how unlikely a masked language model finds the tokens that carry the
    similarity; the mean surprise of the five least likely of the first ten.
    """

    def __init__(self, context: DetectorContext) -> None:
        super().__init__(context, "gmtp")
        if context.masked_model is None:
            raise UserError("The detector gmtp needs a masked language model.", "Give --masked-model.")
        self._place = context.masked_model
        self._model = _masked_model(Path(context.masked_model), self._encoder)
        self._mask = int(self._encoder.tokenizer.mask_id or 0)

    def fit(self, clean: Passages) -> None:
        """Nothing is to be learned but the threshold."""

    def state(self) -> dict[str, Any]:
        """The sentinels, and where the model is."""
        return {**super().state(), "masked_model": self._place}

    @torch.no_grad()
    def score(self, passages: Passages) -> Scores:
        """Mean surprise in nats of the least likely tokens."""
        found = []
        for text, vector in zip(passages.texts, passages.vectors, strict=True):
            ids, _, _, places = self._most_used(text, vector)
            if not places:
                found.append(0.0)
                continue
            rows = torch.tensor([ids] * len(places))
            rows[torch.arange(len(places)), torch.tensor(places)] = self._mask
            logits = self._model(input_ids=rows).logits[torch.arange(len(places)), torch.tensor(places)]
            chances = torch.log_softmax(logits.double(), -1)[torch.arange(len(places)), torch.tensor(ids)[places]]
            found.append(float(-chances.sort().values[:_LEAST_LIKELY].mean()))
        return np.array(found)


def _masked_model(place: Path, encoder: AnyEncoder) -> Any:
    if not (place / "config.json").exists():
        raise UserError(f"There is no masked language model at '{place}'.")
    import transformers

    model = transformers.AutoModelForMaskedLM.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    if model.config.vocab_size < encoder.tokenizer.vocab_size:
        raise UserError(
            f"The masked language model has {model.config.vocab_size} ids, the retriever"
            f" {encoder.tokenizer.vocab_size}: their vocabularies differ.",
            "Give one with the retriever's vocabulary.",
        )
    return model.eval().requires_grad_(False)
