"""Contraries of a statement, by rules of English: for a model that is to say whether an answer agrees with them."""

from __future__ import annotations

import re

from lmlab.judging.offline.antonyms import OPPOSITES

VERSION = 2  # of the rules; it enters the fingerprint of judges that use them

_NOT = re.compile(
    r"\b(?:can(?=not\b)not|(?P<verb>do|does|did) not|(?P<aux>[A-Za-z]+) (?:not|never)|not|never)\b", re.IGNORECASE
)
_CONTRACTED = {
    "can't": "cannot",
    "won't": "will not",
    "shan't": "shall not",
    "n't": " not",
}
_AUXILIARY = re.compile(
    r"\b(is|are|was|were|can|could|will|would|should|must|may|might|shall|has been|have been|had been|does|do|did)\b"
    r"(?! not\b)",
    re.IGNORECASE,
)
_SUBORDINATE = re.compile(
    r"\b(?:that|which|who|whose|when|if|while|because|whether|where|although|since)\b[^,]*$", re.IGNORECASE
)
_HAVE = re.compile(r"\b(?:have|has|had)\b(?! (?:not|been)\b)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])[0-9]+(?:\.[0-9]+)?(?![\w]|[.,][0-9])")
_WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)?")
_THIRD_PERSON = re.compile(
    r"(?<=[a-z\])] )(?!(?:this|its|is|was|has|as|thus|plus|less|always|perhaps|does)\b)([a-z]{2,}[a-z])s\b(?= )"
)
_BEFORE_VERB = re.compile(
    r"\b(?:the|a|an|of|in|on|at|by|for|with|to|from|and|or|than|as|these|those|all|many|some|two|its|their|his|her|our"
    r"|your|no|other|such|most|more)\s$",
    re.IGNORECASE,
)
_NO_VERB = {"series", "physics", "mathematics", "species", "axis", "basis", "gas", "bus", "mass", "class", "process"}


def contraries(statement: str) -> tuple[str, ...]:
    """Statements that contradict the given one, in nearly the same words; at most three, and at least one.

    A "not" is left out where there is one. Else one is added to the verb, a word behind the verb is replaced by its
    opposite, and a number by three times it. Where no rule fits: "It is not true that".
    """
    text = " ".join(statement.split())
    for short, whole in _CONTRACTED.items():
        text = text.replace(short, whole)
    if (turned := _without_not(text)) is not None:
        return (turned,)  # the opposite of a word in a statement with "not" need not contradict it
    candidates = (_main_verb_negated(text), _opposite(text), _other_number(text))
    found = dict.fromkeys(each for each in candidates if each and each != text)
    return tuple(found) or (f"It is not true that {text[:1].lower()}{text[1:]}",)


def _without_not(text: str) -> str | None:
    found = _NOT.search(text)
    if found is None:
        return None
    said = found[0].casefold()
    if said == "cannot":
        kept = "can"
    elif found["verb"]:
        kept = ""  # "does not move" becomes "move": the model reads over the lost ending
    else:
        kept = found["aux"] or ""
        if kept.casefold() in ("but", "or", "and", "if", "whether"):
            return None
    changed = f"{text[: found.start()]}{kept}{text[found.end() :]}"
    return " ".join(changed.split())


def _opposite(text: str) -> str | None:
    """The first word behind the verb that has an opposite: what stands before it says what is spoken of."""
    places = [found.start() for found in (_AUXILIARY.search(text), _HAVE.search(text), _verb(text)) if found]
    for found in _WORD.finditer(text, min(places, default=0)):
        if (word := OPPOSITES.get(found[0].casefold())) is not None:
            word = word[:1].upper() + word[1:] if found[0][:1].isupper() else word
            return f"{text[: found.start()]}{word}{text[found.end() :]}"
    return None


def _main_verb_negated(text: str) -> str | None:
    """A "not" at the first verb outside of a subordinate clause, or else at the first verb."""
    verbs = [
        (found.start(), rule)
        for found, rule in (
            (_AUXILIARY.search(text), _with_not),
            (_HAVE.search(text), _does_not),
            (_verb(text), _does_not),
        )
        if found
    ]
    verbs.sort(key=lambda each: each[0])
    main = [each for each in verbs if not _SUBORDINATE.search(text[: each[0]])]
    return (main or verbs)[0][1](text) if verbs else None


def _with_not(text: str) -> str | None:
    found = _AUXILIARY.search(text)
    if found is None:
        return None
    joined = "cannot" if found[0].casefold() == "can" else f"{found[0]} not"
    return f"{text[: found.start()]}{joined}{text[found.end() :]}"


def _other_number(text: str) -> str | None:
    found = _NUMBER.search(text)
    if found is None:
        return None
    return f"{text[: found.start()]}{3 * float(found[0]) + (float(found[0]) == 0):g}{text[found.end() :]}"


def _does_not(text: str) -> str | None:
    if (found := _HAVE.search(text)) is not None and found[0].casefold() != "had":
        helper = "does not have" if found[0].casefold() == "has" else "do not have"
        return f"{text[: found.start()]}{helper}{text[found.end() :]}"
    found = _verb(text)
    if found is None:
        return None
    verb = found[1]
    if verb.endswith(("sse", "she", "che", "xe", "oe")):
        verb = verb[:-1]
    elif verb.endswith("ie") and len(verb) > 3:
        verb = verb[:-2] + "y"
    return f"{text[: found.start()]}does not {verb}{text[found.end() :]}"


def _verb(text: str) -> re.Match[str] | None:
    """The first word that looks like a verb of the third person, such as "absorbs"."""
    for found in _THIRD_PERSON.finditer(text):
        if found[0] not in _NO_VERB and not _BEFORE_VERB.search(text[: found.start()]):
            return found
    return None
