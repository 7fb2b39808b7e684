"""Texts in the reference's layout, of random shapes and in the ways in which it and its formatter vary, are read back
as the programs that they were written from.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest
from test_network import INPUTS, random_spec, sharpened

from lmlab.methods.transformer_programs.analysis.verify import compare_programs
from lmlab.methods.transformer_programs.network.convert import to_program
from lmlab.methods.transformer_programs.network.model import ProgramTransformer
from lmlab.methods.transformer_programs.program.import_python import import_python
from lmlab.methods.transformer_programs.program.ir import Lookup, Program, Select

ODD = ("<pad>", "it's", 'q"', "\\n")  # what a set's text may hold


class Text:
    """Writes a program as the reference does.

    Arguments:
        seed: of the ways in which texts vary: the order of a set's elements, how NumPy shows numbers, who formats,
            whether categories are enumerations, and what stands at the end.
    """

    def __init__(self, program: Program, directory: Path, seed: int) -> None:
        self.program, self.directory, self.random = program, directory, random.Random(seed)
        self.numbers, self.enums = self.random.choice(["{}", "np.int64({})"]), self.random.random() < 0.5
        self.wide = self.random.random() < 0.5  # formatted: long lines are broken
        self.lines: list[str] = []

    def write(self) -> Path:
        program = self.program
        self._tables()
        helper = "keys[: i + 1]" if self.wide else "keys[:i + 1]"
        seen = helper if program.autoregressive else "keys"
        loop = "i, q in enumerate(queries)" if program.autoregressive else "q in queries"
        enums = len(program.embeddings.columns) if program.embeddings and self.enums else 0
        names = ", ".join(f"Emb{number}" for number in range(enums))
        head = [
            "import numpy as np", "import pandas as pd", *([f"from out.x_embeddings import {names}"] if names else []),
            "def select_closest(keys, queries, predicate):",
            "    scores = [[False for _ in keys] for _ in queries]",
            "    for i, q in enumerate(queries):",
            f"        matches = [j for j, k in enumerate({seen}) if predicate(q, k)]",
            "        if not (any(matches)):",
            "            scores[i][0] = True",
            "        else:",
            "            j = min(matches, key=lambda j: len(matches) if j == i else abs(i - j))",
            "            scores[i][j] = True",
            "    return scores",
            "def select(keys, queries, predicate):",
            f"    return [[predicate(q, k) for k in {seen}] for {loop}]",
            "def aggregate(attention, values):",
            "    return [[v for a, v in zip(attn, values) if a][0] for attn in attention]",
            "def aggregate_sum(attention, values):",
            "    return [sum([v for a, v in zip(attn, values) if a]) for attn in attention]",
            f"def run(tokens{', return_details=False' * program.pool_outputs}):",
        ]  # fmt: skip
        self._inputs()
        for node in program.nodes:
            if isinstance(node, Select):
                self._head(node)
            else:
                self._mlp(node)
            self._scores(node.name)
        self._end()
        shown = ["print(run(['a']))"] if self.random.random() < 0.5 else []
        text = "\n".join([*head, *("    " + line for line in self.lines), *shown]) + "\n"
        (self.directory / "x.py").write_text(text)
        return self.directory / "x.py"

    def value(self, value: Any) -> str:
        if isinstance(value, str):
            return value if value.startswith("Emb") else repr(value)
        return self.numbers.format(value)

    def plain(self, value: Any) -> Any:
        """A category as its number, where categories are no enumerations."""
        return int(value[6:]) if isinstance(value, str) and value.startswith("Emb") and not self.enums else value

    def set_of(self, values: list[Any], sort: bool = False) -> str:
        chosen = sorted(values, key=str) if sort else self.random.sample(values, len(values))
        between = ",\n            " if self.wide and len(values) > 3 else ", "
        return "{" + between.join(map(self.value, chosen)) + "}"

    def _tables(self) -> None:
        program = self.program
        with open(self.directory / "x_weights.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["feature", "value", *program.labels])
            for feature, rows in program.classifier.weights.items():
                for value, row in rows.items():
                    writer.writerow([feature, self.plain(value), *map(repr, row)])
        if program.embeddings is not None:
            with open(self.directory / "x_embeddings.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["word", *program.embeddings.columns])
                for number, word in enumerate(program.embeddings.words):
                    writer.writerow([word, *(column[number] for column in program.embeddings.columns.values())])

    def _scores(self, name: str) -> None:
        if name in self.program.numerical:
            self.lines.append(
                f"{name[:-1]}_scores = classifier_weights.loc[[('{name}', '_') for v in {name}]].mul({name}, axis=0)"
            )
        else:
            self.lines.append(f"{name[:-1]}_scores = classifier_weights.loc[[('{name}', str(v)) for v in {name}]]")

    def _inputs(self) -> None:
        self.lines += [
            "# classifier weights ####",
            "classifier_weights = pd.read_csv('out/x_weights.csv', index_col=[0, 1], dtype={'feature': str})",
        ]
        embeddings = self.program.embeddings
        if embeddings is None:
            self._scores("tokens")
        self.lines.append("positions = list(range(len(tokens)))")
        self._scores("positions")
        self.lines.append("ones = [1 for _ in range(len(tokens))]")
        self._scores("ones")
        if embeddings is not None:
            self.lines += [
                "embed_df = pd.read_csv('out/x_embeddings.csv').set_index('word')", "embeddings = embed_df.loc[tokens]"
            ]  # fmt: skip
            for number, name in enumerate(embeddings.columns):
                listed = f"[Emb{number}[f'V{{i:02}}'] for i in embeddings['{name}']]"
                self.lines.append(f"{name} = {listed if self.enums else f'embeddings[{name!r}].tolist()'}")
                self._scores(name)

    def _head(self, node: Select) -> None:
        kind = "num_" if node.op == "select_sum" else ""
        where = node.name.removeprefix(f"{kind}attn_").removesuffix("_outputs")
        query, key = node.query[:-1], node.key[:-1]
        if query == key:
            query, key = f"q_{query}", f"k_{key}"
        partners: dict[Any, list[Any]] = {}
        for q, k in node.predicate:
            partners.setdefault(k, []).append(self.plain(q))
        self.lines.append(f"def {kind}predicate_{where}({query}, {key}):")
        for number, (k, queries) in enumerate(partners.items()):
            self.lines += [
                f"    {'elif' if number else 'if'} {query} in {self.set_of(queries)}:",
                f"        return {key} == {self.value(self.plain(k))}",
            ]
        if not partners:  # the reference would write no body, which is no Python; its formatter refuses that
            self.lines.append("    pass")
        how = ("select", "aggregate_sum") if kind else ("select_closest", "aggregate")
        self.lines += [
            f"{kind}attn_{where}_pattern = {how[0]}({node.key}, {node.query}, {kind}predicate_{where})",
            f"{node.name} = {how[1]}({kind}attn_{where}_pattern, {node.value})",
        ]

    def _mlp(self, node: Lookup) -> None:
        function = node.name.removesuffix("_outputs")
        arguments = [name[:-1] for name in node.inputs]
        results: dict[Any, list[Any]] = {}
        for key, value in node.table.items():
            results.setdefault(value, []).append(tuple(map(self.plain, key)))
        common = max(results, key=lambda value: len(results[value])) if node.default is None else node.default
        self.lines += [f"def {function}({', '.join(arguments)}):", f"    key = ({', '.join(arguments)})"]
        number = 0
        for value, keys in results.items():
            if value == common:
                continue
            if len(arguments) == 1:
                listed = self.set_of([key[0] for key in keys], sort=True)
            else:
                listed = "{" + ", ".join(f"({', '.join(map(self.value, key))})" for key in keys) + "}"
            self.lines += [f"    {'elif' if number else 'if'} key in {listed}:", f"        return {value}"]
            number += 1
        self.lines.append(f"    return {common}")
        slots = ", ".join(f"k{place}" for place in range(len(arguments)))
        source = f"zip({', '.join(node.inputs)})" if len(arguments) > 1 else node.inputs[0]
        self.lines.append(f"{node.name} = [{function}({slots}) for {slots} in {source}]")

    def _end(self) -> None:
        scores = ", ".join(f"{name[:-1]}_scores" for name in self.program.classifier.features)
        self.lines += [
            f"feature_logits = pd.concat([df.reset_index() for df in [{scores}]])",
            "logits = feature_logits.groupby(level=0).sum(numeric_only=True).to_numpy()",
            "classes = classifier_weights.columns.to_numpy()",
        ]
        if self.program.pool_outputs:
            self.lines += [
                "token_predictions = classes[logits.argmax(-1)]",
                "pooled = logits.mean(0)",
                "prediction = classes[pooled.argmax(-1)]",
                "if return_details:",
                "    return prediction, logits, feature_logits, token_predictions",
                "return prediction",
            ]
        else:
            self.lines += [
                "predictions = classes[logits.argmax(-1)]",
                "if tokens[0] == '<s>':",
                "    predictions[0] = '<s>'",
                "if tokens[-1] == '</s>':",
                "    predictions[-1] = '</s>'",
                "return predictions.tolist()",
            ]


@pytest.mark.parametrize("seed", range(24))
def test_texts_of_random_shapes_are_read_as_they_were_meant(seed: int, tmp_path: Path) -> None:
    program = to_program(reference_network(seed))
    read = import_python(Text(program, tmp_path, seed).write())
    assert [node.name for node in read.nodes] == [node.name for node in program.nodes]
    assert (read.autoregressive, read.pool_outputs) == (program.autoregressive, program.pool_outputs)
    inputs = INPUTS if "a" in (program.vocabulary or ()) else spelled_inputs()
    report = compare_programs(program, read, inputs)
    assert report.equal and report.sequences == 120, report.first


def reference_network(seed: int) -> ProgramTransformer:
    """A network such as the reference trains: free tables alone, and each number of ones once."""
    choose = random.Random(seed)
    spec = random_spec(choose)
    plain: dict[str, Any] = {"predicates": "table", "prefix_count": False, "causal_num_heads": 0, "num_vars": 1}
    words = choose.choice([spec.vocabulary, ODD])
    heads = max(1, spec.cat_heads) if choose.random() < 0.8 else 0
    sizes = {"num_layers": choose.randint(1, 3), "cat_heads": heads, "mlp_vars_in": choose.choice([1, 2, 2])}
    return sharpened(spec.model_copy(update={**plain, **sizes, "vocabulary": words, "forbid_positions": False}), seed)


def spelled_inputs() -> list[list[str]]:
    names = dict(zip("abc", ODD[1:], strict=True))
    return [[names[each] for each in row] for row in INPUTS]
