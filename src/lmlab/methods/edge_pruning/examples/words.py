"""Templates and words that tasks are made of."""


def _words(*lines: str) -> tuple[str, ...]:
    return tuple(" ".join(lines).split())


IOI_TEMPLATES = (
    "Then, {B} and {A} went to the {PLACE}. {B} gave a {OBJECT} to",
    "Then, {B} and {A} had a lot of fun at the {PLACE}. {B} gave a {OBJECT} to",
    "Then, {B} and {A} were working at the {PLACE}. {B} decided to give a {OBJECT} to",
    "Then, {B} and {A} were thinking about going to the {PLACE}. {B} wanted to give a {OBJECT} to",
    "Then, {B} and {A} had a long argument, and afterwards {B} said to",
    "After {B} and {A} went to the {PLACE}, {B} gave a {OBJECT} to",
    "When {B} and {A} got a {OBJECT} at the {PLACE}, {B} decided to give it to",
    "When {B} and {A} got a {OBJECT} at the {PLACE}, {B} decided to give the {OBJECT} to",
    "While {B} and {A} were working at the {PLACE}, {B} gave a {OBJECT} to",
    "While {B} and {A} were commuting to the {PLACE}, {B} gave a {OBJECT} to",
    "After the lunch, {B} and {A} went to the {PLACE}. {B} gave a {OBJECT} to",
    "Afterwards, {B} and {A} went to the {PLACE}. {B} gave a {OBJECT} to",
    "Then, {B} and {A} had a long argument. Afterwards {B} said to",
    "The {PLACE} {B} and {A} went to had a {OBJECT}. {B} gave it to",
    "Friends {B} and {A} found a {OBJECT} at the {PLACE}. {B} gave it to",
)
"""Templates of Wang et al. 2023, appendix E; in half of the prompts the first two names are swapped. The last
two are held out for `test`.
"""
HELD_OUT_TEMPLATES = 2  # `test` then asks for sentences that no search has seen, and most are left to search on
WOMEN = _words(
    "Mary Anna Laura Emma Sarah Jane Alice Julia Kate Emily Lisa Maria Susan Karen Helen Nancy Linda Ruth Amy",
    "Rose Grace Claire Victoria Diana Rachel Barbara Martha Lucy Sophie Elizabeth",
)
MEN = _words(
    "John Tom James Paul David Mark Peter Michael Robert Daniel Andrew George Henry Jack Simon Martin Scott",
    "Steven Kevin Brian Richard Charles William Thomas Edward Frank Eric Adam Alex Joseph",
)
PLACES = _words(
    "store garden restaurant school hospital office house station park library",
)
OBJECTS = _words(
    "ring kiss bone basketball computer necklace drink snack book ticket",
)
EVENTS = _words(
    "war siege reign voyage campaign expedition rebellion famine drought plague conflict alliance dynasty journey",
    "occupation strike trial project tour treaty raid mission blockade feud",
)
SPANS = ("lasted from", "stretched from", "went on from", "continued from")
HABITS = {
    "train": (
        "is great at giving advice, isn't",
        "always texts back promptly, doesn't",
        "makes the best homemade cookies, doesn't",
        "is a really good friend, isn't",
        "knows a lot about music, doesn't",
        "can run very fast, can't",
        "works very hard, doesn't",
        "is never late, is",
        "plays the piano well, doesn't",
        "tells funny stories, doesn't",
        "is always on time, isn't",
        "drinks too much coffee, doesn't",
        "can solve any puzzle, can't",
        "is afraid of the dark, isn't",
    ),
    "validation": (
        "is a careful driver, isn't",
        "reads the paper every morning, doesn't",
        "can cook very well, can't",
        "loves long walks, doesn't",
        "is good with children, isn't",
        "speaks three languages, doesn't",
        "takes the bus to work, doesn't",
    ),
    "test": (
        "loves to read at night, doesn't",
        "is the tallest in class, isn't",
        "can swim across the lake, can't",
        "writes a letter every week, doesn't",
        "is proud of the garden, isn't",
        "never forgets a face, does",
        "sings in the choir, doesn't",
        "is looking for a new job, isn't",
        "has a very old car, doesn't",
    ),
}
"""Predicates of the pronoun task; each split has its own, so that no prompt of one can be in another."""
COLORS = _words(
    "red blue green black white brown gray yellow pink orange purple",
)
THINGS = _words(
    "box cup door hat car chair book ball bag coat shirt table",
)
