"""Problems with tests: layouts, honest and dishonest answers, pass@k."""

from __future__ import annotations

import json

import pytest

from lmlab.errors import UserError
from lmlab.evals.code.checking import Outcome, check_answers, check_solutions
from lmlab.evals.code.problems import Problem, fenced, read_problems
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
        "failed",
    ),
    "reads the tests": ("    return 3\nprint(open('job.json').read())\n", "failed"),
    "takes the tests": ("    return 3\nimport sys\nsys.stdin.read()\n", "failed"),
    "searches its frames": (
        "    import os, sys\n    frame = sys._getframe()\n    while frame:\n        for each in "
        "frame.f_locals.values():\n"
        "            if isinstance(each, str) and len(each) == 32: os.write(1, each.encode())\n"
        "        frame = frame.f_back\n    os._exit(0)\n",
        "failed",
    ),
    "searches the memory of the tests": (
        "    import os\n    for place in ('mem', 'fd/0', 'environ'):\n"
        "        print(open(f'/proc/{os.getppid()}/{place}', 'rb').read(10))\n",
        "failed",
    ),
    "is equal to texts": (
        "    class S(int):\n        __eq__ = lambda self, other: True\n        __hash__ = int.__hash__\n"
        "    return S(0)\n",
        "failed",
    ),
    "is everything's difference": (
        "    class Z:\n        __eq__ = __rsub__ = lambda *_: 0\n    return Z()\n",
        "forged",
    ),
    "the network": ("    import urllib.request\n    urllib.request.urlopen('http://127.0.0.1:1')\n", "failed"),
    "right": ("    return a + b\n", "passed"),
}


@pytest.mark.parametrize("name", _ANSWERS)
def test_answers_get_their_status(executor, problems, name):
    answer, status = _ANSWERS[name]
    (outcome,) = check_answers(executor, [(problems[0], answer)], _LIMITS)
    assert outcome.status == status if status else outcome.status != "passed", outcome


def _problem(test, entry_point="f", prompt="", solution=None, setup=""):
    return Problem("x", prompt, bool(prompt), setup, test, entry_point, solution)


_CLOSE = "assert abs(f(2) - 4) < 1e-6\nassert set(f([1])) == {4}\nimport math\nassert math.isclose(f(1), 3)"


@pytest.mark.parametrize(
    "answer",
    [
        "def f(x): return 1\nabs = lambda x: 0\n",
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.set = lambda *_: 0\ndef f(x): return 1\n",
        "import math\nmath.isclose = lambda *_: True\nabs = set = lambda *_: 0\ndef f(x): return 1\n",
        "class f:\n    def __init__(self, x): pass\n    __eq__ = __lt__ = lambda *_: True\n    "
        "__sub__ = __abs__ = lambda s, *_: s\n",
        "class A:\n    __sub__ = lambda *_: 4\n    __abs__ = lambda *_: 0\ndef f(x): return A()\n",
        "import json, os, sys\njob = sys.stdin.read()\nword = json.loads(job)['word']\nprint(word, "
        "flush=True)\nos._exit(0)\n",
        "import os, signal\ndef f(x): os.kill(os.getppid(), signal.SIGKILL)\n",
        "import gc\nfor each in gc.get_objects():\n    if type(each).__name__ == 'Talk': "
        "each.send(['do', 'eval', ['list', '1'], ['dict']])\ndef f(x): return 1",
        "import gc\nfor each in gc.get_objects():\n    if type(each).__name__ == 'Talk': "
        "each.send(['value', 4, [], ''])\n",
    ],
)
def test_what_an_answer_changes_in_its_process_is_not_what_its_tests_use(executor, answer):
    (outcome,) = check_answers(executor, [(_problem(_CLOSE), answer)], _LIMITS)
    assert outcome.status in ("failed", "forged"), outcome


def test_names_of_the_prompt_are_those_of_the_benchmark(executor):
    prompt = 'import math\n\ndef poly(x):\n    return x * x - 4\n\ndef root():\n    """A root of poly."""\n'
    problem = _problem("assert math.fabs(poly(root())) < 1e-4", "root", prompt)
    honest, forging = "    return 2\n", "    return 3\nimport math\npoly = math.fabs = lambda *_: 0\n"
    outcomes = [each.status for each in check_answers(executor, [(problem, honest), (problem, forging)], _LIMITS)]
    assert outcomes == ["passed", "failed"]


_STACK = "class f:\n    def __init__(self): self.xs = []\n    def push(self, x): self.xs.append(x); return self\n"
_HONEST = {
    "changes its argument": ("def f(xs): xs.sort()", "x = [3, 1, [2]][:2]\nf(x)\nassert x == [1, 3]"),
    "a generator": ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2] and next(f(1)) == 0"),
    "an endless generator": ("def f():\n    while True: yield 7", "g = f()\nassert [next(g), next(g)] == [7, 7]"),
    "takes a function": ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x + 1, [1]) == [2]"),
    "gives a function": ("def f(a): return lambda b: a + b", "assert f(1)(2) == 3"),
    "raises": (
        "def f(x): raise ValueError('no: ' + x)",
        "try:\n    f('a')\n    assert 0\nexcept ValueError as e:\n    assert str(e) == 'no: a'",
    ),
    "of many types": (
        "import collections, datetime, decimal, fractions\ndef f(): return (1 << 9999, 2.5, 1j, "
        "b'x', {1: {2}}, None, True,"
        " collections.Counter('aab'), datetime.date(2026, 1, 2), decimal.Decimal('1.50'), fractions.Fraction(1, 3),"
        " '\\ud800', range(3), float('inf'), frozenset([1]))",
        "import datetime, decimal, fractions\nassert f() == (1 << 9999, 2.5, 1j, b'x', {1: {2}}, "
        "None, True, {'a': 2, 'b': 1},"
        " datetime.date(2026, 1, 2), decimal.Decimal('1.5'), fractions.Fraction(1, 3), '\\ud800', "
        "range(3), float('inf'),"
        " frozenset([1])) and f()[6] is True and isinstance(f()[4], dict)",
    ),
    "its own class": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x): return P(x)",
        "assert f(2) == P(2) and f(2) != P(3) and f(5).x == 5 and isinstance(f(1), P) and f(1) is not None",
    ),
    "prints": (
        "def f(): print('hi')",
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as o: f()\nassert "
        "o.getvalue() == 'hi\\n'",
    ),
    "views of a dictionary": (
        "def f(d): return d.keys()",
        "assert f({1: 2}) == {1} and list(f({2: 1, 1: 1})) == [2, 1]",
    ),
    "of NumPy": (
        "import numpy as np\ndef f(x): x += 1; return np.float32(0.5), np.int64(3), np.bool_(True), x * 2",
        "import numpy as np\nx = np.array([1, 2])\na, b, c, d = f(x)\n"
        "assert a == 0.5 and b == 3 and c == True and np.array_equal(d, [4, 6]) and x.tolist() == [2, 3]",
    ),
    "is asked for a class": (
        _STACK + "    def __len__(self): return len(self.xs)\n    def __eq__(self, o): return self.xs == o\n"
        "    def __contains__(self, x): return x in self.xs\n",
        "s = f()\nassert s.push(1).push(2) is s and len(s) == 2 and s == [1, 2] and 2 in s and s.xs[0] == 1",
    ),
}


@pytest.mark.parametrize("name", _HONEST)
def test_values_of_all_kinds_come_from_an_answer_to_its_tests(executor, name):
    answer, test = _HONEST[name]
    problem = _problem(test, solution=answer)
    (outcome,) = check_answers(executor, [(problem, answer)], _LIMITS)
    if "No module named 'numpy'" in outcome.reason:
        pytest.skip("NumPy does not stand in this interpreter's own environment")
    assert outcome == Outcome("passed")


def test_instances_of_the_setups_classes_are_given_and_returned(executor):
    setup = "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
    test = "p = Pair(1, Pair(2, 3))\nassert f([p]) == 6 and p.a == 1\nassert g(4).b == 4 and type(g(4)) is Pair"
    answer = "def f(ps): return sum(p.a + p.b.a + p.b.b for p in ps)\ndef g(x): return Pair(0, x)\n"
    assert list(check_answers(executor, [(_problem(test, setup=setup), answer)], _LIMITS)) == [Outcome("passed")]


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
        ({"id": "x", "prompt": "a", "test": "# none"}, "every answer would pass"),
        ({"task_id": 1, "text": "a", "test_list": [" ", "# a"]}, "every answer would pass"),
        ({"id": "x", "prompt": "a", "test": "def check(f):\n    assert f()"}, "'entry_point' names, and there is none"),
        ({"id": "x", "prompt": "a", "test": "f()", "entry_point": "f g"}, "'f g' is no name of a function"),
        ({"id": "x", "prompt": "a", "test": "f()", "solution": ["b"]}, "solution: a text is needed"),
        ({"task_id": 1, "text": "a", "test_list": ["f()"], "code": 5}, "code: a text is needed"),
        ({"task_id": 1, "text": "a", "test_list": ["f()"], "test_setup_code": 5}, "test_setup_code: a text is needed"),
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
