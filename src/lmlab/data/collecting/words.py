"""Words for comparing texts, also of writing that sets no spaces between them.

A sentence of Chinese, Japanese, Thai, Lao, Khmer, Burmese or Tibetan has no spaces, so that it would be one word; there
each character is a unit. A run of units says less than one of words, so that runs are `UNSPACED_FACTOR` times as long
where most of a text is such writing.
"""

from __future__ import annotations

import re

# Han, kana, and Bopomofo with their extensions; Thai, Lao, Tibetan, Burmese, Khmer; Tai Le to New Tai Lue, Tai Tham.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u2e80-\u2fdf\u3005-\u3007"
    "\u3021-\u303a\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff"
    "\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# Zero-width spaces and joiners mark words in some texts of a writing and not in others.
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\s\u200b-\u200d\u2060\ufeff{_UNSPACED}]+")
_CHARACTER = re.compile(rf"[{_UNSPACED}]")
UNSPACED_FACTOR = 2


def units(text: str) -> list[str]:
    """The words of a text between spaces; of writing without spaces its characters."""
    return _UNIT.findall(text) if _CHARACTER.search(text) else text.split()


def is_unspaced(text: str) -> bool:
    """Whether a text has characters of writing without spaces, whose runs are no words."""
    return _CHARACTER.search(text) is not None


def run_factor(found: list[str]) -> int:
    """How much longer runs are: 2 where more than half of the units are characters of writing without spaces."""
    unspaced = sum(len(unit) == 1 and _CHARACTER.match(unit) is not None for unit in found)
    return UNSPACED_FACTOR if 2 * unspaced > len(found) else 1
