"""Questions that a chapter answers in several sentences, by rule: what a term is, why something is so, how to do
something, what happens if, what a heading promises, and what the chapter says about its rarer words.

Answers are runs of the chapter's own sentences, whole and in order: a floor for what a model writes, without a model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from lmlab.methods.tutor.writing.definitions import as_asked, split_sentences, term_of

FEWEST_WORDS, MOST_WORDS = 25, 90
"""Of an answer: fewer explain nothing, and more would repeat the chapter."""
_WHY = re.compile(
    r"^(?P<claim>[A-Z][^,;:()]{15,120}?),? because (?!of\b)"
    r"|^(?:The )?[Rr]eason (?:for|of|why) (?P<reason>[^,;:()]{5,90}?) (?:is|are|was)\b"
)
_FOLLOWS = re.compile(r"^(?:As a result|Therefore|Thus|Hence|Consequently|So), (?P<claim>[^;:()]{15,140})[.]$")
_HOW = re.compile(r"^To (?!be\b|sum\b|summari|conclude|begin|start|see why)(?P<what>[a-z][^,.;:()]{8,90}), ")
_IF = re.compile(r"^(?:When|If) (?!(?:this|that|it|so|not|nothing|they|these|those|all)\b)(?P<what>[^,.;:()]{10,90}), ")
_NO_TERM = re.compile(
    r"\b(?:can|could|should|may|might|must|will|would|also|additionally|finally"
    r"|provides?|makes?|verify|that|this|your|you|we|its?|not|to)\b",
    re.IGNORECASE,
)  # a term that begins a sentence with a verb of its own before "is"
_PROPER = re.compile(r"^(?:[A-Z][a-z]*[A-Z]|[A-Z]{2,}|I\b|`)")
_WORD = re.compile(r"[A-Za-z][A-Za-z-]{3,}")
_UNTELLING = (
    "about above after again also always another because been before being below between both could does each either"
    " even every example first following from have having here however into just like made make makes many means might"
    " more most much must need note often once only other over same second section see shown similar since some such"
    " than that their them then there these they this those three through thus under until used using value very want"
    " well were what when where whether which while will with within without would your therefore chapter called case"
    " cases different given however instead itself long number possible rather several simply still take useful way"
    " ways know known"
)
_COMMON = frozenset(_UNTELLING.split(" "))
_BEGINNINGS = (
    "The A An This That These Those It They We You He She There In On At As For From By With If When While Because"
    " Some Many Most All Each Every No Not One Two Its Their Our Your His Her Such Both Other Another"
)
_LOWERED = frozenset(_BEGINNINGS.split(" "))
_ABOUT = ("What does the chapter say about {a} and {b}?", "Please explain to me how {a} and {b} belong together.",
          "I am not sure about {a} and {b}. Can you help me?", "Tell me more about {a} and {b}, please.")  # fmt: skip


def questions(text: str) -> list[tuple[str, str]]:
    """Questions about a chapter, or a part of one, and the sentences that answer them, in the chapter's order; no
    answer stands there twice.
    """
    paragraphs = [each for each in text.split("\n\n") if each.strip()]
    prose = [None if _is_no_prose(each) else split_sentences(each) for each in paragraphs]
    found: dict[str, str] = {}
    starts = set[str]()
    for question, answer in _candidates(paragraphs, prose):
        opening = answer[:40]
        if question not in found and opening not in starts:
            found[question] = answer
            starts.add(opening)
    return list(found.items())


def _candidates(paragraphs: Sequence[str], prose: Sequence[list[str] | None]) -> Iterator[tuple[str, str]]:
    counts = [Counter(_words(" ".join(each or ()))) for each in prose]
    spread = Counter(word for each in counts for word in each)
    for place, sentences in enumerate(prose):
        if sentences is None:
            continue
        asked = False
        for number, sentence in enumerate(sentences):
            question = _question(sentence)
            if question is None and (match := _FOLLOWS.match(sentence)) and number:
                question, number = f"Why is it that {_lower(match['claim'])}?", max(0, number - 2)
            if question is not None and (answer := _from(prose, place, number)) is not None:
                asked = True
                yield question, answer
        answer = _from(prose, place, 0)
        if answer is None:
            continue
        if place and paragraphs[place - 1].startswith("#"):
            heading = paragraphs[place - 1].lstrip("# ").strip(" .:?")
            if len(heading.split()) > 1 and "`" not in heading:
                yield f"Can you explain “{heading}” to me?", answer
        rare = sorted(counts[place], key=lambda word: (-counts[place][word] / spread[word] ** 2, -len(word), word))[:2]
        if not asked and len(rare) == 2:
            form = _ABOUT[sum(map(ord, rare[0])) % len(_ABOUT)]
            yield form.replace("{a}", rare[0]).replace("{b}", rare[1]), answer


def _question(sentence: str) -> str | None:
    """What a sentence begins to answer."""
    if match := _WHY.match(sentence):
        claim = match["claim"]
        return f"Why is it that {_lower(claim)}?" if claim else f"What is the reason for {match['reason']}?"
    if (term := term_of(sentence)) is not None and not _NO_TERM.search(term):
        verb = sentence[len(term) :].split()[0]
        many = verb in ("are", "have", "use") or (verb[-1:] != "s" and term[-1:] == "s")
        return f"What {'are' if many else 'is'} {as_asked(term)}?"
    if match := _HOW.match(sentence):
        return f"How can one {match['what']}?"
    if match := _IF.match(sentence):
        return f"What happens if {match['what']}?"
    return None


def _from(prose: Sequence[list[str] | None], place: int, number: int) -> str | None:
    """The sentences of a paragraph from one on, and of what follows it while that is too little; before it, where
    nothing follows. None where there are too few words, or a first sentence of too many.
    """
    own = prose[place] or []
    taken = _fit(own[number : number + MOST_WORDS], MOST_WORDS)
    after = place + 1
    while _count(taken) < FEWEST_WORDS and len(taken) == len(own) - number and after < len(prose) and prose[after]:
        more = _fit(prose[after] or [], MOST_WORDS - _count(taken))
        if not more:
            break
        return _whole([*taken, *more])
    while taken and _count(taken) < FEWEST_WORDS and number:
        number -= 1
        if _count([own[number], *taken]) > MOST_WORDS:
            break
        taken = [own[number], *taken]
    return _whole(taken)


def _whole(sentences: Sequence[str]) -> str | None:
    return " ".join(sentences) if FEWEST_WORDS <= _count(sentences) <= MOST_WORDS else None


def _fit(sentences: Sequence[str], most: int) -> list[str]:
    """The first sentences that have so many words at most."""
    taken: list[str] = []
    for each in sentences:
        if _count([*taken, each]) > most:
            break
        taken.append(each)
    return taken


def _count(sentences: Sequence[str]) -> int:
    return sum(len(each.split()) for each in sentences)


def _is_no_prose(paragraph: str) -> bool:
    """Headings, code, formulas, tables, and what introduces them without an end."""
    return (
        paragraph.startswith(("#", "    ", "$$", "- ", "* ", ">>>", "...", ":"))
        or "|" in paragraph
        or paragraph.rstrip()[-1:] not in '.!?")”'
    )


def _words(text: str) -> list[str]:
    return [word for each in _WORD.findall(text) if (word := each.lower()) not in _COMMON and "`" not in each]


def _lower(claim: str) -> str:
    """A sentence as a part of another."""
    return claim if _PROPER.match(claim) or claim.split()[0] not in _LOWERED else claim[0].lower() + claim[1:]
