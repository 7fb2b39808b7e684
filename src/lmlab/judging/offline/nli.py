"""A classifier of one's own, in an ONNX file, that says whether a sentence supports or contradicts another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError, missing_extra
from lmlab.files import content_digest, read_json
from lmlab.judging.answers.item import AnswerItem
from lmlab.judging.offline.scorers import Range
from lmlab.judging.offline.sentences import sentences

_LONGEST = 256  # tokens, where the graph takes any length
_BATCH = 16  # pairs, padded to the longest: more pad more, fewer start more passes
_SUPPORT, _CONFLICT = ("entailment", "support", "supported", "entails"), ("contradiction", "conflict", "contradicts")


class OnnxNli:
    """For each key point: the largest support by a sentence of the answer, or by all of it, less the largest conflict.

    The file stands in a folder with `tokenizer.json` and `config.json`, whose `id2label` says which output is support
    (`entailment`) and which conflict (`contradiction`); one of them may be missing. How long its input is, it says
    itself.

    Arguments:
        session: of onnxruntime.
        tokenizer: of the package tokenizers.
        labels: number of an output -> its name.
        identity: stands for the file.
    """

    name = "nli"
    range = Range(-1.0, 1.0)

    def __init__(self, session: Any, tokenizer: Any, labels: Mapping[int, str], identity: str) -> None:
        self.session, self.tokenizer = session, tokenizer
        named = {name.casefold(): number for number, name in labels.items()}
        self.support = next((named[each] for each in _SUPPORT if each in named), None)
        self.conflict = next((named[each] for each in _CONFLICT if each in named), None)
        if self.support is None and self.conflict is None:
            raise UserError(
                f"None of the labels {', '.join(labels.values())} is support or conflict.",
                "Name them entailment and contradiction in id2label of config.json.",
            )
        self.inputs = {each.name: each.shape for each in session.get_inputs()}
        lengths = [shape[1] for shape in self.inputs.values() if len(shape) == 2 and isinstance(shape[1], int)]
        self.length, self.fixed = (lengths[0], True) if lengths else (_LONGEST, False)
        self.fingerprint: Mapping[str, Any] = {"file": identity, "labels": dict(labels), "version": 1}

    @classmethod
    def load(cls, place: str | Path) -> OnnxNli:
        """From a file, or a folder with one.

        Raises:
            UserError: it is not there, not an ONNX file, or lacks its tokenizer or labels.
        """
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ModuleNotFoundError:
            raise missing_extra("onnxruntime", "A judge by an ONNX file") from None
        path = Path(place).expanduser()
        files = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
        if len(files) != 1 or not files[0].is_file():
            raise UserError(f"'{place}' is not an ONNX file, nor a folder with one.", "Name the file.")
        folder = files[0].parent
        for name in ("tokenizer.json", "config.json"):
            if not (folder / name).is_file():
                raise UserError(f"'{folder}' lacks {name}, which says how texts and labels are read.", "Copy it there.")
        labels = read_json(folder / "config.json").get("id2label")
        if not isinstance(labels, dict) or not all(str(key).isdigit() for key in labels):
            raise UserError(f"'{folder / 'config.json'}' has no id2label.", "Name the outputs there.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library has a type for each way in which a file is not one
            raise UserError(f"'{files[0]}' cannot be loaded: {next(iter(str(error).splitlines()), '')}.") from None
        numbered = {int(key): str(name) for key, name in labels.items()}
        words = folder / "tokenizer.json"  # the same graph reads other texts by another one
        identity = "-".join(str(content_digest(str(each))) for each in (files[0], words))
        return cls(session, Tokenizer.from_file(str(words)), numbered, identity)

    def score(self, items: Sequence[AnswerItem]) -> list[list[float]]:
        """From -1 (contradicted) to 1 (supported) a key point."""
        places: dict[tuple[str, str], int] = {}
        parts = [list(dict.fromkeys([*sentences(item.answer), item.answer])) for item in items]
        for item, part in zip(items, parts, strict=True):
            for point in item.key_points:
                for sentence in part:
                    places.setdefault((sentence, point), len(places))
        chances = self._probabilities(list(places))
        found = []
        for item, part in zip(items, parts, strict=True):
            row = []
            for point in item.key_points:
                own = chances[[places[sentence, point] for sentence in part]]
                support = float(own[:, self.support].max()) if self.support is not None else 0.0
                conflict = float(own[:, self.conflict].max()) if self.conflict is not None else 0.0
                row.append(support - conflict)
            found.append(row)
        return found

    def entails(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the most probable label of a text and a claim is support, of all of the text or of one of its
        sentences: what is longer than the graph's input is cut there.
        """
        assert self.support is not None
        parts = [list(dict.fromkeys([text, *sentences(text)])) for text, _ in pairs]
        asked = [(part, claim) for each, (_, claim) in zip(parts, pairs, strict=True) for part in each]
        supported = iter(self._probabilities(asked).argmax(1) == self.support)
        return [any([bool(next(supported)) for _ in each]) for each in parts]

    def _probabilities(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        self.tokenizer.enable_truncation(self.length)
        self.tokenizer.enable_padding(length=self.length if self.fixed else None)
        rows = []
        for start in range(0, len(pairs), _BATCH):
            coded = self.tokenizer.encode_batch(list(pairs[start : start + _BATCH]))
            given = {
                "input_ids": [each.ids for each in coded],
                "attention_mask": [each.attention_mask for each in coded],
                "token_type_ids": [each.type_ids for each in coded],
            }
            feed = {name: np.array(values, np.int64) for name, values in given.items() if name in self.inputs}
            # A graph for one row at a time says so by its fixed first dimension.
            if all(shape[0] == 1 for shape in self.inputs.values()):
                rows += [
                    self.session.run(None, {n: v[i : i + 1] for n, v in feed.items()})[0] for i in range(len(coded))
                ]
            else:
                rows.append(self.session.run(None, feed)[0])
        if not rows:
            return np.zeros((0, 1 + max(each for each in (self.support, self.conflict) if each is not None)))
        logits = np.concatenate(rows).astype(float)
        exponents = np.exp(logits - logits.max(1, keepdims=True))
        return exponents / exponents.sum(1, keepdims=True)
