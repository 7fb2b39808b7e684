"""The rater: a language model's body with one linear scalar for each criterion, read at the last real token (QuRating,
section 3.3).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.data import Tokenizer
from lmlab.errors import UserError, reads
from lmlab.files import read_mapping, sha256_json, write_json
from lmlab.hardware import select_device, select_dtype
from lmlab.hardware.gemm import fast_inference
from lmlab.methods.qurating.rating.criteria import DEFAULT_CRITERIA
from lmlab.methods.qurating.rating.problems import CriteriaMismatch
from lmlab.models import Transformer, from_pretrained, read_settings, save_pretrained, weights_fingerprint
from lmlab.runs import Artifact
from lmlab.words import counted

_log = logging.getLogger(__name__)
_BATCH_TOKENS = {"cpu": 512, "cuda": 131_072}  # padded, of a pass: more take memory, fewer leave a processor waiting

Scores = NDArray[np.float32]
Ids = Sequence[int] | NDArray[np.int32]


@dataclass(frozen=True)
class StoredRater(Artifact):
    """A rater's directory, the stage that trained it, or a run with one."""

    called: ClassVar[str] = "a rater"

    @classmethod
    def _at(cls, path: Path) -> StoredRater | None:
        return next((cls(each) for each in (path, path / "rater") if (each / "config.json").exists()), None)

    @classmethod
    def _remedy(cls) -> str:
        return "Train one: lmlab quality train"


class Rater:
    """Gives texts scores, one for each criterion.

    Arguments:
        model: with `num_labels`.
        criteria: names of its scalars, in order.
        segment: tokens of a segment; longer texts are cut, and their segments' scores averaged by length.
        device, precision: as in `TrainerConfig`.
        batch_tokens: the most tokens of a batch.

    Raises:
        CriteriaMismatch: the model has another number of scalars.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        criteria: Sequence[str],
        segment: int = 512,
        device: str = "auto",
        precision: str = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        if model.config.num_labels != len(criteria):
            raise CriteriaMismatch(
                f"The rater has {model.config.num_labels} scalars, and {counted(len(criteria), 'criteria are')} named:"
                f" {', '.join(criteria)}."
            )
        self.device = select_device(device)
        self.dtype = select_dtype(precision, self.device)
        self.model, self.tokenizer, self.criteria = model.to(self.device).eval(), tokenizer, tuple(criteria)
        self.segment = min(segment, model.config.max_seq_len)
        self.batch_tokens = batch_tokens or _BATCH_TOKENS.get(self.device.type, 8192)

    @classmethod
    @reads("the directory of a rater")
    def from_pretrained(cls, directory: Path | str, criteria: Sequence[str] | None = None, **options: Any) -> Rater:
        """Read a rater: a Hugging Face directory of a model for sequence classification with `score.weight`.

        Arguments:
            criteria: that are expected.
            options: further arguments of the class.

        Raises:
            CriteriaMismatch: the checkpoint has other criteria, or does not name them and has not four.
            UserError: there is no rater.
        """
        directory = StoredRater.find(directory).path
        settings = read_settings(directory)
        model = from_pretrained(directory)
        if model.config.num_labels is None:
            raise UserError(f"'{directory}' is a language model, not a rater.", "Train one: lmlab quality train")
        named = settings.get("criteria")
        if named is None:
            if model.config.num_labels != len(DEFAULT_CRITERIA) and criteria is None:
                raise CriteriaMismatch(
                    f"'{directory}' does not name its {model.config.num_labels} criteria.",
                    'Put "criteria": [...] in its config.json.',
                )
            named = list(criteria or DEFAULT_CRITERIA)
            _log.warning("'%s' does not name its criteria: they are taken for %s", directory, ", ".join(named))
        if criteria is not None and list(criteria) != list(named):
            raise CriteriaMismatch(
                f"The rater has the criteria {', '.join(named)}; asked for are {', '.join(criteria)}.",
                "Ask for those it has.",
            )
        if "segment" in settings:
            options.setdefault("segment", settings["segment"])
        return cls(model, Tokenizer.load(directory), named, **options)

    def save(self, directory: str | Path) -> None:
        """Write a directory that `transformers` reads as a model for sequence classification, with the names of the
        criteria.
        """
        directory = Path(directory)
        save_pretrained(
            self.model, directory, tokens={"pad_token_id": self.tokenizer.eos_id, "eos_token_id": self.tokenizer.eos_id}
        )
        self.tokenizer.save(directory)
        names = {str(number): name for number, name in enumerate(self.criteria)}
        labels = {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}
        settings = read_mapping(directory / "config.json")
        write_json(
            directory / "config.json", settings | labels | {"criteria": list(self.criteria), "segment": self.segment}
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights, shape, tokenizer and criteria."""
        shape = self.model.config.model_dump(mode="json")
        return sha256_json(
            [weights_fingerprint(self.model), shape, self.tokenizer.fingerprint, self.criteria, self.segment]
        )

    def score_ids(self, segments: Sequence[Ids]) -> Scores:
        """Scores of token sequences of 1 to `max_seq_len` tokens, [N, C]; long ones are computed together.

        Rows are padded on the right, where causal attention cannot see: what is read at the last real token does not
        depend on the batch.
        """
        found = np.zeros((len(segments), len(self.criteria)), np.float32)
        order = sorted(range(len(segments)), key=lambda number: -len(segments[number]))
        place = 0
        while place < len(order):
            longest = len(segments[order[place]])
            batch = order[place : place + max(1, self.batch_tokens // longest)]
            found[batch] = self._batch([segments[number] for number in batch], longest)
            place += len(batch)
        return found

    @torch.inference_mode()
    def _batch(self, segments: Sequence[Ids], longest: int) -> Scores:
        ids_BT = np.zeros((len(segments), longest), np.int64)
        for row, ids in zip(ids_BT, segments, strict=True):
            row[: len(ids)] = ids
        ends_B1 = torch.tensor([[len(ids) - 1] for ids in segments], device=self.device)
        autocast = nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)
        with autocast, fast_inference():
            scores = self.model(torch.from_numpy(ids_BT).to(self.device), scores_at_BN=ends_B1).scores_BC
        return scores[:, 0].float().cpu().numpy()

    def segments(self, ids: Ids) -> list[Ids]:
        """Consecutive pieces of `segment` tokens, the last one shorter."""
        return [ids[start : start + self.segment] for start in range(0, len(ids), self.segment)]

    def rate_ids(self, documents: Sequence[Ids]) -> Iterator[tuple[list[int], Scores]]:
        """For each document the lengths of its segments and their scores, [segments, C]; none for a document without
        tokens.
        """
        pieces = [self.segments(ids) for ids in documents]
        scores = self.score_ids([piece for document in pieces for piece in document])
        place = 0
        for document in pieces:
            yield [len(piece) for piece in document], scores[place : place + len(document)]
            place += len(document)

    def rate(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Ratings of whole texts, [N, C]: averages over segments, weighted by their lengths; NaN for a text without
        tokens.
        """
        found = [
            weighted_mean(lengths, scores)
            for lengths, scores in self.rate_ids(self.tokenizer.encode_batch(list(texts), "as_text"))
        ]
        return np.array(found).reshape(len(texts), len(self.criteria))

    def reward(self, texts: Sequence[str], weights: Sequence[float] | None = None) -> list[float]:
        """One number a text, the weighted sum of its ratings: a reward function for post-training."""
        return (self.rate(texts) @ np.asarray(weights if weights is not None else np.ones(len(self.criteria)))).tolist()

    def annotate(
        self, rows: Iterable[dict[str, Any]], text: str = "text", batch: int = 256
    ) -> Iterator[dict[str, Any]]:
        """Rows with their annotation beside their own columns; see `annotating` for corpora on the disk.

        Arguments:
            text: the column of texts.
            batch: rows at once.
        """
        source = iter(rows)
        while part := list(islice(source, batch)):
            encoded = self.tokenizer.encode_batch([row[text] or "" for row in part], "as_text")
            for row, (lengths, scores) in zip(part, self.rate_ids(encoded), strict=True):
                yield row | annotation(self.criteria, lengths, scores)


def weighted_mean(lengths: Sequence[int], scores: Scores) -> NDArray[np.float64]:
    """The mean over segments, weighted by their lengths, in float64; NaN without segments."""
    if not lengths:
        return np.full(scores.shape[1], np.nan)
    return np.average(scores.astype(np.float64), axis=0, weights=np.array(lengths, np.float64))


def annotation(criteria: Sequence[str], lengths: Sequence[int], scores: Scores) -> dict[str, Any]:
    """The columns of the published layout: `{c}_chunks`, `{c}_average`, `chunk_lengths`, `length`; averages of an empty
    text are null.
    """
    mean = weighted_mean(lengths, scores)
    found: dict[str, Any] = {}
    for column, name in enumerate(criteria):
        found[f"{name}_chunks"] = scores[:, column].tolist()
        found[f"{name}_average"] = None if not lengths else float(mean[column])
    return found | {"chunk_lengths": list(lengths), "length": sum(lengths)}
