"""Problems with tests: layouts, honest and dishonest answers, pass@k."""

from __future__ import annotations

import json

import pytest

from lmlab.errors import UserError
from lmlab.evals.code.checking import check_answers, check_solutions
from lmlab.evals.code.problems import fenced, read_problems
from lmlab.evals.tasks.code_task import CodeTask
from lmlab.sandbox import Limits, choose_executor

HUMANEVAL = {
    "task_id": "Own/0",
    "prompt": 'def add(a, b):\n    """The sum.\n    >>> add(1, 2)\n    3\n    """\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(f):\n    assert f(1, 2) == 3\n    assert f(2, 2) == 4\n",
}
MBPP = {
    "task_id": 7,
    "text": "Write a function to square the numbers of a list.",
    "code": "def squares(xs):\n    return [x * x for x in xs]",
    "test_list": ["assert squares([1, 2]) == [1, 4]", "assert squares([]) == []"],
    "test_setup_code": "import math",
}
SANITIZED = {
    "task_id": 8,
    "prompt": "Write a function for the least of two numbers.",
    "code": "def least(a, b):\n    return min(a, b)",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(least(1, 2), 1)"],
}
PLAIN = {
    "id": "p",
    "prompt": "def one():\n",
    "test": "assert one() == 1",
    "solution": "    return 1\n",
    "domain": "mine",
}


@pytest.fixture(scope="module")
def executor():
    try:
        return choose_executor("auto")
    except UserError as error:
        pytest.skip(f"needs a sandbox: {error.message}")


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (HUMANEVAL, MBPP, SANITIZED, PLAIN)))
    return read_problems(path)


_LIMITS = Limits(timeout_s=5, memory_mib=512, disk_mib=16, output_mib=1.0, processes=32)


def test_all_layouts_are_read(problems):
    add, squares, least, one = problems
    assert (add.id, add.entry_point, add.begins, one.domain) == ("Own/0", "add", True, "mine")
    assert add.test.endswith("check(add)\n")
    assert (squares.id, squares.entry_point, squares.begins) == ("7", "squares", False)
    assert least.entry_point == "least" and least.setup == "import math"
    assert "assert squares([]) == []" in squares.prompt


def test_the_solutions_of_a_benchmark_pass_their_tests(executor, problems):
    assert {name: each.status for name, each in check_solutions(executor, problems, _LIMITS).items()} == dict.fromkeys(
        ("Own/0", "7", "8", "p"), "passed"
    )


_ANSWERS = {
    "wrong": ("    return a - b\n", "failed"),
    "no python": ("    return a +\n", "failed"),
    "no text that Python reads": ("    return '\ud800'\n", "failed"),
    "ends the process": ("    import os\n    os._exit(0)\n", "failed"),
    "ends it at once": ("    return 1\nimport sys\nsys.exit(0)\n", "failed"),
    "never ends": ("    while True: pass\n", "timed out"),
    "takes all memory": ("    x = bytearray(2 << 30)\n    return a + b\n", None),
    "many processes": (
        "    import os\n    for _ in range(500):\n        os.fork() or os._exit(0)\n    return a + b\n",
        None,
    ),
    "equal to everything": (
        "    class Any:\n        __eq__ = lambda self, other: True\n    return Any()\n",
        "forged",
    ),
    "in a list": ("    class Any:\n        __eq__ = lambda self, other: True\n    return [Any()]\n", None),
    "prints the word": (
        "    return 0\nimport sys, os\nprint(sys.stdin.read().split()[-1], flush=True)\nos._exit(0)\n",
        "forged",
    ),
    "reads the tests": ("    return 3\nprint(open('job.json').read())\n", "failed"),
    "takes the tests": ("    return 3\nimport sys\nsys.stdin.read()\n", "failed"),
    "the network": ("    import urllib.request\n    urllib.request.urlopen('http://127.0.0.1:1')\n", "failed"),
    "right": ("    return a + b\n", "passed"),
}


@pytest.mark.parametrize("name", _ANSWERS)
def test_answers_get_their_status(executor, problems, name):
    answer, status = _ANSWERS[name]
    (outcome,) = check_answers(executor, [(problems[0], answer)], _LIMITS)
    assert outcome.status == status if status else outcome.status != "passed", outcome


def test_an_answer_cannot_write_outside(executor, problems, tmp_path):
    target = tmp_path / "written"
    answer = f"    open({str(target)!r}, 'w').write('x')\n    return a + b\n"
    (outcome,) = check_answers(executor, [(problems[0], answer)], _LIMITS)
    assert outcome.status == "failed" and not target.exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x"}, "'prompt' is missing"),
        ({"prompt": "a", "test": "assert 1"}, "'task_id' (or 'id') is missing"),
        ({"id": "x", "prompt": 3, "test": "assert 1"}, "prompt: a text is needed"),
        ({"id": "x", "prompt": "a", "test": "assert"}, "test is no Python"),
        ({"task_id": 1, "text": "a", "test_list": []}, "test_list: a list"),
    ],
)
def test_rows_that_are_no_problems_are_named_with_their_line(tmp_path, row, message):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(PLAIN) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError) as error:
        read_problems(path)
    assert "line 2" in str(error.value) and message in str(error.value)


def test_the_same_problem_twice_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text((json.dumps(PLAIN) + "\n") * 2)
    with pytest.raises(UserError, match="line 2.*twice"):
        read_problems(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": [10], "samples": 5}, "pass@10 needs 10 samples"),
        ({"k": [4], "samples": 5}, "4 is not one of"),
        ({"executor": "local"}, "never run without"),
        ({"samples": 2, "temperature": 0}, "all samples the same"),
    ],
)
def test_impossible_tasks_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CodeTask(name="x", requests="x.jsonl", **fields)


def test_pass_at_k_is_that_of_the_paper():
    task = CodeTask(name="x", requests="x.jsonl", samples=4, k=[1, 2])
    rows = [
        {"outcomes": ["passed", "failed", "failed", "failed"]},
        {"outcomes": ["failed", "timed out", "failed", "forged"]},
    ]
    found = task.figures(rows)
    assert found["pass@1"].value == pytest.approx(1 / 8)
    assert found["pass@2"].value == pytest.approx((1 - 3 / 6) / 2)  # 1 - C(3, 2) / C(4, 2)
    assert found["timed_out"].value == found["forged"].value == pytest.approx(1 / 8)
    assert task.further(rows) == {"outcomes": {"failed": 5, "passed": 1, "timed out": 1, "forged": 1}}


def test_the_program_of_a_chat_answer_is_found():
    text = "First:\n```python\ndef f():\n    return 1\n```\nThen\n```\nprint(f())\n```\n"
    assert fenced(text, "f") == "def f():\n    return 1\n"
    assert fenced(text) == "print(f())\n"
    assert fenced("```python\ndef g(): pass", "g") == "def g(): pass"  # cut off
    assert fenced("def h(): pass") == "def h(): pass"


def test_a_whole_program_counts_behind_the_beginning_of_one(executor, problems):
    answer = CodeTask._completed(problems[0], "def add(a, b):\n    return a + b\n")
    (outcome,) = check_answers(executor, [(problems[0], answer)], _LIMITS)
    assert outcome.status == "passed"


def test_a_model_writes_answers_that_are_run(executor, problems, tmp_path, monkeypatch):
    """The whole way from a task's file to its figures; the model's text is replaced, as no small one can program."""
    import lmlab.models
    from lmlab.data import Tokenizer
    from lmlab.evals import Evaluator, ModelScorer
    from lmlab.evals.tasks.find import read_task
    from lmlab.evals.tasks.task import Settings
    from lmlab.models import Completion, ModelConfig, Transformer

    (tmp_path / "task.yaml").write_text(
        "name: mine\nkind: code\nrequests: problems.jsonl\nsamples: 2\nk: [1, 2]\nmax_new_tokens: 20\ntimeout_s: 5\n"
    )
    task = read_task(tmp_path / "task.yaml")
    tokenizer = Tokenizer.train(["def add(a, b): return a + b " * 30], 280)
    model = Transformer(ModelConfig(vocab_size=280, num_layers=1, d_model=16, num_heads=2, max_seq_len=400))
    evaluator = Evaluator(ModelScorer(model.initialize(0), "fp32"), tokenizer, model, more_ends=(5,))
    asked = []

    def write(model, prompts, config, decode):
        asked.append(config)
        texts = {1: "    return a + b\n", 4: "    return 2\n"}.get(len(asked), "x")
        return [[Completion([], [], "stop", texts), Completion([], [], "stop", "oops")]]

    real = list(task.rows(evaluator, task.items()[3:], Settings()))  # a random network: nonsense, and no error
    assert real[0]["outcomes"] == ["failed", "failed"] and len(real[0]["answers"]) == 2
    monkeypatch.setattr(lmlab.models, "generate", write)
    rows = list(task.rows(evaluator, task.items(), Settings()))
    assert [row["outcomes"] for row in rows] == [["passed", "failed"], *[["failed", "failed"]] * 3]
    assert asked[0].num_samples == 2 and asked[0].temperature == 0.8 and asked[0].eos_ids == (tokenizer.eos_id, 5)
    figures = task.figures(rows)
    assert (figures["pass@1"].value, figures["pass@2"].value) == (1 / 8, 1 / 4)
    with pytest.raises(UserError, match="that is more than the model's"):
        list(task.model_copy(update={"max_new_tokens": 399}).rows(evaluator, task.items(), Settings()))
