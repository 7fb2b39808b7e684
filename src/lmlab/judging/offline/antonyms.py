"""Pairs of opposite words, by which a statement is turned into its contrary: common words of explanations."""

from __future__ import annotations

_PAIRS = """
more less, most least, larger smaller, bigger smaller, largest smallest, large small, big small, greater
smaller, higher lower, highest lowest, high low, longer shorter, longest shortest, long short, faster slower,
fastest slowest, fast slow, quickly slowly, earlier later, early late, before after, first last, above below,
inside outside, within outside, increase decrease, increases decreases, increasing decreasing, increased
decreased, grow shrink, grows shrinks, rising falling, gain lose, gains loses, always never, everywhere nowhere,
everything nothing, both neither, same different, equal unequal, similar dissimilar, hot cold, hotter cooler,
hottest coolest, warm cold, warmer cooler, brighter fainter, bright faint, lighter darker, heavier lighter,
heavy light, strong weak, stronger weaker, hard easy, harder easier, difficult easy, simple complex, near far,
nearer farther, closer farther, close far, closest farthest, nearby distant, young old, younger older, new old,
newer older, open closed, opens closes, full empty, rich poor, positive negative, upward downward, north south,
east west, northern southern, eastern western, true false, correct wrong, right wrong, possible impossible, able
unable, stable unstable, necessary unnecessary, visible invisible, dependent independent, finite infinite,
mutable immutable, direct indirect, directly inversely, constant variable, public private, internal external,
inner outer, upper lower, maximum minimum, maximal minimal, maximize minimize, best worst, better worse, good
bad, safe unsafe, successful failed, succeeds fails, success failure, allowed forbidden, allows prevents, allow
prevent, permits forbids, enables disables, enable disable, enabled disabled, accepts rejects, accept reject,
include exclude, includes excludes, included excluded, including excluding, add remove, adds removes, added
removed, insert delete, create destroy, creates destroys, absorbs reflects, absorb reflect, absorbed reflected,
emits absorbs, attract repel, attracts repels, expand contract, expands contracts, heat cool, heats cools,
freeze melt, freezes melts, solid liquid, start end, starts ends, begin end, begins ends, beginning end, appears
disappears, keep lose, keeps loses, remember forget, encrypt decrypt, presence absence, present absent, with
without, often rarely, frequently rarely, usually rarely, mostly hardly, many few, much little, together apart,
common rare, general particular, wide narrow, wider narrower, broad narrow, thick thin, thicker thinner, deep
shallow, deeper shallower, dense sparse, denser sparser, sharp blunt, smooth rough, clean dirty, dry wet, acidic
basic, supervised unsupervised, linear nonlinear, discrete continuous, parametric nonparametric, convex concave,
dominant recessive, sequential parallel, synchronous asynchronous, optional required, implicit explicit,
implicitly explicitly, automatic manual, automatically manually, temporary permanent, half twice, doubles
halves, multiply divide, multiplied divided, underestimates overestimates, overfitting underfitting, rises sets,
rise set
"""


def _table() -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in " ".join(_PAIRS.split()).split(", "):
        first, _, second = pair.partition(" ")
        found.setdefault(first, second)
        if " " not in second:
            found.setdefault(second, first)
    return found


OPPOSITES: dict[str, str] = _table()
"""Word -> its opposite, which may be several words."""
