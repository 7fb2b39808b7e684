"""Makes a program short: first without changing what it computes, then as far as a stated accuracy allows.

A variable is removed by fixing it at its most common value; the classifier is fitted again to what remains
(multinomial logistic regression). Every step is measured on examples, and only kept while the accuracy stays.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.analysis.transform import drop_dead, fix, simplify
from lmlab.methods.transformer_programs.config import MAX_ACCURACY_DROP
from lmlab.methods.transformer_programs.program.domains import domains
from lmlab.methods.transformer_programs.program.emitting.emit import to_python
from lmlab.methods.transformer_programs.program.interpret import Execution, Interpreter
from lmlab.methods.transformer_programs.program.ir import Lookup, Node, Program, Select, Value, add_constant
from lmlab.methods.transformer_programs.program.tables import PLACEHOLDER, Classifier
from lmlab.methods.transformer_programs.tasks.rasp import PAD, Example
from lmlab.progress import Advance, progress

_MOST_EXAMPLES = 3000  # each step is measured on all of them, and there are many steps
_ITERATIONS = 60  # of L-BFGS: the search fits again after each step, and has not far to go
_FIRST_MEASURED = 200  # examples; each further part doubles what has run
_FITTED = 1000  # examples that a step of the search fits to; all that it uses measure it
_STEPS_BACK = 6  # of the search that the check on all examples may undo
_PENALTY = 1e-5  # what examples leave open then stays near 0, and what they tell is hardly moved


@dataclass(frozen=True)
class Minimized:
    """A shorter program, and what it cost.

    Attributes:
        before, after: accuracy, lines of Python, nodes, rows.
    """

    program: Program
    before: dict[str, Any]
    after: dict[str, Any]


def minimize(
    program: Program,
    examples: Sequence[Example],
    max_accuracy_drop: float = MAX_ACCURACY_DROP,
    refit: bool = True,
    seconds: float | None = None,
) -> Minimized:
    """A shorter program whose accuracy on the examples is at most so much lower.

    Arguments:
        examples: labeled sequences, such as the training data; the first 3,000 are used while searching, all for the
            check at the end.
        refit: also fit the classifier again; else its rows are only dropped and added.
        seconds: how long to look for what can go; by default until nothing makes it shorter. What was found by then is
            still checked on all examples.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    before = {"accuracy": score(program, examples), **described(program)}
    exact = simplify(program)
    used = examples[:_MOST_EXAMPLES]
    least = before["accuracy"] - max_accuracy_drop
    with progress("minimize", None, "tries") as advance:
        search = _Search(used, max(score(exact, used), before["accuracy"]) - max_accuracy_drop, advance, deadline)
        stages = [exact, search.fix_variables(exact)]
        if refit:
            shortest = search.with_refits(stages[-1])
            stages += [shortest, _refitted(shortest, used) or shortest]
    # what the search did not see may need more than it left: all examples decide, and earlier steps stand ready
    trail = [_bound(each, program) for each in (*stages, *search.accepted[::-1][:_STEPS_BACK])]
    found = _shortest([*(_shorten(each, used) for each in trail), *trail], examples, least)
    found = _bound(replace(found or exact, bounded=program.bounded), program)
    return Minimized(found, before, {"accuracy": score(found, examples), **described(found)})


def _bound(program: Program, original: Program) -> Program:
    """The program, still bound to the length of the original where a table of numbers would answer, by its default,
    what neither the original nor any example has asked.
    """
    if program.longest is not None or original.longest is None:
        return program
    live = program.live
    answers_all = any(
        isinstance(node, Lookup) and node.name in live and node.default is not None
        and any(name in program.numerical for name in node.inputs)
        for node in program.nodes
    )  # fmt: skip
    return replace(program, bounded=True, max_length=original.longest) if answers_all else program


def described(program: Program) -> dict[str, int]:
    """Its size, with the lines of its Python text."""
    return {"lines": to_python(program).count("\n"), **program.size()}


def _reaches(program: Program, examples: Sequence[Example], least: float) -> bool:
    """Whether the accuracy is as high; not where a change made a table of reached rows, or the classifier, meet what it
    has not. Few examples show of most changes that they cost too much, so that the others need not run.
    """
    pooled = program.pool_outputs
    places = sum(
        any(each != PAD for each in labels) if pooled else len(labels) - labels.count(PAD) for _, labels in examples
    )
    interpreter, right, seen, first = Interpreter(program), 0, 0, 0
    try:
        while first < len(examples):
            part = examples[first : first + max(_FIRST_MEASURED, first)]
            more_right, more = _counted(interpreter, part)
            right, seen, first = right + more_right, seen + more, first + len(part)
            if places and (right + places - seen) / places < least:  # were all others right
                return False
    except UserError:
        return False
    return True


def score(program: Program, examples: Sequence[Example]) -> float:
    """The share of labeled places with the right answer."""
    right, places = _counted(Interpreter(program), examples)
    return right / places if places else 1.0


def _counted(interpreter: Interpreter, examples: Sequence[Example]) -> tuple[int, int]:
    """The labeled places with the right answer, and all of them."""
    execution = interpreter.run([tokens for tokens, _ in examples])
    wanted = _wanted(interpreter.program, examples, execution)
    return int((execution.label_ids == wanted).sum()), int((wanted != -1).sum())


def _wanted(program: Program, examples: Sequence[Example], execution: Execution) -> np.ndarray:
    """The numbers of the right labels; -1 where there is none, -2 for one that the program does not know."""
    number = {label: place for place, label in enumerate(program.labels)}
    wanted = np.full(execution.label_ids.shape, -1, dtype=np.int64)
    for row, (_, labels) in enumerate(examples):
        ids = [-1 if label == PAD else number.get(label, -2) for label in labels]
        if program.pool_outputs:
            wanted[row] = next((each for each in ids if each != -1), -1)
        else:
            wanted[row, : len(ids)] = ids
    return wanted


def _shortest(programs: Sequence[Program], examples: Sequence[Example], least: float) -> Program | None:
    """The shortest program with an accuracy."""
    for each in sorted(programs, key=lambda each: (to_python(each).count("\n"), each.size()["classifier_rows"])):
        if _reaches(each, examples, least):
            return each
    return None


class _Search:
    """Removes what the accuracy on examples does not need.

    Attributes:
        accepted: the programs on the way, each shorter than the one before it.
    """

    def __init__(
        self, examples: Sequence[Example], floor: float, advance: Advance, deadline: float | None = None
    ) -> None:
        self.examples, self.floor, self.advance, self.deadline = examples, floor, advance, deadline
        self.accepted: list[Program] = []
        self._ran: Execution | None = None  # of the last program whose values were counted

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def fix_variables(self, program: Program) -> Program:
        """Fix variables at their most common value, the last nodes first, and drop features."""
        for node in reversed(program.nodes):
            if node.name in program.variables and not self.over:
                program = self._kept(self._fixed(program, node.name)) or program
        for feature in list(program.classifier.features):
            if not self.over:
                program = self._kept(_without_feature(program, feature)) or program
        return program

    def with_refits(self, program: Program) -> Program:
        """Drop features and fix variables, fitting the classifier again each time, those that say least first."""
        while True:
            before = program
            order = sorted(program.classifier.features, key=lambda name: _spread(program.classifier.rows_of(name)))
            program = self._removed(program, [name for name in order if name != "ones"], _without_feature)
            program = self._removed(program, [node.name for node in reversed(program.nodes)], self._fixed)
            if self.over or len(program.nodes) == len(before.nodes):
                return program

    def _removed(
        self, program: Program, names: Sequence[str], remove: Callable[[Program, str], Program | None]
    ) -> Program:
        """The program without as many of the variables as can go: many at once while that goes well, else fewer."""
        place, size = 0, max(1, len(names) // 2)
        while place < len(names) and not self.over:
            changed, some = program, False
            for name in names[place : place + size]:
                further = remove(changed, name) if name in changed.variables else None
                changed, some = further or changed, some or further is not None
            found = self._kept(_refitted(changed, self.examples[:_FITTED])) if some else None
            if found is not None or not some:
                program, place, size = found or program, place + size, size * 2
            elif size > 1:
                size //= 2
            else:
                place += 1
        return program

    def _fixed(self, program: Program, name: str) -> Program | None:
        try:
            value = self._most_common(program, name)
        except UserError:  # a table has no row for what the changed program meets
            return None
        return fix(program, name, value)

    def _kept(self, changed: Program | None) -> Program | None:
        """The changed program, simplified, if it is accurate enough."""
        self.advance(1, f"{len(self.accepted)} made it shorter")
        if changed is None or not changed.classifier.features or not _reaches(changed, self.examples, self.floor):
            return None
        self.accepted.append(simplify(changed))
        return self.accepted[-1]

    def _most_common(self, program: Program, name: str) -> Value | float:
        if self._ran is None or self._ran.program is not program:
            self._ran = Interpreter(program).run([tokens for tokens, _ in self.examples[:_FITTED]])
        execution = self._ran
        valid = np.arange(execution.columns[name].shape[1])[None, :] < execution.lengths_B[:, None]
        (found, _), *_ = Counter(execution.columns[name][valid].tolist()).most_common(1)
        value: Value | float = found if name in program.numerical else execution.names[found]
        return value


def _without_feature(program: Program, feature: str) -> Program | None:
    if feature not in program.classifier.weights or len(program.classifier.features) < 2:
        return None
    weights = {name: rows for name, rows in program.classifier.weights.items() if name != feature}
    return drop_dead(replace(program, classifier=Classifier(program.labels, weights)))


def _spread(rows: Mapping[str, tuple[float, ...]]) -> float:
    table = np.array(list(rows.values()))
    return float(np.abs(table - table.mean(0)).max()) if len(table) > 1 else float(np.abs(table).max())


def _refitted(program: Program, examples: Sequence[Example]) -> Program | None:
    """The same, or nothing where a table has no row for what the changed program meets."""
    try:
        return refit(program, examples)
    except UserError:
        return None


def refit(program: Program, examples: Sequence[Example]) -> Program:
    """The program with a classifier that is fitted to the examples, over the same features and a constant."""
    from scipy import optimize, sparse

    execution = Interpreter(program).run([tokens for tokens, _ in examples])
    wanted = _wanted(program, examples, execution)
    if program.pool_outputs:
        return program  # its logits are means over places; its rows are kept
    keep = wanted >= 0
    features = program.classifier.features
    cats = [feature for feature in features if feature not in program.numerical]
    nums = [feature for feature in features if feature in program.numerical and feature != "ones"]
    columns = []
    first = [0, *np.cumsum([len(program.classifier.rows_of(name)) for name in cats]).tolist()]  # row of each feature
    for place, name in enumerate(cats):
        line = {value: number for number, value in enumerate(program.classifier.rows_of(name))}
        table = np.array([line.get(str(value), 0) for value in execution.names])
        columns.append(first[place] + table[execution.columns[name][keep]])
    columns += [execution.columns[name][keep] for name in nums]
    # places with the same features and label are one row that counts as often
    rows, counts = np.unique(np.stack([*columns, wanted[keep]], -1).astype(np.float64), axis=0, return_counts=True)
    ids, numbers, labels = rows[:, : len(cats)], rows[:, len(cats) : -1], rows[:, -1].astype(np.int64)
    share = counts[:, None] / counts.sum()
    # counts are larger than the ones of categories; equal steps are as much for both
    size = np.ones((first[-1] + len(nums) + 1, 1))
    size[first[-1] : -1, 0] = np.sqrt((np.square(numbers) * share).sum(0)).clip(min=1.0)
    given = _given(ids, numbers, first[-1]) @ sparse.diags_array(1 / size[:, 0])
    every = np.arange(len(labels))
    start = _rows_now(program, [*cats, *nums]) * size  # what is left of a fit is a good start

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(start.shape)
        logits = given @ parameters
        logits -= logits.max(1, keepdims=True)
        error = np.exp(logits)
        total = error.sum(1, keepdims=True)
        losses = np.log(total[:, 0]) - logits[every, labels]
        error /= total
        error[every, labels] -= 1
        value = share[:, 0] @ losses + _PENALTY * np.square(parameters).sum()
        return float(value), (given.T @ (error * share) + 2 * _PENALTY * parameters).ravel()

    best = optimize.minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}).x
    if not np.isfinite(best).all():
        return program
    found = [tuple(round(each, 4) for each in row) for row in (best.reshape(start.shape) / size).tolist()]
    weights: dict[str, Mapping[str, tuple[float, ...]]] = {}
    for place, name in enumerate(cats):
        rows_of = program.classifier.rows_of(name)
        weights[name] = dict(zip(rows_of, found[first[place] : first[place + 1]], strict=True))
    for place, name in enumerate(nums):
        weights[name] = {PLACEHOLDER: found[first[-1] + place]}
    return add_constant(replace(program, classifier=Classifier(program.labels, weights)), found[-1])


def _given(ids: np.ndarray, numbers: np.ndarray, width: int) -> Any:
    """What the classifier reads as a matrix: a one for the value of each category, the numbers, and the constant 1.

    Arguments:
        ids: of each category the number of its value, of `width` in all.
    """
    from scipy import sparse

    count = len(ids)
    ones = [(np.ones(count), (np.arange(count), column.astype(np.int64))) for column in ids.T]
    parts = [sparse.csr_array(each, shape=(count, width)) for each in ones]
    categories = sum(parts, sparse.csr_array((count, width)))
    return sparse.hstack([categories, sparse.csr_array(numbers), sparse.csr_array(np.ones((count, 1)))], format="csr")


def _rows_now(program: Program, features: Sequence[str]) -> np.ndarray:
    """The rows of features and the constant, as they are."""
    rows = [row for name in features for row in program.classifier.rows_of(name).values()]
    constant = program.classifier.weights.get("ones", {PLACEHOLDER: (0.0,) * len(program.labels)})[PLACEHOLDER]
    return np.array([*rows, constant])


def _shorten(program: Program, examples: Sequence[Example]) -> Program:
    """Tables and predicates without what the examples do not reach, where that is shorter: other keys get the result,
    or partner, that most have.
    """
    execution = Interpreter(program).run([tokens for tokens, _ in examples])
    valid = np.arange(int(execution.lengths_B.max(initial=1)))[None, :] < execution.lengths_B[:, None]
    nodes: list[Node] = []
    for node in program.nodes:
        columns = [execution.columns[name][valid].tolist() for name in node.reads]
        if isinstance(node, Lookup):
            if program.longest is None and any(name in program.numerical for name in node.inputs):
                nodes.append(node)  # longer sequences have counts that no example has
                continue
            decoded = [
                [float(each) for each in column]
                if name in program.numerical
                else [execution.names[each] for each in column]
                for name, column in zip(node.inputs, columns, strict=True)
            ]
            nodes.append(_reached_table(node, set(zip(*decoded, strict=True))))
        else:
            asked = {execution.names[each] for each in set(columns[1])}
            nodes.append(_reached_pairs(node, asked, domains(program).get(node.query)))
    return simplify(replace(program, nodes=tuple(nodes)))


def _reached_table(node: Lookup, reached: set[tuple[Any, ...]]) -> Lookup:
    results = {key: node.table.get(key, node.default) for key in reached}
    results = {key: result for key, result in results.items() if result is not None}
    if not results or node.default is None:
        return node
    default = Counter(results.values()).most_common(1)[0][0]
    table = {_whole(key): result for key, result in results.items() if result != default and result is not None}
    shorter = Lookup(node.name, node.inputs, table, default)
    return shorter if len(table) < len(node.table) else node


def _whole(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(int(each) if isinstance(each, float) and each.is_integer() else each for each in key)


def _reached_pairs(node: Select, asked: set[Value], queries: frozenset[Value] | None) -> Select:
    """A query that no example has may look for whatever makes the rule short: what its neighbors look for."""
    wanted: dict[Value, set[Value]] = {query: set() for query in asked}
    for query, key in node.predicate:
        if query in asked:
            wanted[query].add(key)
    if queries is None or asked >= queries:
        return replace(node, predicate=tuple(pair for pair in node.predicate if pair[0] in asked))
    kinds = Counter(_kind(query, keys) for query, keys in wanted.items())
    rule = kinds.most_common(1)[0][0] if kinds else ("none", 0)
    pairs = [(query, key) for query, key in node.predicate if query in asked]
    for query in sorted(queries - asked, key=str):
        if rule[0] == "same":
            pairs.append((query, query))
        elif rule[0] == "shift" and isinstance(query, int) and isinstance(rule[1], int) and query + rule[1] >= 0:
            pairs.append((query, query + rule[1]))
        elif rule[0] == "constant":
            pairs.append((query, rule[1]))
    return replace(node, predicate=tuple(pairs))


def _kind(query: Value, keys: set[Value]) -> tuple[str, Value]:
    if len(keys) != 1:
        return "none", 0
    (key,) = keys
    if key == query:
        return "same", 0
    if isinstance(key, int) and isinstance(query, int):
        return "shift", key - query
    return "constant", key
