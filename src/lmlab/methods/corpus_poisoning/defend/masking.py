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
from lmlab.methods.corpus_poisoning.defend.language import is_uncased, require_same_model
from lmlab.models import known_fingerprint
from lmlab.retrieval import AnyEncoder
from lmlab.retrieval.encoders.words import EncoderTokenizer

_MASKED = 10  # tokens with the largest gradients
_LEAST_LIKELY = 5  # tokens: the mean over all would hide a few that were flipped
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer_config.json")  # any says that it has one
_MOST_TOKENS = 511  # of a masked model that names no longest text


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
        first = self._encoder.tokenizer.prompt_length(self._encoder.prompt("document"))  # a prompt is no text
        inner = [place for place, id in enumerate(ids) if place >= first and id not in special]
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

    The model may split texts in its own way: what it is asked for are its tokens that stand where a token of the
    retriever's stands, all masked together. Texts are lower-cased where the retriever is uncased: else case alone would
    tell clean text from crafted.
    """

    def __init__(self, context: DetectorContext) -> None:
        super().__init__(context, "gmtp")
        if context.masked_model is None:
            raise UserError("The detector gmtp needs a masked language model.", "Give --masked-model.")
        self._place, self._lower = context.masked_model, is_uncased(context.encoder)
        self._model = _masked_model(Path(context.masked_model))
        self._reader, self._most = _reader_of(Path(context.masked_model), self._model, self._encoder)
        if self._reader.mask_id is None:
            raise UserError(f"The masked language model at '{self._place}' has no mask token.", "Give another one.")
        self._mask = int(self._reader.mask_id)

    def fit(self, clean: Passages) -> None:
        """Nothing is to be learned but the threshold."""

    def state(self) -> dict[str, Any]:
        """The sentinels, and where the model is and which."""
        return {**super().state(), "masked_model": self._place, "weights": known_fingerprint(self._model)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the sentinels; the model is the context's."""
        super().restore(state)
        require_same_model(self._model, str(state.get("weights", "")), "masked language model", "gmtp", self._place)

    @torch.no_grad()
    def score(self, passages: Passages) -> Scores:
        """Mean surprise in nats of the least likely tokens."""
        found = []
        for text, vector in zip(passages.texts, passages.vectors, strict=True):
            read = text.lower() if self._lower else text
            _, _, _, places = self._most_used(read, vector)
            losses = self._surprise(read, places)
            found.append(float(np.sort(losses)[::-1][:_LEAST_LIKELY].mean()) if len(losses) else 0.0)
        return np.array(found)

    def _surprise(self, text: str, places: list[int]) -> Scores:
        """Nats of what stands at some of the retriever's positions, for those that the masked model sees."""
        before, prompt = len(self._encoder.tokenizer.around[0]), self._encoder.prompt("document")
        spans = self._encoder.tokenizer.spans(prompt + text)
        ids, own = self._reader.read(text)
        ids, own = ids[: self._most], own[: self._most]
        rows: list[list[int]] = []
        for place in places:
            start, end = (edge - len(prompt) for edge in spans[place - before])
            there = [n for n, span in enumerate(own) if span is not None and span[0] < end and start < span[1]]
            rows += [there] if there else []
        if not rows:
            return np.zeros(0)
        ids_RT = torch.tensor([ids] * len(rows))
        for row, there in enumerate(rows):
            ids_RT[row, there] = self._mask
        log_probs_RTV = torch.log_softmax(self._model(input_ids=ids_RT).logits.double(), -1)
        wanted = torch.tensor(ids)
        return np.array([-float(log_probs_RTV[row, t, wanted[t]].mean()) for row, t in enumerate(rows)])


def _masked_model(place: Path) -> Any:
    if not (place / "config.json").exists():
        raise UserError(f"There is no masked language model at '{place}'.")
    import transformers

    model = transformers.AutoModelForMaskedLM.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    return model.eval().requires_grad_(False)


def _reader_of(place: Path, model: Any, encoder: AnyEncoder) -> tuple[EncoderTokenizer, int]:
    """The model's own tokenizer, or the retriever's where the directory has none, and the longest text that it reads.

    Raises:
        UserError: the vocabulary is none of the model's.
    """
    own = any((place / name).exists() for name in _TOKENIZER_FILES)
    reader = EncoderTokenizer.load(place) if own else encoder.tokenizer
    if model.config.vocab_size < reader.vocab_size:
        whose = "its tokenizer" if own else "the retriever"
        raise UserError(
            f"The masked language model has {model.config.vocab_size} ids, {whose} {reader.vocab_size}: their"
            " vocabularies differ.",
            "Give one with a tokenizer of its own beside it, or with the retriever's vocabulary.",
        )
    # positions of some families begin behind that of the padding
    behind = (model.config.pad_token_id or 0) + 1
    return reader, int(getattr(model.config, "max_position_embeddings", _MOST_TOKENS + behind)) - behind
