"""The program that runs in the sandbox: an answer in one process, its tests in another. Of the standard library alone;
never imported.

An answer can reach whatever stands in its own process: the frames of its callers, what they read, the built-in
functions and the modules that tests use. So it runs in a process of its own, which knows neither the tests nor the word
that says that they have passed, and the two exchange values over pipes, as JSON. What comes from the answer is plain
data, made anew here, or a `Remote`, of which the answer decides what its attributes are, but not what it is equal to.

Standard input holds one line of JSON: the fields of `main` and the word.
"""

import builtins
import collections
import contextlib
import datetime
import decimal
import enum
import fractions
import importlib
import io
import itertools
import json
import numbers
import operator
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

_OWN_RULE = "forged: the answer compares by a rule of its own"
# What a model's code prints or yields may be endless. Longer numbers are sent as text, which no reader rounds.
_MOST_PRINTED, _MOST_ITEMS, _SHORT = 1 << 20, 100_000, 1 << 62
_DICT_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "iterator": iter,
    "dict": dict,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: dict(items).items(),
}
_TEXTS: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16),  # of no bounded length, as decimal digits are
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "Decimal": decimal.Decimal,
    "Fraction": fractions.Fraction,
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
}
_NUMBERS: dict[str, Callable[..., Any]] = {"complex": complex, "range": range, "timedelta": datetime.timedelta}


class Talk:
    """One end of the talk between the two processes: it asks, and serves while it waits for the answer.

    Attributes:
        tests: this is the end of the tests, which serves nothing but calls of functions that it has handed out itself.
        classes: of the benchmark, that both ends have by the same names; their instances are copied.
    """

    def __init__(self, read: int, write: int, tests: bool) -> None:
        self.reader, self.writer, self.tests = open(read, "rb"), open(write, "wb"), tests  # noqa: SIM115
        self.classes: dict[str, type] = {}
        self._handed: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._remotes: dict[int, Remote] = {}

    def send(self, message: Any) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")
        self.writer.flush()

    def receive(self) -> Any:
        line = self.reader.readline()
        if not line:
            raise EOFError("the answer has ended its process")
        return json.JSONDecoder().decode(line.decode())  # lmlab's own readers are not at hand here

    def ask(self, how: str, *arguments: Any, **named: Any) -> Any:
        """Have the other end do something with a value that it has handed out, the first argument."""
        self.send(["do", how, self.encode(list(arguments)), self.encode(named)])
        while (message := self.receive())[0] == "do":
            self.serve(message)
        kind, value, changed, printed = message
        sys.stdout.write(str(printed))
        if kind == "raise":
            raise self._error(value)
        for place, encoded in changed:
            _refill(arguments[place], self.decode(encoded))
        return self.decode(value)

    def serve(self, message: Any) -> None:
        """Do what the other end asks for, and tell it the value or the error."""
        _, how, encoded, named = message
        printed = io.StringIO() if self.tests else _Printed()
        try:
            arguments, options = self.decode(encoded), self.decode(named)
            if self.tests and (how != "call" or not any(arguments[0] is each for each in self._handed)):
                raise PermissionError("the answer may only call what it was given")
            function = getattr(operator, how, None) or getattr(builtins, how)
            with contextlib.nullcontext() if self.tests else contextlib.redirect_stdout(printed):
                value = self.encode(function(*arguments, **options))
            changed = []
            for place, (before, after) in enumerate(zip(encoded[1:], arguments, strict=True)):
                if isinstance(before, list) and before[0] in (
                    "list",
                    "dict",
                    "set",
                    "deque",
                    "bytearray",
                    "instance",
                    "array",
                ):
                    now = self.encode(after)
                    changed += [[place, now]] if now != before else []
            reply = ["value", value, changed, printed.getvalue()]
        except BaseException as error:
            names = [each.__name__ for each in type(error).__mro__]
            reply = ["raise", [names, _text_of(error)], [], printed.getvalue()]
        self.send(reply)

    def _error(self, told: Any) -> BaseException:
        names, text = told
        for name in names:
            kind = self.classes.get(name, getattr(builtins, name, None))
            if isinstance(kind, type) and issubclass(kind, Exception):
                with contextlib.suppress(Exception):  # one that is not made of a text
                    return kind(text)
        return RuntimeError(f"the answer ends its process: {names[0]}" if names else str(text))

    def encode(self, value: Any) -> Any:
        """A value as JSON; what is no plain data stays here and is told by a number."""
        kind = type(value)
        if isinstance(value, Remote):
            return ["yours", object.__getattribute__(value, "number")]
        if kind.__name__ in self.classes and (kind is self.classes[kind.__name__] or not self.tests):
            if isinstance(value, enum.Enum):
                return ["member", kind.__name__, value.name]
            if isinstance(value, tuple):
                return ["made", kind.__name__, self.encode(list(value))]
            if hasattr(value, "__dict__") and not isinstance(value, type):
                return ["instance", kind.__name__, self.encode(dict(vars(value)))]
        if value is None or kind is bool:
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            whole = int.__index__(value)
            return whole if -_SHORT < whole < _SHORT else ["int", hex(whole)]
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, dict):
            return ["dict", *([["tuple", self.encode(k), self.encode(v)] for k, v in dict.items(value)])]
        for name in ("list", "tuple", "set", "frozenset", "deque"):
            base = collections.deque if name == "deque" else getattr(builtins, name)
            if isinstance(value, base):
                return [name, *map(self.encode, base.__iter__(value))]
        if kind in _DICT_VIEWS:
            return [_DICT_VIEWS[kind], *map(self.encode, value)]
        if isinstance(value, bytes | bytearray):
            return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
        if kind in (decimal.Decimal, fractions.Fraction):
            return [kind.__name__, str(value)]
        if kind in (datetime.datetime, datetime.date, datetime.time):
            return [kind.__name__, value.isoformat()]
        if kind is datetime.timedelta:
            return ["timedelta", value.days, value.seconds, value.microseconds]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is range:
            return ["range", *map(self.encode, (value.start, value.stop, value.step))]
        if isinstance(value, numbers.Integral):  # of NumPy, as the next
            return self.encode(int(value))
        if isinstance(value, numbers.Real):
            return float(value)
        if isinstance(value, numbers.Complex):
            return self.encode(complex(value))
        place = getattr(kind, "__module__", "")
        if place == "numpy" and kind.__name__ in ("bool", "bool_"):
            return bool(value)
        if place == "numpy" and kind.__name__ == "ndarray" and value.dtype.kind in "biufcU":
            return ["array", value.dtype.str, self.encode(value.tolist())]
        if isinstance(value, type) and vars(builtins).get(name := value.__name__) is value:
            return ["type", name]
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__, self._handle(value)]
        if self.tests and isinstance(value, Iterator):
            return ["iterator", *map(self.encode, itertools.islice(value, _MOST_ITEMS))]
        if self.tests and not callable(value):
            raise TypeError(f"a value of the type {kind.__name__} cannot be given to an answer")
        return self._handle(value)

    def _handle(self, value: Any) -> Any:
        number = self._numbers.setdefault(id(value), len(self._handed))
        if number == len(self._handed):
            self._handed.append(value)  # which also keeps its id from being given again
        own = any(
            "__eq__" in vars(each) and getattr(each, "__module__", "") == "answer" for each in type(value).__mro__
        )
        return ["mine", number, own]

    def decode(self, told: Any) -> Any:
        """The value of what `encode` has made at the other end."""
        if not isinstance(told, list):
            return told
        kind, *parts = told
        if kind in _SEQUENCES:
            return _SEQUENCES[kind]([self.decode(each) for each in parts])
        if kind in _TEXTS:
            return _TEXTS[kind](parts[0])
        if kind in _NUMBERS:
            return _NUMBERS[kind](*map(self.decode, parts))
        if kind == "array":
            return importlib.import_module("numpy").array(self.decode(parts[1]), dtype=parts[0])
        if kind == "type":
            found = getattr(builtins, parts[0])
            return found if isinstance(found, type) else None
        if kind == "member":
            return self.classes[parts[0]][parts[1]]  # type: ignore[index]
        if kind == "made":
            return tuple.__new__(self.classes[parts[0]], self.decode(parts[1]))
        if kind == "instance":
            made: Any = object.__new__(self.classes[parts[0]])
            made.__dict__.update(self.decode(parts[1]))
            return made
        if kind == "module" and parts[0].partition(".")[0] in sys.stdlib_module_names:
            return importlib.import_module(parts[0])
        if kind == "module":
            return self.decode(parts[1])
        if kind == "yours":
            return self._handed[parts[0]]
        number, own = parts
        return self._remotes.setdefault(number, Remote(self, number, own))


class _Printed(io.StringIO):
    """What an answer prints while it is called, up to a bound: one that prints for ever is to run out of time."""

    def write(self, text: str) -> int:
        return super().write(text) if self.tell() < _MOST_PRINTED else len(text)


class Remote:
    """A value that lives in the other process. It has no rule of its own for what it is equal to, or near to, among
    plain values, unless the problem asks for a class.
    """

    rules = False
    """The problem asks for a class: its rules are what is tested."""

    def __init__(self, talk: Talk, number: int, own: bool) -> None:
        object.__setattr__(self, "talk", talk)
        object.__setattr__(self, "number", number)
        object.__setattr__(self, "own", own)

    def __getattribute__(self, name: str) -> Any:
        return _do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _do("setattr", self, name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return object.__getattribute__(self, "talk").ask("call", self, *arguments, **named)

    def __contains__(self, value: Any) -> bool:
        return bool(_do("contains", self, value)) if Remote.rules else any(each == value for each in self)

    def __iter__(self) -> Iterator[Any]:
        inner = _do("iter", self)
        if not isinstance(inner, Remote):
            yield from inner
            return
        while True:
            try:
                value = _do("next", inner)
            except StopIteration:
                return
            yield value

    def __next__(self) -> Any:
        return _do("next", self)

    def __enter__(self) -> Any:
        return _do("getattr", self, "__enter__")()

    def __exit__(self, *_: object) -> None:
        _do("getattr", self, "__exit__")(None, None, None)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and bool(_do("isinstance", value, self))

    def __hash__(self) -> int:
        return int(_do("hash", self))


def _do(how: str, remote: Any, *arguments: Any) -> Any:
    return object.__getattribute__(remote, "talk").ask(how, remote, *arguments)


def _plain(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: _do(name, self, *arguments)


def _rule(name: str, swapped: bool = False) -> Callable[[Any, Any], Any]:
    """An operation with another value: with a plain one it says nothing that a test could be satisfied with."""

    def apply(self: Any, other: Any) -> Any:
        free = Remote.rules or isinstance(other, Remote)
        if not free and name in ("eq", "ne", "lt", "le", "gt", "ge"):
            if object.__getattribute__(self, "own") and other is not None:
                raise AssertionError(_OWN_RULE)
            return NotImplemented
        talk = object.__getattribute__(self, "talk")
        value = talk.ask(name, other, self) if swapped else talk.ask(name, self, other)
        if not (free or isinstance(value, Remote)):
            raise AssertionError(_OWN_RULE)
        return value

    return apply


for _name in ("len", "str", "repr", "bool", "getitem", "setitem", "delitem", "reversed", "delattr"):
    setattr(Remote, f"__{_name}__", _plain(_name))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _rule(_name))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
    setattr(Remote, f"__{_name.strip('_')}__", _rule(_name))
    setattr(Remote, f"__r{_name.strip('_')}__", _rule(_name, swapped=True))
for _name in ("neg", "pos", "abs", "invert", "int", "float", "index", "round"):
    setattr(
        Remote, f"__{_name}__", lambda self, *more, name=_name: _rule(name)(self, *more) if more else _alone(name, self)
    )


def _alone(name: str, remote: Any) -> Any:
    value = _do(name, remote)
    if not (Remote.rules or isinstance(value, Remote)):
        raise AssertionError(_OWN_RULE)
    return value


def _refill(kept: Any, now: Any) -> None:
    """Give a test's own value what an answer has changed in its copy."""
    if isinstance(kept, list | bytearray) or type(kept).__name__ == "ndarray":
        kept[:] = now
    elif isinstance(kept, dict | set | collections.deque):
        kept.clear()
        (kept.extend if isinstance(kept, collections.deque) else kept.update)(now)
    elif type(kept) is type(now) and not isinstance(kept, Remote):
        vars(kept).clear()
        vars(kept).update(vars(now))


def _text_of(error: BaseException) -> str:
    try:
        return str(error.args[0] if isinstance(error, KeyError) and error.args else error)[:1000]
    except Exception:
        return ""


def answer(talk: Talk) -> None:
    """The process of the answer: run its statements, tell its names, then serve."""
    program, classes = talk.receive()
    space: dict[str, Any] = {"__name__": "answer", "__builtins__": builtins}
    sys.modules["answer"] = types.ModuleType("answer")  # where dataclasses look up the module of a class
    sys.modules["answer"].__dict__.update(space)
    space = sys.modules["answer"].__dict__
    talk.send(["begins"])
    try:
        exec(compile(program, "answer.py", "exec"), space)  # noqa: S102 (this is the sandbox)
        talk.classes = {name: space[name] for name in classes if isinstance(space.get(name), type)}
        names = [name for name in list(space) if not name.startswith("__")]
        message: Any = ["names", {name: talk.encode(space[name]) for name in names}]
    except BaseException as error:
        message = ["raise", [[each.__name__ for each in type(error).__mro__], _text_of(error)]]
    talk.send(message)
    while True:
        talk.serve(talk.receive())


def main(program: str, given: str, test: str, entry_point: str, asks_for_class: bool, word: str, talk: Talk) -> None:
    """The process of the tests.

    Arguments:
        program: the answer's, with what stands before it.
        given: statements of the benchmark whose names tests use; the answer's own by these names are not asked.
        test: statements.
        entry_point: the name of what is tested.
        word: printed once all tests have passed.
    """
    space: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    exec(compile(given, "given.py", "exec"), space)  # noqa: S102 (this is the sandbox)
    talk.classes = {name: each for name, each in space.items() if isinstance(each, type) and each.__module__ == "tests"}
    Remote.rules = asks_for_class
    talk.send([program, list(talk.classes)])
    talk.receive()
    kind, told = talk.receive()
    if kind == "raise":
        raise talk._error(told)
    for name, value in told.items():
        if name == entry_point or not (name in space or hasattr(builtins, name)):
            space[name] = talk.decode(value)
    if entry_point and entry_point not in told:
        raise NameError(f"the function {entry_point} is not defined")
    exec(compile(test, "test.py", "exec"), space)  # noqa: S102 (this is the sandbox)


def start() -> None:
    """Part the two processes before anything is read, so that the answer's has never held the tests or the word."""
    answers, tests = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.close(answers[0])
        os.close(tests[1])
        answer(Talk(tests[0], answers[1], tests=False))
        return
    os.close(answers[1])
    os.close(tests[0])
    import ctypes

    # PR_SET_DUMPABLE: the answer has the same user, who else may open this process's memory and its input
    if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) != 0:
        raise OSError("the tests cannot be hidden from the answer")
    job = json.JSONDecoder().decode(sys.stdin.read())
    word = job["word"]
    try:
        main(**job, talk=Talk(answers[0], tests[1], tests=True))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print("\n" + word, flush=True)


start()
