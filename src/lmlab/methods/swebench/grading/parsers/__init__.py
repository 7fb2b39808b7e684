"""Parsers of test logs by name: from what a runner printed to the outcome of each test.

Names, ids of tests and odd cases follow the public package `swebench` 5.0.2, so that published lists of tests find
their outcomes.
"""

from __future__ import annotations

from lmlab.errors import UserError, did_you_mean
from lmlab.methods.swebench.grading.parsers import javascript, jvm, lines, python, structured
from lmlab.methods.swebench.grading.parsers.status import LogContext, Parser, StatusMap, unwrapped

PARSERS: dict[str, Parser] = {
    "pytest": python.pytest,
    "pytest_options": python.pytest_options,
    "pytest_v2": python.pytest_v2,
    "django": python.django,
    "seaborn": python.seaborn,
    "sympy": python.sympy,
    "matplotlib": python.matplotlib,
    "calypso": javascript.calypso,
    "bpmn_js": javascript.bpmn_js,
    "carbon": javascript.carbon,
    "chart_js": javascript.chart_js,
    "eslint": javascript.eslint,
    "grommet": javascript.grommet,
    "highlightjs": javascript.highlightjs,
    "immutable_js": javascript.immutable_js,
    "karma": javascript.karma,
    "lighthouse": javascript.lighthouse,
    "marked": javascript.marked,
    "next": javascript.next_js,
    "openlayers": javascript.openlayers,
    "p5js": javascript.p5js,
    "prismjs": javascript.prismjs,
    "quarto_cli": javascript.quarto_cli,
    "react_pdf": javascript.carbon,
    "jest": lines.jest,
    "jest_json": lines.jest_json,
    "vitest": lines.vitest,
    "tap": lines.tap,
    "gotest": lines.gotest,
    "cargo": lines.cargo,
    "redis": lines.redis,
    "jq": lines.jq,
    "micropython_test": lines.micropython,
    "googletest": lines.googletest,
    "ctest": lines.ctest,
    "ant": lines.ant,
    "maven": jvm.maven,
    "gradle_custom": jvm.gradle,
    "phpunit": lines.phpunit,
    "minitest": lines.minitest,
    "cucumber": lines.cucumber,
    "ruby_unit": lines.ruby_unit,
    "rspec_transformed_json": lines.rspec,
    "jekyll": lines.jekyll,
    "doctest": structured.doctest,
    "junit": structured.junit,
    "pytest_json": structured.pytest_json,
}
_SAME = {
    "pytest": ("astroid", "flask", "marshmallow", "pvlib", "pyvista", "sqlfluff", "xarray"),
    "pytest_options": ("pydicom", "requests", "pylint"),
    "pytest_v2": ("astropy", "scikit", "sphinx"),
}
PARSERS |= {alias: PARSERS[name] for name, aliases in _SAME.items() for alias in aliases}

# Rows of before 2026 name no parser. Their repositories tell which one it is.
_OF_REPOSITORY = {
    "astropy/astropy": "astropy",
    "django/django": "django",
    "marshmallow-code/marshmallow": "marshmallow",
    "matplotlib/matplotlib": "matplotlib",
    "mwaskom/seaborn": "seaborn",
    "pallets/flask": "flask",
    "psf/requests": "requests",
    "pvlib/pvlib-python": "pvlib",
    "pydata/xarray": "xarray",
    "pydicom/pydicom": "pydicom",
    "pylint-dev/astroid": "astroid",
    "pylint-dev/pylint": "pylint",
    "pytest-dev/pytest": "pytest",
    "pyvista/pyvista": "pyvista",
    "scikit-learn/scikit-learn": "scikit",
    "sqlfluff/sqlfluff": "sqlfluff",
    "sphinx-doc/sphinx": "sphinx",
    "sympy/sympy": "sympy",
}


def parser_named(name: str) -> Parser:
    """The parser of a name, with or without the prefix `parse_log_`.

    Raises:
        UserError: there is none.
    """
    short = name.removeprefix("parse_log_")
    if short not in PARSERS:
        raise UserError(f"Unknown log parser '{name}'. {did_you_mean(short, PARSERS)}")
    return PARSERS[short]


def parser_of(repository: str) -> str:
    """The name of the parser for a repository of the published datasets; pytest's for any other."""
    return f"parse_log_{_OF_REPOSITORY.get(repository, 'pytest')}"


def parse(name: str, log: str, context: LogContext | None = None) -> StatusMap:
    """The outcome of each test in a log.

    Arguments:
        name: of the parser, such as `parse_log_django` or `django`.
        log: with line ends "\\n".

    Raises:
        UserError: there is no such parser.
        Exception: of the kinds that a parser of structured output raises for output that is cut off or forged.
    """
    return parser_named(name)(unwrapped(log), context or LogContext())
