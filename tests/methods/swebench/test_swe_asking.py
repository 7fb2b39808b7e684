"""Contexts, prompts, answers, agents, records, and bugs that are made."""

from __future__ import annotations

import ast
import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import ndiff
from pathlib import Path
from typing import Any

import pytest
from swe_parts import BASE, FIXED, write_tree

import lmlab as door
from lmlab.endpoints import Endpoint
from lmlab.endpoints.protocol import Choice, Reply, Usage
from lmlab.errors import UserError
from lmlab.methods.swebench.building.adequacy import added_lines, adequacy
from lmlab.methods.swebench.building.mutations import KINDS, mutants
from lmlab.methods.swebench.building.synthesize import synthesize
from lmlab.methods.swebench.harness.environment import EnvironmentSpec
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.inference import ranking
from lmlab.methods.swebench.inference.agent import run_agent
from lmlab.methods.swebench.inference.contexts import approximate_tokens, collapsed, make_context
from lmlab.methods.swebench.inference.infer import infer, prompts_of
from lmlab.methods.swebench.inference.memory import edits_of, memory_of, remembered
from lmlab.methods.swebench.inference.prompts import messages_of
from lmlab.methods.swebench.inference.ranking import Ranker, chunks_of, documents, rank_bm25, recall
from lmlab.methods.swebench.inference.records import sft_records
from lmlab.methods.swebench.inference.settings import InferConfig
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.load import write_instances
from lmlab.methods.swebench.patches.answers import diff_of
from lmlab.methods.swebench.patches.diff import read_diff
from lmlab.retrieval.search.bm25 import ENGLISH_STOP_WORDS, words
from lmlab.runs import Recipe, run_recipe

_SECRETS = ("test_empty", "test_sum", "a + b", "text.strip()")


def test_bm25_scores_are_those_of_the_formula() -> None:
    files = {f"m{n}.py": text for n, text in enumerate(("read a line of the file", "write line line", "close it", "x"))}
    query = "the line is not read"
    texts = {path: words(f"{path}\n{text}", ENGLISH_STOP_WORDS) for path, text in files.items()}
    mean = sum(map(len, texts.values())) / len(texts)

    def score(path: str) -> float:
        total = 0.0
        for word in words(query, ENGLISH_STOP_WORDS):
            n = sum(word in each for each in texts.values())
            tf = texts[path].count(word)
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            total += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(texts[path]) / mean))
        return total

    found = rank_bm25(files, query, split_names=False)
    assert [path for path, _ in found] == ["m0.py", "m1.py"]
    assert [value for _, value in found] == pytest.approx([score(path) for path, _ in found], abs=1e-4)


def test_documents_are_source_files_by_their_path_in_the_repository(tmp_path: Path) -> None:
    tree = tmp_path / "test" / "tree"
    write_tree(tree, {"a/b.py": "x", "tests/c.py": "x", "a/testing.py": "x", "latest.py": "x", "a/b.txt": "x"})
    (tree / "out.py").symlink_to("/etc/passwd")
    assert sorted(documents(tree)) == ["a/b.py", "latest.py"]


def test_names_are_found_by_their_parts() -> None:
    files = {"a.py": "def readNextLine(): pass", "b.py": "def other(): pass"}
    assert [path for path, _ in rank_bm25(files, "the next line")] == ["a.py"]
    assert rank_bm25(files, "the next line", split_names=False) == []


def test_a_file_that_does_not_fit_is_passed_over_and_the_next_one_is_taken(built: Instance, judge: Judge) -> None:
    tree = judge.workspaces.pristine(built)
    oracle = make_context(built, tree, "oracle", 1000)
    assert list(oracle.files) == ["calc/__init__.py"] and list(oracle.readmes) == ["README.md"]
    assert oracle.files["calc/__init__.py"].startswith('1 """Arithmetic."""\n2 ')
    assert make_context(built, tree, "oracle", 20).files == {}
    found = make_context(built, tree, "bm25", 60)
    assert sum(approximate_tokens(text) for text in found.files.values()) < 60
    assert recall(["calc/__init__.py"], built) == 1.0 and recall([], built) == 0.0
    more = built.patch + "".join(
        f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-a\n+b\n"
        for path in ("Tests/a.py", "b.py")
    )
    assert recall(["calc/__init__.py"], replace(built, patch=more)) == 0.5  # what is never ranked is not missed


def test_collapsed_files_keep_their_numbers_and_clamp_at_the_ends() -> None:
    text = "\n".join(f"line {number}" for number in range(1, 101))
    shown = collapsed(text, [(2, 3), (50, 50), (60, 60)]).split("\n")
    assert shown[0] == "1 line 1" and shown[17] == "18 line 18" and shown[18] == "..."
    assert shown[19] == "35 line 35" and shown[-2:] == ["75 line 75", "..."] and shown.count("...") == 2


def test_collapsed_as_the_original_program_shows_nothing_after_and_counts_from_the_end() -> None:
    text = "\n".join(f"line {number}" for number in range(1, 101))
    assert collapsed(text, [(50, 51)], as_reference=True).split("\n") == [
        "...",
        *(f"{number} line {number}" for number in range(35, 52)),
        "...",
    ]
    assert collapsed(text, [(3, 4)], as_reference=True) == "..."


def test_chunks_are_functions_and_methods_and_hold_every_line_once() -> None:
    text = (
        "import x\n\n\n@x.y\ndef f():\n    pass\n\n\nclass A:\n    a = 1\n\n    def g(self):\n        pass\n\nb = 2\n"
    )
    found = chunks_of("a.py", text)
    assert "\n".join(each.text for each in found) == text
    assert [(each.first, each.last) for each in found] == [(1, 3), (4, 6), (7, 8), (9, 11), (12, 13), (14, 16)]
    broken = "def f(:\n" * 130
    assert [each.last - each.first + 1 for each in chunks_of("a.py", broken)] == [60, 60, 11]


def _encoder(folder: Path) -> str:
    """An encoder whose vectors are counts of words, so that its order can be told by hand."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    from lmlab.retrieval import save_static, static_encoder
    from lmlab.retrieval.encoders.words import EncoderTokenizer

    names = ["[UNK]", "[PAD]", "sum", "product", "parse"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = torch.cat([torch.full((2, 3), 1e-3), torch.eye(3)])
    save_static(
        static_encoder(table, EncoderTokenizer(tokenizer, {"unk_token": "[UNK]", "pad_token": "[PAD]"})), folder
    )
    return str(folder)


def test_vectors_find_the_part_of_a_file_and_fusion_finds_both(tmp_path: Path) -> None:
    filler = "\n".join(f"def f{number}():\n    product product product\n" for number in range(20))
    files = {
        "far.py": "product\n",
        "long.py": f"{filler}\ndef g():\n    sum\n",
        "word.py": "zebra\n",
    }
    encoder = _encoder(tmp_path / "encoder")
    dense = Ranker("dense", encoder).files(files, "sum")
    assert dense[0][0] == "long.py" and dense[0][1] == pytest.approx(1.0, abs=1e-2)
    assert Ranker("bm25").files(files, "sum zebra")[0][0] == "word.py"
    fused = [path for path, _ in Ranker("hybrid", encoder).files(files, "sum zebra")]
    assert fused[0] == "long.py" and set(fused) == set(files)
    best = Ranker("hybrid", encoder).chunks(files, "sum")[0]
    assert (best.path, best.text.strip().split("\n")[0]) == ("long.py", "def g():")


def test_a_ranker_forgets_the_vectors_of_trees_that_it_saw_long_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "_MOST_VECTORS", 3)
    ranker = Ranker("dense", _encoder(tmp_path / "encoder"))
    trees = [{f"{tree}{number}.py": "sum\n" for number in range(2)} for tree in "abc"]
    for files in (*trees, trees[0]):
        fresh = Ranker("dense", ranker.encoder).files(files, "sum")
        assert ranker.files(files, "sum") == fresh and len(fresh) == 2
        assert len(ranker._vectors) <= 3
    many = {f"{number}.py": "sum\n" for number in range(5)}  # one tree alone has more
    assert len(ranker.files(many, "sum")) == 5 and len(ranker._vectors) == 3


class _Reader:
    """A model that knows some texts by heart: what follows so many of their words is certain, all else is a guess."""

    def __init__(self, known: Sequence[str], needed: int) -> None:
        self.known, self.needed = [each.split() for each in known], needed

    def mean_log_probs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [self._mean(context.split(), text.split()) for context, text in pairs]

    def _mean(self, context: list[str], text: list[str]) -> float:
        words, first, certain = [*context, *text], len(context), 0
        for at in range(first, len(words)):
            seen = words[max(0, at - self.needed) : at + 1]
            certain += len(seen) > self.needed and any(
                known[place : place + len(seen)] == seen for known in self.known for place in range(len(known))
            )
        return -4.0 * (1 - certain / len(text))


def test_a_solution_known_by_its_issue_is_told_from_one_that_is_only_likely(built: Instance, judge: Judge) -> None:
    gold, others = edits_of(built, judge.workspaces, 4)
    assert len(set(others)) == 4 and gold not in others
    assert all(abs(len(each) - len(gold)) <= 24 for each in others)
    assert "return a + b" in gold and not gold.count("test_")
    issue = f"{built.instance_id}\n\n{built.problem_statement.strip()}\n\nA patch:\n\n{gold}"
    # Knows the solution after its issue alone; knows it as any code, whatever stands before; knows nothing
    by_issue, by_code, naive = _Reader([issue], len(gold.split()) + 3), _Reader([gold], 2), _Reader([], 1)
    (first,), passed = remembered([built], judge.workspaces, by_issue, 4)
    assert passed == {} and first.likelier == 1 and first.gain > 0.1
    (second,), _ = remembered([built], judge.workspaces, by_code, 4)
    assert second.likelier == 1 and second.gain == pytest.approx(0, abs=0.02)
    (third,), _ = remembered([built], judge.workspaces, naive, 4)
    assert third.likelier == 0 and third.gain == 0
    none = replace(built, instance_id="none", patch=diff_of(BASE.get, {"README.md": "# other\n"}))
    found, passed = remembered([none], judge.workspaces, naive)
    assert found == [] and passed == {"none": "no other edit of its lines can be made"}
    told = memory_of([first, replace(first, gain=first.gain + 0.2), replace(third, alternatives=1)])
    assert told.first.value == pytest.approx(2 / 3) and told.chance == pytest.approx((2 / 5 + 1 / 2) / 3)
    assert told.gain.low < told.gain.value < told.gain.high


def test_a_model_on_the_disk_is_asked_for_what_it_remembers(
    lmlab: Callable[..., Any], built: Instance, judge: Judge, tmp_path: Path, smollm2: Path
) -> None:
    write_instances(tmp_path / "i.jsonl", [built])
    shutil.copytree(judge.workspaces.trees.folder, tmp_path / "trees")
    common = ("-i", tmp_path / "i.jsonl", "--cache", tmp_path / "cache", "-o", tmp_path / "memorized.jsonl")
    done = lmlab("swe", "memorized", *common, "-m", smollm2, "--alternatives", "3")
    assert done.code == 0 and "1 solution, each beside up to 3 other edits of its lines" in done.out, done.err
    row = json.loads((tmp_path / "memorized.jsonl").read_text())
    assert row["instance_id"] == built.instance_id and row["alternatives"] == 3 and 0 <= row["likelier"] <= 1


def test_contexts_of_symbols_and_of_others(built: Instance, judge: Judge, tmp_path: Path) -> None:
    tree = judge.workspaces.pristine(built)
    found = make_context(built, tree, "bm25", 60, readmes=False, granularity="symbol")
    assert list(found.files) == ["calc/__init__.py"] and found.files["calc/__init__.py"].count("def ") < 3
    assert "..." in found.files["calc/__init__.py"]
    assert list(make_context(built, tree, "distractor", 999, readmes=False).files) == ["calc/other.py"]
    dense = make_context(built, tree, "dense", 999, ranker=Ranker(encoder=_encoder(tmp_path / "encoder")))
    assert list(dense.files) == ["calc/__init__.py", "calc/other.py"]


def test_a_readme_gives_way_where_it_leaves_no_room_for_code(built: Instance, judge: Judge) -> None:
    tree = judge.workspaces.pristine(built)
    code = make_context(built, tree, "oracle", 999, readmes=False)
    (size,) = map(approximate_tokens, code.files.values())
    assert approximate_tokens(make_context(built, tree, "oracle", 999).readmes["README.md"]) > 1
    tight = make_context(built, tree, "oracle", size + 1)
    assert tight.files == code.files and not tight.readmes
    assert not make_context(built, tree, "oracle", size).files  # nothing has room: the readme stays
    assert list(make_context(built, tree, "oracle", size).readmes) == ["README.md"]
    assert list(make_context(built, tree, "none", 999).readmes) == ["README.md"]
    assert make_context(built, tree, "bm25", 8, granularity="symbol").readmes in ({}, {"README.md": "1 # calc\n2 "})


def test_who_asks_without_any_code_is_warned(built: Instance, judge: Judge, recwarn: pytest.WarningsRecorder) -> None:
    for context in ("none", "oracle"):
        prompts_of([built], judge.workspaces, InferConfig(context=context, budget=5000))  # type: ignore[arg-type]
    list(sft_records([built], judge.workspaces, {"none": 1.0}, 5))
    assert not recwarn.list
    with pytest.warns(UserWarning, match=f"in 1 prompt of 1, .* 5 tokens .*{built.instance_id}"):
        prompts_of([built], judge.workspaces, InferConfig(context="oracle", budget=5))
    with pytest.warns(UserWarning, match="No file is shown in 2 prompts of 2"):
        list(sft_records([built] * 2, judge.workspaces, {"oracle": 1.0}, 5))


def test_prompts_hold_issue_and_code_and_nothing_of_the_solution(built: Instance, judge: Judge) -> None:
    for style in ("style-2", "style-3", "full_file_gen"):
        config = InferConfig(context="oracle", style=style, budget=5000)  # type: ignore[arg-type]
        (prompt,) = prompts_of([built], judge.workspaces, config)
        assert not any(secret in prompt for secret in _SECRETS)
        assert f"<issue>\n{built.problem_statement.strip()}\n</issue>" in prompt and prompt.endswith("\n\n")
        assert ("[start of calc/__init__.py]\n1 " in prompt) == (style != "full_file_gen")
        system, user = messages_of(prompt)
        assert system["role"] == "system" and "\n" not in system["content"] and "<issue>" in user["content"]


def test_answers_of_an_endpoint_become_predictions_that_are_paid_for_once(
    built: Instance, judge: Judge, tmp_path: Path
) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text(json.dumps({"text": f"Here it is.\n<patch>\n{built.patch}</patch>"}) + "\n")
    endpoint = Endpoint(model="m", backend="mock", replies=script)
    config = InferConfig(context="none", samples=2)
    found = infer([built], judge.workspaces, endpoint, config, tmp_path / "out")
    assert [each.model for each in found] == ["m.0", "m.1"]
    assert judge.judge(built, found[0].patch).resolved
    script.write_text(json.dumps({"text": "no"}) + "\n")
    again = infer([built], judge.workspaces, endpoint, config, tmp_path / "out")
    assert [each.patch for each in again] == [each.patch for each in found]


def _agent(answers: Sequence[str]) -> Callable[[Sequence[dict[str, str]]], Reply]:
    left = list(answers)

    def ask(messages: Sequence[dict[str, str]]) -> Reply:
        return Reply("ok", (Choice(left.pop(0), "stop"),), Usage(1, 1), cost_usd=0.5)

    return ask


def test_an_agent_works_in_the_sandbox_and_its_changes_are_the_patch(
    built: Instance, judge: Judge, tmp_path: Path
) -> None:
    answers = [
        "I look.\n```bash\ngit log --oneline --all; ls tests; cat tests/test_calc.py; cat > /tmp/x\n```",
        "no command",
        "```bash\nsed -i 's/return a - b/return a + b/' calc/__init__.py; touch new; rm -rf .git\n```",
        "```bash\ncurl -m 2 https://example.com; exit 3\n```",
        "```bash\nSUBMIT\n```",
    ]
    prediction, done = run_agent(built, judge, _agent(answers), "m", keep=tmp_path)
    assert done.end == "submitted" and done.cost_usd == 2.5 and [each["exit_code"] for each in done.steps] == [0, 0, 3]
    said = "\n".join(each["content"] for each in done.messages if each["role"] == "user")
    assert "base" in said and not any(secret in said for secret in _SECRETS)
    assert prediction.patch is not None and [each.path for each in read_diff(prediction.patch)] == [
        "calc/__init__.py",
        "new",
    ]
    assert judge.judge(built, prediction.patch).failures == ("tests/test_calc.py::test_empty",)
    kept = json.loads((tmp_path / f"{built.instance_id}.traj.json").read_text())
    assert len(kept["messages"]) == len(done.messages) and kept["end"] == "submitted"
    _, stopped = run_agent(built, judge, _agent(answers), "m", most_cost_usd=0.6)
    assert stopped.end == "cost" and stopped.cost_usd == 1.0


def test_records_to_learn_from_are_conversations_with_the_solution(built: Instance, judge: Judge) -> None:
    (record,) = sft_records([built], judge.workspaces, {"oracle": 1.0}, 5000)
    *asked, answer = record["messages"]  # type: ignore[misc]
    assert answer["content"] == f"<patch>\n{built.patch.rstrip()}\n</patch>"
    assert not any(secret in each["content"] for each in asked for secret in _SECRETS)
    assert list(sft_records([built], judge.workspaces, {"oracle": 1.0}, 5000, max_tokens=10)) == []
    mix = Counter(
        each["context"] for each in sft_records([built] * 200, judge.workspaces, {"oracle": 3.0, "none": 1.0}, 500)
    )
    assert 120 < mix["oracle"] < 180
    with pytest.raises(UserError, match="no weights"):
        list(sft_records([built], judge.workspaces, {}, 100))


_FUNCTION = '''
@wrap
def f(a, b=1):
    """Doc 1 + 1."""
    n: int = 3
    if a < b and b:
        return a[1:2] + g(a, b)
    else:
        n += 2
    return n
'''


def test_mutants_are_small_different_and_of_every_kind() -> None:
    found = list(mutants(_FUNCTION, random.Random(0)))
    assert {each.kind for each in found} == set(KINDS)
    trees = [ast.dump(ast.parse(each.source)) for each in found]
    assert len(set(trees)) == len(trees) and ast.dump(ast.parse(_FUNCTION)) not in trees
    assert all(("Doc 1 + 1." in each.source and "n: int" in each.source) or each.kind == "statement" for each in found)
    only = list(mutants(_FUNCTION, random.Random(0), lines={9}))
    assert only and {each.line for each in only} == {9}
    assert list(mutants("def broken(", random.Random(0))) == []


_RETURN = '                 return [each for each in b if each and (a or b) and f"{each!r:>4}"]  # found'
_COMMENTED = """class C:
    @one
    @two  # stays out
    def f(self, a, b):
        # why
        for each in a:  # all é of them

            # about the test
            if each < (b
                       and 2):
                return [each for each in b if each and (a or b) and f"{each!r:>4}"]  # found

            try:
                pass
            finally: each.close()
        return (a
                + b) * 2  # last
"""


def test_a_bug_changes_what_it_is_and_leaves_comments_and_layout() -> None:
    before, found = _COMMENTED.splitlines(), []
    for each in mutants(_COMMENTED, random.Random(0)):
        after = each.source.splitlines()
        gone, come = (tuple(line.strip() for line in ndiff(before, after) if line[:2] == sign) for sign in ("- ", "+ "))
        found.append((each.kind, gone, come))
        if each.kind not in ("statement", "decorator"):
            assert all(line in each.source for line in ("# stays", "# why", "# all", "# about", "# found", "# last"))
    assert ("returned", ("-" + _RETURN,), ("+                 return None  # found",)) in found
    assert ("constant", ("-                        and 2):",), ("+                        and 3):",)) in found
    assert ("logic", ("-" + _RETURN,), ("+" + _RETURN.replace("a or b", "a and b"),)) in found
    assert ("arithmetic", ("-         return (a", "-                 + b) * 2  # last"), (
        "+         return (a - b) * 2  # last",
    )) in found  # fmt: skip
    assert ("decorator", ("-     @two  # stays out",), ()) in found


_BRANCHES = """def f(a, b):
    if a == 'one':  # first
        # why so
        return g(a,  # this
                 b)
    elif b:
        # the second
        a = "x"  # set

        b = a
    else:
        return [a,   b]  # end
"""


def test_a_bug_cuts_what_it_moves_out_of_the_file() -> None:
    found = {(each.kind, each.line): each.source for each in mutants(_BRANCHES, random.Random(0))}
    lines = _BRANCHES.splitlines(keepends=True)
    inner = [f"    {line}" if line.strip() else line for line in ("    if b:\n", *lines[6:])]
    assert found["branches", 2] == "".join([*lines[:2], *inner, "    else:\n", *lines[2:5]])
    assert found["branches", 6] == "".join([*lines[:6], lines[11], lines[10], *lines[6:10]])
    assert found["arguments", 4] == _BRANCHES.replace("g(a,  # this\n                 b)", "g(b, a)")
    assert "if not a == 'one':  # first" in found["condition", 2]
    assert "if a != 'one':  # first" in found["comparison", 2]


def test_added_lines_are_numbered_as_in_the_new_file(built: Instance) -> None:
    (file,) = read_diff(built.patch)
    lines = FIXED["calc/__init__.py"].splitlines()
    assert {lines[number - 1].strip() for number in added_lines(file)} == {
        "return a + b",
        "if not text:",
        'raise ValueError("empty")',
        "return int(text.strip())",
    }


def test_adequacy_is_the_share_of_wrong_solutions_that_the_tests_kill(built: Instance, judge: Judge) -> None:
    found = adequacy(built, judge, most=4)
    assert found.mutants == 4 and found.score is not None and found.score >= 0.5
    blind = replace(built, fail_to_pass=("tests/test_calc.py::test_mul",), pass_to_pass=())
    assert adequacy(blind, judge, most=2).score == 0.0


def test_made_bugs_are_instances_whose_tests_are_hidden(
    judge: Judge, environment: EnvironmentSpec, tmp_path: Path
) -> None:
    tree = tmp_path / "calc"
    write_tree(tree, {**BASE, **FIXED})
    made = list(synthesize(tree, "owner/calc", judge, environment, most=2))
    assert len(made) == 2 and made[0].patch != made[1].patch
    for instance in made:
        assert instance.fail_to_pass and judge.judge(instance, instance.patch).status == "resolved"
        with judge.workspaces.fresh(instance) as seen:
            assert not any((seen / path).exists() for path in instance.extra["test_files"])
        nothing = "diff --git a/README.md b/README.md\n--- a/README.md\n+++ b/README.md\n@@ -1 +1,2 @@\n # calc\n+x\n"
        assert judge.judge(instance, nothing).status == "unresolved"
        assert "assert" not in instance.problem_statement.splitlines()[0]


def test_commands_ask_rank_and_write_records(
    lmlab: Callable[..., Any], built: Instance, judge: Judge, tmp_path: Path
) -> None:
    import shutil

    write_instances(tmp_path / "i.jsonl", [built])
    shutil.copytree(judge.workspaces.trees.folder, tmp_path / "trees")
    common = ("-i", tmp_path / "i.jsonl", "--cache", tmp_path / "cache")
    ranked = lmlab("swe", "retrieve", *common, "-k", "2", "--out", tmp_path / "hits.jsonl")
    assert ranked.code == 0 and json.loads((tmp_path / "hits.jsonl").read_text())["instance_id"] == built.instance_id
    written = lmlab("swe", "train-data", *common, "--context-mix", "oracle=1", "--out", tmp_path / "sft.jsonl")
    assert written.code == 0 and "1 conversation of 1 instance:" in written.out
    asked = lmlab("swe", "prompt", *common, "--context", "oracle", "--style", "style-3", "--out", tmp_path / "p.jsonl")
    row = json.loads((tmp_path / "p.jsonl").read_text())
    assert asked.code == 0 and "1 prompt, the longest of" in asked.out and "Write the patch now." in row["text"]
    wrong = lmlab("swe", "train-data", *common, "--context-mix", "orcle=1", "--out", tmp_path / "x.jsonl")
    assert wrong.code == 2 and "Did you mean 'oracle'" in wrong.err
    checked = lmlab("swe", "check", "-i", tmp_path / "i.jsonl", "--lite")
    assert checked.code == 0 and "1 instance, 0 with problems" in checked.out
    reasons = lmlab("swe", "check", "-i", tmp_path / "i.jsonl", "--lite", "--out", tmp_path / "lite" / "i.jsonl")
    assert reasons.code == 2 and "No instance is left" in reasons.err and not (tmp_path / "lite").exists()
    long = replace(built, problem_statement="word " * 60, test_patch=built.test_patch.replace(", match=", ", mutch="))
    write_instances(
        tmp_path / "two.jsonl", [built, replace(long, instance_id="long"), replace(long, patch="", instance_id="x")]
    )
    kept = lmlab("swe", "check", "-i", tmp_path / "two.jsonl", "--lite", "--out", tmp_path / "lite" / "i.jsonl")
    assert kept.code == 0 and "1 instance is kept" in kept.out, kept.out + kept.err
    assert json.loads((tmp_path / "lite" / "i.jsonl").read_text())["instance_id"] == "long"
    assert (tmp_path / "lite" / "trees" / f"{built.extra['base_tree']}.tar.gz").is_file()
    evaluated = lmlab("swe", "eval", *common, "-p", "gold", "-o", tmp_path / "out", "--timeout-s", "60")
    assert evaluated.code == 0 and "1/1 resolved" in evaluated.out, evaluated.err
    page = (tmp_path / "out" / "gold.run.html").read_text()
    assert built.instance_id in page and "Limits were held" in page
    assert "gold, 1 patch<" in page and "{&#39;" not in page and "memory_mib: 4096" in page


def test_a_recipe_asks_a_model_and_judges_its_patches(built: Instance, judge: Judge, tmp_path: Path) -> None:
    folder = tmp_path / "benchmark"
    write_instances(folder / "instances.jsonl", [built, replace(built, instance_id="owner__calc-2")])
    shutil.copytree(judge.workspaces.trees.folder, folder / "trees")
    script = tmp_path / "script.jsonl"
    script.write_text(json.dumps({"text": f"<patch>\n{built.patch}</patch>"}) + "\n")
    common = {"instances": str(folder / "instances.jsonl"), "cache": str(tmp_path / "cache")}
    endpoint = {"model": "m", "backend": "mock", "replies": str(script)}
    ask = {"kind": "swe_infer", **common, "endpoint": endpoint, "context": "none", "ids": ["owner__calc-2"]}
    judged = {"kind": "swe_evaluate", **common, "patches": "ask", "timeout_s": 60, "ids": ["owner__calc-2"]}
    recipe = Recipe.parse({"name": "swe", "stages": {"ask": ask, "judged": judged}}, "the test")
    results = run_recipe(recipe, tmp_path / "run")
    asked, found = (results[name].to_json() for name in ("ask", "judged"))
    assert asked == {"model": "m", "issues": 1, "patches": 1, "empty": 0}
    (row,) = found["models"]
    assert (row["model"], row["resolved"], row["total"]) == ("m", 1, 1) and row["low"] < row["share"] == 1
    assert (tmp_path / "run" / "judged" / row["page"]).exists()
    public = json.loads((tmp_path / "run" / "judged" / "m.run.json").read_text())
    assert public["resolved_ids"] == ["owner__calc-2"]
    stamp = (tmp_path / "run" / "judged" / "m.run.json").stat().st_mtime_ns
    run_recipe(recipe, tmp_path / "run")  # nothing has changed
    assert (tmp_path / "run" / "judged" / "m.run.json").stat().st_mtime_ns == stamp
    patches = tmp_path / "run" / "ask" / "predictions.jsonl"
    own = door.judge_patches(
        folder / "instances.jsonl",
        patches,
        tmp_path / "own",
        ids=["owner__calc-2"],
        cache=common["cache"],
        timeout_s=60,
    )
    assert [each.to_json() for each in own.models] == found["models"]
    with pytest.raises(UserError, match="give either model or endpoint"):
        Recipe.parse({"name": "swe", "stages": {"ask": {"kind": "swe_infer", **common}}}, "the test")
