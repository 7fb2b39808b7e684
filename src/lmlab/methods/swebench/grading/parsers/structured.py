"""Results that a runner writes as data: JUnit XML, pytest's JSON, doctest's XML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.parsers import expat

from lmlab.files import ParseError, json_value
from lmlab.methods.swebench.grading.parsers.status import (
    ERROR,
    FAILED,
    PASSED,
    SKIPPED,
    XFAIL,
    LogContext,
    StatusMap,
)

_MOST_BYTES = 64 << 20  # the code under test writes it, and could fill memory


class _Refused(Exception):
    pass


def _elements(text: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """("start" or "end", name, attributes) of an XML document. Document types, and with them entities that grow or
    read files, are refused.
    """
    events: list[tuple[str, str, dict[str, str]]] = []

    def refuse(*_: object) -> None:
        raise _Refused

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: events.append(("start", name, attributes))
    parser.EndElementHandler = lambda name: events.append(("end", name, {}))
    if len(text) > _MOST_BYTES:
        raise ParseError(f"the XML has more than {_MOST_BYTES:,} characters")
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except (expat.ExpatError, _Refused) as error:
        raise ParseError(f"it is not XML of test results ({error})") from None
    return iter(events)


def junit(text: str, context: LogContext) -> StatusMap:
    """JUnit XML. With pytest's `junit_family=xunit1` the id is that of pytest: file, classes, name; else it is the
    attribute `classname`, a point, and the name.

    Raises:
        ParseError: it is not XML.
    """
    found: StatusMap = {}
    test, status = "", PASSED
    for event, name, attributes in _elements(text):
        if event == "start" and name == "testcase":
            test, status = _junit_id(attributes), PASSED
        elif event == "start" and test:
            if name == "error" or (name == "failure" and status != ERROR):
                status = ERROR if name == "error" else FAILED
            elif name == "skipped" and status == PASSED:
                status = XFAIL if attributes.get("type") == "pytest.xfail" else SKIPPED
        elif event == "end" and name == "testcase" and test:
            # A teardown that fails is a second record of the test, and the worse of both holds
            found[test] = status if found.get(test) not in (FAILED, ERROR) else found[test]
            test = ""
    return found


def _junit_id(attributes: dict[str, str]) -> str:
    name, classes, file = attributes.get("name", ""), attributes.get("classname", ""), attributes.get("file")
    if not file:
        return f"{classes}.{name}" if classes else name
    module = re.sub(r"\.py$", "", file).replace("/", ".")
    # A file that could not be collected has no class, and its dotted path as the name
    if not classes and name == module:
        return file
    if classes != module and not classes.startswith(f"{module}."):
        # The file is that of the function, which a class of another file has inherited
        parts = classes.split(".")
        until = next((place for place, part in enumerate(parts) if part[:1].isupper()), len(parts))
        module, file = ".".join(parts[:until]), f"{'/'.join(parts[:until])}.py"
    inner = classes.removeprefix(module).strip(".")
    return "::".join([file, *(inner.split(".") if inner else []), name])


def pytest_json(text: str, context: LogContext) -> StatusMap:
    """The report of pytest-json-report: `{"tests": [{"nodeid", "outcome"}]}`.

    Raises:
        ParseError: it is not such a report.
    """
    words = {
        "passed": PASSED,
        "failed": FAILED,
        "error": ERROR,
        "skipped": SKIPPED,
        "xfailed": XFAIL,
        "xpassed": PASSED,
    }
    report = json_value(text)
    tests = report.get("tests") if isinstance(report, dict) else None
    if not isinstance(tests, list):
        raise ParseError("the report has no list 'tests'")
    return {str(each["nodeid"]): words.get(str(each["outcome"]), FAILED) for each in tests if isinstance(each, dict)}


def doctest(log: str, context: LogContext) -> StatusMap:
    """doctest (C++) run with `-s -r=xml`: each sub-case of a test case, passed if all its expressions are."""
    start = log.find("<doctest")
    end = log.find("</doctest>", start)
    if start < 0 or end < 0:
        return {}
    found: StatusMap = {}
    case, nested = "", list[str]()
    for event, name, attributes in _elements(log[start : end + len("</doctest>")]):
        if name == "TestCase" and event == "start":
            case = attributes.get("name", "")
        elif name == "SubCase":
            if event == "start":
                nested.append(f"{case} > {attributes.get('name', '')}")
                found[nested[-1]] = PASSED
            else:
                nested.pop()
        elif name == "Expression" and event == "start" and attributes.get("success") != "true":
            found |= dict.fromkeys(nested, FAILED)
    return found
