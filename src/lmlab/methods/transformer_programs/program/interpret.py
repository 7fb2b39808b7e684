"""Runs programs on many sequences at once.

Categories are numbered over the whole program, so that a head compares numbers and a table is an array.

Shapes: B sequences, N places, Q of them as queries, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lmlab.errors import UserError, did_you_mean
from lmlab.methods.transformer_programs.program.ir import MOST_PLACES, SELECT_SUM, Lookup, Program, Select, spelled
from lmlab.methods.transformer_programs.program.tables import PLACEHOLDER

Rule = Literal["faithful", "emitted"]
"""Which place a head takes: `faithful`: the nearest, the left one at equal distance, the query's own place last; as the
trained network does. `emitted`: as the Python text of the reference does, where the own place counts as if it stood as
many places away as there are matches.
"""

UNKNOWN, PADDING = "<unk>", "<pad>"
_MOST_CELLS = 1 << 22  # of the matrix of places by places of all sequences that run at once
_DENSE = 1 << 20  # cells of a table that is looked up by place (8 MiB); larger ones by search
_NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Execution:
    """What running a program gave, for sequences that are padded to one length.

    Attributes:
        tokens: as they were given.
        lengths_B: places of each sequence.
        logits: (B, N, C), or (B, C) of a program that pools.
        columns: variable -> (B, N): numbers, or the numbers of categories.
        places: of heads, for each place the place that it took (B, N); -1 where nothing matched.
    """

    program: Program
    tokens: list[list[str]]
    lengths_B: np.ndarray
    logits: np.ndarray
    columns: dict[str, np.ndarray]
    places: dict[str, np.ndarray]
    names: list[Any]

    @property
    def label_ids(self) -> np.ndarray:
        """(B, N), or (B,) of a program that pools: the number of the label, the lowest of those that tie."""
        return self.logits.argmax(-1)

    @property
    def answers(self) -> list[Any]:
        """For each sequence its labels, with the marks at its ends, or its one label."""
        labels = self.program.labels
        if self.program.pool_outputs:
            return [labels[each] for each in self.label_ids.tolist()]
        return [
            _with_marks(self.program, tokens, [labels[each] for each in row[: len(tokens)]])
            for tokens, row in zip(self.tokens, self.label_ids.tolist(), strict=True)
        ]

    def variable(self, name: str, sequence: int) -> list[Any]:
        """The values of a variable at each place of a sequence."""
        row = self.columns[name][sequence, : self.lengths_B[sequence]].tolist()
        if name in self.program.numerical:
            return [int(each) if float(each).is_integer() else each for each in row]
        return [self.names[each] for each in row]


class Interpreter:
    """A program that is ready to run.

    Arguments:
        rule: which place a head takes.
    """

    def __init__(self, program: Program, rule: Rule = "faithful") -> None:
        self.program, self.rule = program, rule
        self._numbers: dict[Any, int] = {None: 0}  # 0 is the padding
        for node in program.nodes:
            if isinstance(node, Select):
                for pair in node.predicate:
                    for each in pair:
                        self._number(each)
                continue
            for result in (*node.table.values(), *([] if node.default is None else [node.default])):
                self._number(result)
            for key in node.table:
                for name, value in zip(node.inputs, key, strict=True):
                    if name not in program.numerical:
                        self._number(value)
        words = program.vocabulary
        if words is None and program.embeddings is not None:
            words = program.embeddings.words  # no other word has a category
        self._vocabulary = None if words is None else set(words)
        for word in program.vocabulary or ():
            self._number(word)
        if program.embeddings is not None:
            for name in program.embeddings.columns:
                if name not in program.numerical:
                    for category in program.embeddings.values(name):
                        self._number(category)
        self._longest, self._live = program.longest, program.live
        self._tables: dict[str, _Table] = {}

    def _number(self, value: Any) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    def run(self, sequences: Sequence[Sequence[str]]) -> Execution:
        """Run on sequences of tokens, marks included.

        Raises:
            UserError: a sequence is empty or too long, a token is unknown and the program has no `<unk>`, or a table
                has no row for what stands at a place.
        """
        tokens = [self._known(list(each), number) for number, each in enumerate(sequences)]
        lengths_B = np.array([len(each) for each in tokens], dtype=np.int64)
        longest = int(lengths_B.max(initial=1))
        parts = [self._run(tokens[first:last], longest) for first, last in _parts(len(tokens), longest)]
        if not parts:
            parts = [self._run([], longest)]
        logits, columns, places = parts[0]
        if len(parts) > 1:
            logits = np.concatenate([part[0] for part in parts])
            columns = {name: np.concatenate([part[1][name] for part in parts]) for name in columns}
            places = {name: np.concatenate([part[2][name] for part in parts]) for name in places}
        original = [list(each) for each in sequences]
        return Execution(self.program, original, lengths_B, logits, columns, places, list(self._numbers))

    def predict(self, sequences: Sequence[Sequence[str]]) -> list[Any]:
        """The answers alone."""
        return self.run(sequences).answers

    def _known(self, tokens: list[str], number: int) -> list[str]:
        if not tokens:
            raise UserError(f"Sequence {number + 1} is empty.", "Give at least one token.")
        if len(tokens) > MOST_PLACES:
            raise UserError(f"Sequence {number + 1} has {len(tokens):,} places; at most {MOST_PLACES:,} are run.")
        if self._longest is not None and len(tokens) > self._longest:
            raise UserError(
                f"Sequence {number + 1} has {len(tokens)} places, but the program knows {self._longest}"
                f" ({self.program.bound_by}).",
                "Shorten it, or train with forbid: [positions], which gives programs for any length.",
            )
        lower, replace_numbers = self.program.lower, self.program.replace_numbers
        if lower or replace_numbers:
            tokens = [spelled(token, lower, replace_numbers) for token in tokens]
        if PADDING in tokens:
            raise UserError(f"Sequence {number + 1}: '{PADDING}' is a reserved mark.", "Spell this token otherwise.")
        known = self._vocabulary
        if known is None:
            return tokens
        unknown = next((place for place, token in enumerate(tokens) if token not in known), None)
        if unknown is None:
            return tokens
        if UNKNOWN in known:
            return [token if token in known else UNKNOWN for token in tokens]
        raise UserError(
            f"Sequence {number + 1}, place {unknown}: the token {tokens[unknown]!r:.60} is not in the program's"
            f" vocabulary. {did_you_mean(tokens[unknown], known)}"
        )

    def _run(
        self, tokens: list[list[str]], longest: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
        program, shape_BN = self.program, (len(tokens), longest)
        valid_BN = np.zeros(shape_BN, dtype=bool)
        for row, each in zip(valid_BN, tokens, strict=True):
            row[: len(each)] = True
        columns = {name: self._input(name, tokens, valid_BN) for name in program.inputs}
        places: dict[str, np.ndarray] = {}
        at_once = max(1, _MOST_CELLS // (max(1, len(tokens)) * longest))
        for node in program.nodes:
            if isinstance(node, Lookup):
                columns[node.name] = self._lookup(node, [columns[name] for name in node.inputs], valid_BN)
                continue
            # all queries at once but for very long sequences
            parts = [
                self._select(node, columns, valid_BN, np.arange(first, min(longest, first + at_once)))
                for first in range(0, longest, at_once)
            ]
            columns[node.name] = np.concatenate([part[0] for part in parts], 1)
            if node.op != SELECT_SUM:
                places[node.name] = np.concatenate([part[1] for part in parts], 1)
        return self._logits(columns, valid_BN), columns, places

    def _input(self, name: str, tokens: list[list[str]], valid_BN: np.ndarray) -> np.ndarray:
        numbers, found_BN = self._numbers, np.zeros(valid_BN.shape, dtype=np.int64)
        if name == "ones":
            return valid_BN.astype(np.float64)
        if name == "positions":
            ids_N = np.array([self._number(place) for place in range(valid_BN.shape[1])], dtype=np.int64)
            return np.where(valid_BN, ids_N, 0)
        if name == "tokens":
            for row, each in zip(found_BN, tokens, strict=True):
                row[: len(each)] = [numbers[token] if token in numbers else self._number(token) for token in each]
            return found_BN
        embeddings = self.program.embeddings
        assert embeddings is not None
        values = embeddings.values(name)
        if name in self.program.numerical:
            numbers_BN = np.zeros(valid_BN.shape)
            for row, each in zip(numbers_BN, tokens, strict=True):
                row[: len(each)] = [values[embeddings.index[token]] for token in each]
            return numbers_BN
        ids = [numbers[value] for value in values]
        for row, each in zip(found_BN, tokens, strict=True):
            row[: len(each)] = [ids[embeddings.index[token]] for token in each]
        return found_BN

    def _match(self, node: Select, key_BN: np.ndarray, query_BN: np.ndarray) -> np.ndarray:
        """(B, Q queries, N keys): which places match."""
        pairs = [(self._numbers[q], self._numbers[k]) for q, k in node.predicate]
        count = len(self._numbers)
        if len({q for q, _ in pairs}) == len(pairs):  # one partner each
            partner = np.full(count, -1, dtype=np.int64)
            for q, k in pairs:
                partner[q] = k
            return partner[query_BN][:, :, None] == key_BN[:, None, :]
        queries, keys = sorted({q for q, _ in pairs}), sorted({k for _, k in pairs})
        row, column = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        row[queries], column[keys] = np.arange(1, len(queries) + 1), np.arange(1, len(keys) + 1)
        related = np.zeros((len(queries) + 1, len(keys) + 1), dtype=bool)
        related[row[[q for q, _ in pairs]], column[[k for _, k in pairs]]] = True
        return related[row[query_BN][:, :, None], column[key_BN][:, None, :]]

    def _select(
        self, node: Select, columns: dict[str, np.ndarray], valid_BN: np.ndarray, queries_Q: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a head gives for some of the places, and the places that it takes: (B, Q) each."""
        valid_BQ, value_BN = valid_BN[:, queries_Q], columns[node.value]
        match_BQN = self._match(node, columns[node.key], columns[node.query][:, queries_Q])
        match_BQN &= valid_BN[:, None, :] & valid_BQ[:, :, None]
        if node.causal or self.program.autoregressive:
            match_BQN &= np.arange(valid_BN.shape[1])[None, :] <= queries_Q[:, None]
        if node.op == SELECT_SUM:
            found_BQ = np.matmul(match_BQN.astype(np.float64), value_BN[:, :, None])[:, :, 0]
            return found_BQ, found_BQ
        place_BQ = self._nearest(match_BQN, queries_Q)
        taken_BQ = np.take_along_axis(value_BN, np.maximum(place_BQ, 0), 1)
        return np.where(valid_BQ, taken_BQ, 0), np.where(valid_BQ, place_BQ, -1)

    def _nearest(self, match_BQN: np.ndarray, queries_Q: np.ndarray) -> np.ndarray:
        """(B, Q): the place that each takes; -1 where nothing matches."""
        longest = match_BQN.shape[-1]
        offset_QN = np.arange(longest)[None, :] - queries_Q[:, None]
        if self.rule == "faithful":
            cost_QN = np.where(offset_QN == 0, 2 * longest + 2, 2 * np.abs(offset_QN) + (offset_QN > 0))
            cost_BQN = np.where(match_BQN, cost_QN.astype(np.int32), _NEVER)
        else:
            own_BQ1 = match_BQN.sum(-1, keepdims=True, dtype=np.int32)
            cost_BQN = np.where(offset_QN == 0, own_BQ1, np.abs(offset_QN).astype(np.int32))
            cost_BQN = np.where(match_BQN, cost_BQN, _NEVER)
        return np.where(match_BQN.any(-1), cost_BQN.argmin(-1), -1)

    def _lookup(self, node: Lookup, inputs: list[np.ndarray], valid_BN: np.ndarray) -> np.ndarray:
        if node.name not in self._tables:
            self._tables[node.name] = _Table(node, self.program, self._numbers)
        found_BN = self._tables[node.name].find(inputs)
        missing = np.argwhere((found_BN < 0) & valid_BN)
        if len(missing) and node.name in self._live:
            b, n = missing[0]
            key = [
                float(column[b, n]) if name in self.program.numerical else list(self._numbers)[column[b, n]]
                for name, column in zip(node.inputs, inputs, strict=True)
            ]
            raise UserError(
                f"The table '{node.name}' has no row for {key!r:.120} (place {n}).",
                "Its program was exported with the rows that its training data reach; export it with more data.",
            )
        # a table on which no answer depends may have no row for what stands at a place
        return np.where(valid_BN & (found_BN >= 0), found_BN, 0)

    def _logits(self, columns: dict[str, np.ndarray], valid_BN: np.ndarray) -> np.ndarray:
        program = self.program
        logits_BNC = np.zeros((*valid_BN.shape, len(program.labels)))
        for feature, rows in program.classifier.weights.items():
            column = columns[feature]
            if feature in program.numerical:
                logits_BNC += column[:, :, None] * np.array(rows[PLACEHOLDER])
                continue
            if not program.classifier.matters(feature):  # equal rows are a constant, whatever the value
                logits_BNC += valid_BN[:, :, None] * np.array(next(iter(rows.values())))
                continue
            weights = np.zeros((len(rows) + 1, len(program.labels)))
            row_of = np.full(len(self._numbers), -1, dtype=np.int64)
            line = {value: number for number, value in enumerate(rows)}
            for value, number in self._numbers.items():
                row_of[number] = line.get(str(value), -1) if value is not None else len(rows)
            weights[:-1] = list(rows.values())
            found_BN = row_of[column]
            if (found_BN < 0).any():
                b, n = np.argwhere(found_BN < 0)[0]
                value = list(self._numbers)[column[b, n]]
                raise UserError(f"The classifier has no row for the value {value!r:.60} of '{feature}' (place {n}).")
            logits_BNC += weights[found_BN]
        if not program.pool_outputs:
            return logits_BNC
        logits_BNC *= valid_BN[:, :, None]
        return logits_BNC.sum(1) / np.maximum(valid_BN.sum(1), 1)[:, None]


class _Table:
    """A lookup as an array: each input has a digit, the keys are numbers of those digits."""

    def __init__(self, node: Lookup, program: Program, numbers: dict[Any, int]) -> None:
        self.default = -1 if node.default is None else numbers[node.default]
        columns = [
            np.array(
                [key[place] if name in program.numerical else numbers[key[place]] for key in node.table],
                dtype=np.float64 if name in program.numerical else np.int64,
            )
            for place, name in enumerate(node.inputs)
        ]
        results = np.array([numbers[value] for value in node.table.values()], dtype=np.int64)
        self.digits = [np.unique(column) for column in columns]
        self.prefixes: list[np.ndarray] = []  # of wide tables: the codes that its keys have after each input
        self.dense: np.ndarray | None = None
        if math.prod(len(each) + 1 for each in self.digits) <= _DENSE:
            codes = self._codes(columns)
            self.dense = np.full(math.prod(len(each) + 1 for each in self.digits), self.default, dtype=np.int64)
            self.dense[codes] = results
        else:
            code = np.zeros(len(results), dtype=np.int64)
            for values, column in zip(self.digits, columns, strict=True):
                code = code * (len(values) + 1) + _rank(values, column)
                self.prefixes.append(np.unique(code))
                code = _rank(self.prefixes[-1], code)
            self.results = np.empty_like(results)
            self.results[code] = results

    def _codes(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """One number for each key. In wide tables it is ranked among those of the table after each input, so that it
        never has more values than there are rows times those of an input.
        """
        code = np.zeros(columns[0].shape, dtype=np.int64)
        for number, (values, column) in enumerate(zip(self.digits, columns, strict=True)):
            code = code * (len(values) + 1) + _rank(values, column)
            if self.prefixes:
                code = _rank(self.prefixes[number], code)
        return code

    def find(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """The numbers of the results; the default's, or -1, for keys that are not in the table."""
        codes = self._codes(columns)
        if self.dense is not None:
            found: np.ndarray = self.dense[codes]
            return found
        known = codes < len(self.results)
        return np.where(known, self.results[np.where(known, codes, 0)], self.default)


def _rank(values: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The place of each entry among sorted values; after the last for what is none of them."""
    if not len(values):
        return np.zeros(column.shape, dtype=np.int64)
    place = np.minimum(np.searchsorted(values, column), len(values) - 1)
    return np.where(values[place] == column, place, len(values))


def _parts(count: int, longest: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _MOST_CELLS // (longest * longest))
    for first in range(0, count, rows):
        yield first, min(count, first + rows)


def _with_marks(program: Program, tokens: list[str], labels: list[str]) -> list[str]:
    if tokens[0] == program.bos:
        labels[0] = program.bos
    if tokens[-1] == program.eos:
        labels[-1] = program.eos
    return labels
