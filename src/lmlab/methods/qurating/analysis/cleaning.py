"""Cleaning texts by the published rules of web corpora (C4, Gopher, FineWeb), and redacting addresses in them, as the
package `datatrove` has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from lmlab.errors import UserError, did_you_mean, missing_extra
from lmlab.methods.qurating.selecting.tables.files import Maker, Processes, make_files
from lmlab.methods.qurating.selecting.tables.table import Chunk, RatedTable, Tabular, as_texts
from lmlab.methods.qurating.selecting.tables.writing import TableWriter

CLEAN = "lmlab quality clean"
# rules as users name them, and what datatrove calls them
RULES = {
    "c4": "C4QualityFilter",
    "c4-paragraphs": "C4ParagraphFilter",
    "gopher": "GopherQualityFilter",
    "gopher-repetition": "GopherRepetitionFilter",
    "fineweb": "FineWebQualityFilter",
}
_OF_LANGUAGES = ("c4", "gopher", "gopher-repetition", "fineweb")  # the others do not look at words
_AT_ONCE = 1024  # texts in memory


class Cleaner:
    """Rules in order, of which the first that refuses a text decides, then redaction.

    Arguments:
        rules: of `RULES`. `c4` takes lines out of texts that it keeps.
        redact: put placeholders in the place of e-mail and public IP addresses.
        language: of the words that rules count, as ISO 639-1 or datatrove names it.

    Raises:
        UserError: a rule is unknown, nothing is asked for, the package is missing, or it does not know the language.
    """

    def __init__(self, rules: Sequence[str], redact: bool = False, language: str = "en") -> None:
        for name in rules:
            if name not in RULES:
                raise UserError(f"There is no rule '{name}'. {did_you_mean(name, RULES)}")
        if not rules and not redact:
            raise UserError("There is nothing to do.", f"Give --rule ({', '.join(RULES)}) or --redact.")
        self.rules, self.redact, self.language = tuple(dict.fromkeys(rules)), redact, language
        self._made: list[tuple[str, Any]] | None = None
        self._redact: Callable[[str], str] | None = None
        self._load()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None, "_redact": None}  # each process makes its own

    def _load(self) -> list[tuple[str, Any]]:
        if self._made is None:
            try:
                from datatrove.pipeline import filters, formatters
                from loguru import logger
            except ImportError as error:
                raise missing_extra(error.name or "datatrove", "Cleaning by published rules") from None
            logger.disable("datatrove")  # it tells each step on the terminal
            made = []
            for name in self.rules:
                options = {"language": self.language} if name in _OF_LANGUAGES else {}
                made.append((name, getattr(filters, RULES[name])(**options)))
            self._made = made
            self._redact = formatters.PIIFormatter().format if self.redact else None
            self.clean("A text in which there are words.")  # a language that is not known shows itself with words
        return self._made

    def clean(self, text: str) -> tuple[str | None, str]:
        """The text that is kept, or None and why: the rule, and datatrove's name of what it found."""
        from datatrove.data import Document

        made = self._load()
        document = Document(text=text, id="")
        for name, rule in made:
            try:
                found = rule.filter(document)
            except (ImportError, ValueError) as error:
                raise UserError(
                    f"Rule '{name}' cannot read words of the language '{self.language}': {error}"
                ) from error
            kept, reason = found if isinstance(found, tuple) else (found, "")
            if not kept:
                return None, f"{name}: {reason.replace('_', ' ')}" if reason else name
        return (self._redact or str)(document.text), ""


def clean_rows(
    table: Tabular,
    out: Path,
    rules: Sequence[str] = (),
    *,
    redact: bool = False,
    language: str = "en",
    text: str = "text",
    kind: str = "parquet",
    processes: Processes | None = None,
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the rows whose texts the rules keep, with their texts cleaned, a file `N-of-M` for each file.

    Returns:
        `rows`, `kept` and `changed` (kept with another text), and how many rows each reason took.

    Raises:
        UserError: as `Cleaner`, a text is missing or none, or the corpus holds what was made from its texts before they
            are changed.
    """
    rated = RatedTable(table)
    if text not in rated.columns:
        rated.require(text)
        raise UserError(f"Texts within '{text.split('.')[0]}' cannot be replaced.", "Give them a column of their own.")
    cleaner = Cleaner(rules, redact, language)
    stale = [name for name in rated.columns if name in ("input_ids", "length") or name.endswith("_average")]
    if stale and (redact or "c4" in cleaner.rules):
        raise UserError(
            f"The column '{stale[0]}' was made from texts that cleaning changes.", "Clean a corpus before you rate it."
        )
    maker = _CleanedFiles(cleaner, text, kind)
    found = make_files(table, out, CLEAN, maker, maker.name, maker.settings, processes)
    counts = {name: found.pop(name, 0) for name in ("rows", "kept", "changed")}
    return counts, dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


class _CleanedFiles(Maker):
    def __init__(self, cleaner: Cleaner, text: str, kind: str) -> None:
        self._cleaner, self._text, self._kind = cleaner, text, kind
        # the files of a call that was killed are not finished by a version with other rules
        self.settings = [cleaner.rules, cleaner.redact, cleaner.language, text, kind, version("datatrove")]

    def name(self, number: int, count: int) -> str:
        """Of a file."""
        return f"{number}-of-{count}.{self._kind}"

    def make(self, table: RatedTable, shard: int, parts: Path, path: Path) -> dict[str, int]:
        """Clean a file; counts of reasons stand beside those of rows."""
        counts = Counter[str]()
        with TableWriter(path, self._kind) as writer:
            for chunk in table.chunks([self._text], whole=True, shards=[shard]):
                counts["rows"] += chunk.num_rows
                for start in range(0, chunk.num_rows, _AT_ONCE):
                    writer.write(self._cleaned(chunk, start, counts))
        return dict(counts)

    def _cleaned(self, chunk: Chunk, start: int, counts: Counter[str]) -> pa.Table:
        texts = as_texts(chunk.columns[self._text].slice(start, _AT_ONCE), self._text)
        cleaned = [self._cleaner.clean(text) for text in texts]
        kept = [place for place, (text, _) in enumerate(cleaned) if text is not None]
        counts.update(reason for text, reason in cleaned if text is None)
        counts["kept"] += len(kept)
        counts["changed"] += sum(cleaned[place][0] != texts[place] for place in kept)
        rows = chunk.whole().slice(start, _AT_ONCE).take(pa.array(kept, pa.int64()))
        column = rows.column_names.index(self._text)
        absent = rows.column(column).is_null().to_pylist()  # rules read null as no text; it stays null
        new = [None if is_null else cleaned[place][0] for place, is_null in zip(kept, absent, strict=True)]
        return rows.set_column(column, self._text, pa.array(new, rows.schema.field(column).type))
