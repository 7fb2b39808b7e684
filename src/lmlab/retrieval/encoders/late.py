"""Late interaction (ColBERT, Khattab & Zaharia 2020): a vector for each token; a query's score with a document is the
sum over its tokens of the best similarity with any token of the document (MaxSim).

Directories of sentence-transformers' `MultiVectorEncoder` and of PyLate are read. A marker follows the first special
token, queries are filled with mask tokens to one length (which count, whether or not the network may attend to them),
and marks of punctuation in documents do not count.

Shapes: B texts, T tokens, D width of the network, H width of a vector, N documents, Q queries, S tokens of all
documents.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.errors import UserError, reads
from lmlab.files import read_json
from lmlab.hardware import select_device
from lmlab.hardware.gemm import fast_inference
from lmlab.models import weights_fingerprint
from lmlab.retrieval.config import Precision
from lmlab.retrieval.encoders.bodies import Body, body_hash, load_body
from lmlab.retrieval.encoders.directory import is_late, read_dense, read_transformer, settings_of
from lmlab.retrieval.encoders.encoder import Kind, autocast, batches_by_length
from lmlab.retrieval.encoders.words import EncoderTokenizer
from lmlab.retrieval.search.exact import ROUNDING, SLACK, Hits, tie_order

TokenVectors = list[NDArray[np.float32]]

_TOKENS_AT_ONCE = 2048  # padded tokens of a batch, as other encoders take on a CPU
_QUERY_LENGTH, _DOCUMENT_LENGTH = 32, 180  # where a directory says nothing, as PyLate has them


@dataclass
class LateEncoder:
    """One network that gives a vector for each token.

    Attributes:
        head: from the network's width to that of vectors.
        markers: kind -> what stands before each text; of one token where the vocabulary has it.
        lengths: kind -> longest text in tokens, with what stands around it.
        expansion: queries are filled with mask tokens up to their length.
        attend: the network attends to those.
        skipped: ids of documents' tokens that do not count.
    """

    body: Body
    tokenizer: EncoderTokenizer
    head: nn.Module
    markers: dict[Kind, str]
    lengths: dict[Kind, int]
    expansion: bool = True
    attend: bool = False
    skipped: frozenset[int] = frozenset()
    name: str = "encoder"
    device: str = "cpu"
    similarity: str = "maxsim"

    def __post_init__(self) -> None:
        for kind, length in self.lengths.items():
            if length <= (around := len(self.wrap([], kind))):
                raise UserError(
                    f"'{self.name}': a {kind} of {length} tokens leaves no room beside the {around} that stand around"
                    " each text.",
                    f"Correct the encoder's {kind} length.",
                )

    @property
    def max_length(self) -> int:
        """Of documents."""
        return self.lengths["document"]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that decides on vectors."""
        return {
            "model": f"{body_hash(self.body)} {self._head_hash}",
            "tokenizer": self.tokenizer.fingerprint,
            "markers": dict(self.markers),
            "lengths": dict(self.lengths),
            "expansion": [self.expansion, self.attend],
            "skipped": sorted(self.skipped),
            "similarity": self.similarity,
        }

    @cached_property
    def _head_hash(self) -> str:
        return hashlib.sha256(f"{self.head} {weights_fingerprint(self.head)}".encode()).hexdigest()[:16]

    @property
    def embedding_matrix_VD(self) -> Tensor:
        """The table of words."""
        return self.body.embedding_VD

    def wrap(self, ids: Sequence[int], kind: Kind = "document") -> list[int]:
        """Ids of a text with the marker and special tokens."""
        before, after = self.tokenizer.around
        return [*before, *self._marker(kind), *ids, *after]

    def _marker(self, kind: Kind) -> list[int]:
        text = self.markers.get(kind, "")
        for name in (text, *text.split()[:1]):
            id = self.tokenizer.backend.token_to_id(name) if name else None
            if id is not None:
                return [id]
        return self.tokenizer.inner([text])[0] if text else []

    def tokenize(self, texts: Sequence[str], kind: Kind = "document") -> list[list[int]]:
        """The ids that texts are encoded from, without what fills queries up."""
        room = self.lengths[kind] - len(self.wrap([], kind))
        return [self.wrap(ids[: max(0, room)], kind) for ids in self.tokenizer.inner(list(texts))]

    def encode_text(self, texts: Sequence[str], kind: Kind = "document", precision: Precision = "fp32") -> TokenVectors:
        """For each text the vectors of the tokens that count, [T, H], of length 1.

        Raises:
            UserError: one text is given in place of a list of texts.
        """
        if isinstance(texts, str):
            raise UserError("A list of texts is needed, not one text.", "Put it into a list.")
        ids = self.tokenize(texts, kind)
        fill = kind == "query" and self.expansion
        found: TokenVectors = [np.zeros((0, 0), np.float32)] * len(ids)
        with torch.inference_mode(), fast_inference(), autocast(self.device, precision):
            for numbers in batches_by_length([len(each) for each in ids], _TOKENS_AT_ONCE):
                width = self.lengths[kind] if fill else max(len(ids[number]) for number in numbers)
                rows = np.full((len(numbers), width), self._filler(fill), np.int64)
                real = np.zeros((len(numbers), width), bool)
                for row, number in enumerate(numbers):
                    rows[row, : len(ids[number])], real[row, : len(ids[number])] = ids[number], True
                seen = torch.from_numpy(np.ones_like(real) if fill and self.attend else real).to(self.device)
                of = self.body.hidden_of_all if fill and not self.attend else self.body.hidden
                hidden_BTD = of(torch.from_numpy(rows).to(self.device), seen)
                vectors = self._vectors(hidden_BTD).cpu().numpy()
                counts = np.ones_like(real) if fill else real & ~self._skips(rows, kind)
                for row, number in enumerate(numbers):
                    found[number] = vectors[row][counts[row]]
        return found

    def _filler(self, fill: bool) -> int:
        if not fill:
            return self.tokenizer.pad_id
        if self.tokenizer.mask_id is None:
            raise UserError("The encoder has no mask token to fill queries up with.")
        return self.tokenizer.mask_id

    def _skips(self, rows: NDArray[np.int64], kind: Kind) -> NDArray[np.bool_]:
        return np.isin(rows, list(self.skipped)) if kind == "document" else np.zeros(rows.shape, bool)

    def _vectors(self, hidden_BTD: Tensor) -> Tensor:
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            return F.normalize(self.head(hidden_BTD.float()), dim=-1)

    def encode_ids(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Vectors of documents' wrapped ids, [B, T, H]; a token that does not count has the first token's, so that it
        changes no best similarity.
        """
        vectors_BTH = self._vectors(self.body.hidden(ids_BT, mask_BT))
        skipped = torch.isin(ids_BT, torch.tensor(sorted(self.skipped), dtype=ids_BT.dtype, device=ids_BT.device))
        if mask_BT is not None:
            skipped = skipped | ~mask_BT.bool()
        return torch.where(skipped[..., None], vectors_BTH[:, :1], vectors_BTH)

    def encode_embeds(self, embeddings_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The same of rows of the table of words, all of which count; differentiable."""
        return self._vectors(self.body.hidden_of_embeddings(embeddings_BTD, mask_BT))


class LateIndex:
    """Exact search by MaxSim, by the one rule of all indexes here.

    Arguments:
        documents: for each the vectors of its tokens.
    """

    def __init__(self, ids: Sequence[str], documents: Sequence[NDArray[np.float32]]) -> None:
        if len(ids) != len(documents):
            raise UserError(f"{len(ids):,} ids stand beside vectors of {len(documents):,} documents.")
        self.ids = list(ids)
        self._order = tie_order(self.ids)
        sizes = np.array([len(each) for each in documents], np.int64)
        self._filled: NDArray[np.int64] = np.flatnonzero(sizes)
        filled = [each for each in documents if len(each)]
        self._all_SH = np.concatenate(filled) if filled else None
        self._bounds: NDArray[np.int64] = np.append(np.int64(0), np.cumsum(sizes))
        self._starts: NDArray[np.int64] = self._bounds[self._filled]
        self._length = 0.0 if self._all_SH is None else float(np.linalg.norm(self._all_SH, axis=1).max())

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self.ids)

    def _document(self, row: int) -> NDArray[np.float32]:
        if self._all_SH is None:
            return np.zeros((0, 0), np.float32)
        return self._all_SH[self._bounds[row] : self._bounds[row + 1]]

    def topk(self, queries: Sequence[NDArray[np.float32]], k: int) -> Hits:
        """The k best documents of each query, or all where there are fewer."""
        if k < 1:
            raise UserError(f"k is {k}; at least 1 result must be asked for.")
        count = min(k, len(self))
        rows = np.zeros((len(queries), count), np.int64)
        scores = np.zeros((len(queries), count), np.float32)
        for number, query in enumerate(queries if count else []):
            rough = np.zeros(len(self), np.float32)
            if self._all_SH is not None and len(query):
                best_TN = np.maximum.reduceat(query @ self._all_SH.T, self._starts, axis=1)
                rough[self._filled] = best_TN.sum(0)
            wanted = min(count + SLACK, len(self))
            border = np.partition(-rough, wanted - 1)[wanted - 1]
            margin = ROUNDING * max(1.0, self._length) * float(np.linalg.norm(query, axis=-1).sum())
            candidates = np.flatnonzero(-rough <= border + margin)  # with all that tie there
            exact = np.array([maxsim(query, self._document(row)) for row in candidates.tolist()], np.float32)
            best = np.lexsort((-self._order[candidates], -exact))[:count]
            rows[number], scores[number] = candidates[best], exact[best]
        return Hits(rows, scores, k)


def maxsim(query_TH: NDArray[np.float32], document_TH: NDArray[np.float32]) -> float:
    """The sum over a query's tokens of the best similarity with any token of a document; 0 where one has none."""
    if not len(query_TH) or not len(document_TH):
        return 0.0
    return float((query_TH.astype(np.float64) @ document_TH.astype(np.float64).T).max(1).sum())


@reads("an encoder's directory")
def load_late_encoder(directory: str | Path, device: str = "cpu") -> LateEncoder:
    """The encoder of a directory.

    Arguments:
        device: `auto` is CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: it is none of late interaction, or of a kind that is not known here.
    """
    directory, device = Path(directory).expanduser(), str(select_device(device))
    if not is_late(directory):
        raise UserError(
            f"'{directory}' holds no encoder of late interaction.",
            "Give a directory that PyLate or sentence-transformers' MultiVectorEncoder wrote.",
        )
    settings = settings_of(directory / "config_sentence_transformers.json")
    body: Body | None = None
    heads: list[nn.Module] = []
    words: list[str] | None = settings.get("skiplist_words")
    known: dict[str, Any] = {}
    for module in read_json(directory / "modules.json"):
        kind, folder = str(module["type"]).rpartition(".")[2], directory / str(module["path"])
        match kind:
            case "Transformer":
                body = load_body(folder, device)
                known = {
                    **read_transformer(folder, body),
                    **_lengths(settings_of(folder / "sentence_bert_config.json")),
                }
            case "Dense":
                heads.append(read_dense(folder).to(device).eval().requires_grad_(False))
            case "MultiVectorMask":
                words = settings_of(folder / "config.json").get("skiplist_words") or []
            case "Normalize" | "Dropout":
                pass  # vectors of tokens get length 1 here in any case
            case _:
                raise UserError(f"'{directory}': the module '{module['type']}' is not supported.")
    if body is None:
        raise UserError(f"'{directory / 'modules.json'}' names no Transformer.")
    if settings.get("model_type") == "ColBERT" and words is None:
        words = list(string.punctuation)
    tokenizer: EncoderTokenizer = known["tokenizer"]
    about = {**_lengths(settings), **{key: value for key, value in known.items() if value is not None}}
    most = int(known["max_length"])
    prompts = settings.get("prompts") or {}
    markers: dict[Kind, str] = {
        kind: str(settings.get(f"{kind}_prefix") or prompts.get(kind) or "") for kind in ("query", "document")
    }
    expansion = about.get("expansion") or {}
    return LateEncoder(
        body,
        tokenizer,
        nn.Sequential(*heads),
        markers,
        {
            "query": min(most, int(expansion.get("length") or about.get("query_length") or _QUERY_LENGTH)),
            "document": min(most, int(about.get("document_length") or _DOCUMENT_LENGTH)),
        },
        bool(expansion),
        bool(expansion.get("attend")),
        frozenset(id for word in words or () if (id := tokenizer.backend.token_to_id(word)) is not None),
        directory.name,
        device,
    )


def _lengths(settings: dict[str, Any]) -> dict[str, Any]:
    """What PyLate says beside the modules, and sentence-transformers within one of them, by the same names."""
    found = {key: settings[key] for key in ("query_length", "document_length") if settings.get(key)}
    if "query_expansion" in settings:
        given = settings["query_expansion"]
        if given is not None and given.get("strategy", "fixed") != "fixed":
            raise UserError(f"Queries filled up by the strategy '{given['strategy']}' are not supported.")
        return {**found, "expansion": given or {}}
    if "do_query_expansion" in settings or "query_prefix" in settings:
        fills = settings.get("do_query_expansion") is not False
        length = settings.get("query_length") or _QUERY_LENGTH
        filled = {"length": length, "attend": bool(settings.get("attend_to_expansion_tokens"))}
        return {**found, "expansion": filled if fills else {}}
    return found
