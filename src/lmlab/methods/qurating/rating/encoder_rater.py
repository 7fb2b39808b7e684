"""Published classifiers as raters: sequence classifiers of `transformers`, such as encoders that grade educational
value (FineWeb-Edu) or tell kinds of text apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.errors import UserError, missing_extra, reads
from lmlab.files import content_digest, read_mapping, sha256_json
from lmlab.hardware import select_device, select_dtype
from lmlab.methods.qurating.rating.rater import Ids, Rater, Scores
from lmlab.models.formats.families import FAMILIES

_BATCH_TOKENS = {"cpu": 2048, "cuda": 131_072}  # padded, of a pass: more take memory, fewer leave a processor waiting
_USUAL_LENGTH = 512  # tokens of a segment where nothing bounds it
_FILES = ("*.safetensors", "config.json", "tokenizer*.json", "vocab*", "*.model", "special_tokens_map.json")
_OWN = {family.model_type for family in FAMILIES if family.classifier} | {"lmlab"}  # read as raters of lmlab


class _Words:
    """The tokenizer of a classifier, as an annotation wants it."""

    def __init__(self, tokenizer: Any, fingerprint: str) -> None:
        self._tokenizer, self.fingerprint = tokenizer, fingerprint

    def encode_batch(self, texts: Sequence[str], special_tokens: str = "as_text") -> list[list[int]]:
        """Ids without the marks around them, which every segment gets."""
        if not texts:
            return []
        options = {"add_special_tokens": False, "truncation": False, "verbose": False, "split_special_tokens": True}
        found: list[list[int]] = self._tokenizer(list(texts), **options)["input_ids"]
        return found


class EncoderRater:
    """Gives texts scores, one for each label of a classifier: of a single label or a regression the values, of several
    labels their probabilities, which add up to 1 unless several may hold at once (`problem_type`).

    It has the face of a `Rater` that an annotation uses. Texts longer than the classifier reads are cut into segments,
    whose scores are averaged by length, as those of a rater.

    Arguments:
        directory: of a model for sequence classification, with safetensors.
        device, precision: as of `Rater`.

    Raises:
        UserError: it is none, or cannot be read.
    """

    def __init__(
        self, directory: str | Path, device: str = "auto", precision: str = "auto", batch_tokens: int | None = None
    ) -> None:
        self.directory = Path(directory)
        self.device = select_device(device)
        self.dtype = select_dtype(precision, self.device)
        model, self._tokenizer = _loaded(self.directory)
        if self._tokenizer.pad_token is None:
            raise UserError(f"The tokenizer in '{directory}' has no token for padding.", "Name one: pad_token.")
        self.model = model.to(self.device).eval()
        names = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
        self.criteria = tuple(_column_names(names))
        probe = self._tokenizer("a")["input_ids"]
        bare = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        start = next(place for place in range(len(probe)) if probe[place : place + len(bare)] == bare)
        self._before, self._after = probe[:start], probe[start + len(bare) :]
        self.segment = self._longest() - len(self._before) - len(self._after)
        self.batch_tokens = batch_tokens or _BATCH_TOKENS.get(self.device.type, 8192)
        self.tokenizer = _Words(self._tokenizer, sha256_json([self.fingerprint, "tokenizer"]))
        self._pads = self._ignores_padding(bare)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the files of the model and its tokenizer."""
        files = sorted({path for pattern in _FILES for path in self.directory.glob(pattern)})
        return sha256_json({path.name: content_digest(path) for path in files})

    def _longest(self) -> int:
        """Tokens that the classifier reads, marks included."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or 0
        if positions < 1:  # relative ones, without an end
            positions = _USUAL_LENGTH
        for name, module in self.model.named_modules():
            learned = isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings")
            if learned and module.padding_idx is not None:  # as of RoBERTa: positions begin behind that of padding
                positions = module.num_embeddings - module.padding_idx - 1
        told = self._tokenizer.model_max_length
        return int(min(positions, told if told and told < 1e6 else positions))

    def _ignores_padding(self, ids: list[int]) -> bool:
        """Whether a text's scores are the same beside a longer one. Not so of models that mix or pool over the whole
        row (FNet, Funnel), or read its last place; they get rows of one length.
        """
        short, long = ids * 2, ids * 9
        together, alone = self._logits([short, long])[0], self._logits([short])[0]
        return torch.allclose(together, alone, rtol=1e-3, atol=1e-3)

    def rate_ids(self, documents: Sequence[Ids]) -> Iterator[tuple[list[int], Scores]]:
        """For each document the lengths of its segments and their scores, [segments, C]."""
        pieces = [
            [ids[start : start + self.segment] for start in range(0, len(ids), self.segment)] for ids in documents
        ]
        scores = self.score_ids([piece for document in pieces for piece in document])
        place = 0
        for document in pieces:
            yield [len(piece) for piece in document], scores[place : place + len(document)]
            place += len(document)

    def score_ids(self, segments: Sequence[Ids]) -> Scores:
        """Scores of token sequences, [N, C]; those of like length are computed together."""
        found = np.zeros((len(segments), len(self.criteria)), np.float32)
        order = sorted(range(len(segments)), key=lambda number: -len(segments[number]))
        place = 0
        while place < len(order):
            longest = len(segments[order[place]]) + len(self._before) + len(self._after)
            batch = order[place : place + max(1, self.batch_tokens // longest)]
            if not self._pads:
                batch = [number for number in batch if len(segments[number]) == len(segments[order[place]])]
            found[batch] = self._batch([segments[number] for number in batch])
            place += len(batch)
        return found

    @torch.inference_mode()
    def _logits(self, segments: Sequence[Ids]) -> torch.Tensor:
        rows = [[*self._before, *map(int, ids), *self._after] for ids in segments]
        padded = self._tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.device)
        logits: torch.Tensor = self.model(**padded).logits
        return logits.float()

    @torch.inference_mode()
    def _batch(self, segments: Sequence[Ids]) -> NDArray[np.float32]:
        autocast = nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)
        with autocast:
            logits = self._logits(segments)
        kind = self.model.config.problem_type
        if kind == "multi_label_classification":
            scores = logits.sigmoid()
        elif kind == "regression" or logits.shape[1] == 1:
            scores = logits
        else:
            scores = logits.softmax(-1)
        return np.asarray(scores.cpu().numpy(), np.float32)


def load_rater(directory: str | Path, device: str = "auto", precision: str = "auto") -> Rater | EncoderRater:
    """The rater in a directory: one that lmlab has trained or reads as its own, or a published classifier.

    Raises:
        UserError: there is none.
    """
    path = Path(directory)
    config = path / "config.json"
    if config.is_file():
        settings = read_mapping(config)
        kinds = settings.get("architectures") or [""]
        classifier = str(kinds[0]).endswith("ForSequenceClassification")
        if classifier and settings.get("model_type") not in _OWN:
            return EncoderRater(path, device, precision)
    return Rater.from_pretrained(path, device=device, precision=precision)


@reads("the directory of a classifier")
def _loaded(directory: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError:
        raise missing_extra("transformers", "A published classifier") from None
    if not list(directory.glob("*.safetensors")):
        raise UserError(
            f"'{directory}' has no safetensors.", "Pickled weights are not read; convert them, or get another copy."
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModelForSequenceClassification.from_pretrained(directory, use_safetensors=True, **options)
    return model, AutoTokenizer.from_pretrained(directory, **options)


def _column_names(labels: Sequence[str]) -> list[str]:
    """Labels as names of columns; a single unnamed one is `score`."""
    if len(labels) == 1 and re.fullmatch(r"LABEL_0", labels[0]):
        return ["score"]
    names = [re.sub(r"\W+", "_", label).strip("_").lower() or f"label_{n}" for n, label in enumerate(labels)]
    if len(set(names)) < len(names):
        raise UserError(f"The classifier's labels {', '.join(labels)} are not told apart by letters and digits.")
    return names
