"""Perplexity of documents, in bits: they are comparable between tokenizers when they are divided by bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lmlab.data import Document, Tokenizer
from lmlab.errors import UserError
from lmlab.evals.measurement import Measurement, ratio
from lmlab.evals.prefix_sharing import Window
from lmlab.evals.rows import Row
from lmlab.evals.scoring import Scorer
from lmlab.words import counted


def measure_documents(
    scorer: Scorer,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    window: int,
    stride: int | None = None,
    begin_every: bool = False,
) -> Iterator[Row]:
    """The row of each document, as they come: `bits` that the model needs for its text, `tokens` and `bytes`. Documents
    do not see each other.

    Arguments:
        window: the most tokens that the model sees at once.
        stride: how far the window slides, by default half its length: every token is scored once, and all but the first
            window's have at least `window - stride` tokens before them.
        begin_every: put the begin mark before every window, not before a document's first one alone; see
            `Evaluator.begins_windows`.

    The begin mark is given, the end mark is not scored, so that the bits are those of the text's bytes.
    """
    windows: list[Window] = []
    owners: list[int] = []
    encoded = tokenizer.encode_batch([document.text for document in documents], "as_text")
    for number, ids in enumerate(encoded):
        for each in sliding_windows([tokenizer.bos_id, *ids], window, stride or max(1, window // 2), begin_every):
            windows.append(each)
            owners.append(number)
    missing = [0] * len(documents)
    for owner in owners:
        missing[owner] += 1
    bits = [0.0] * len(documents)
    yield from (document_row(documents[number], 0.0, 0) for number, count in enumerate(missing) if count == 0)
    for index, score in scorer.score(windows):
        owner = owners[index]
        bits[owner] -= score.log_prob / math.log(2)
        missing[owner] -= 1
        if missing[owner] == 0:
            yield document_row(documents[owner], bits[owner], len(encoded[owner]))


def sliding_windows(ids: Sequence[int], window: int, stride: int, begin_every: bool = False) -> Iterator[Window]:
    """Windows that score every token but the first once; the first sees `window` tokens, each further one scores
    `stride` more.

    Arguments:
        begin_every: the first token stands before each, in the place of the one that is farthest back.
    """
    done = 1
    while done < len(ids):
        end = min(len(ids), window + 1) if done == 1 else min(len(ids), done + stride)
        start = max(0, end - window - 1)
        begin = [ids[0]] if begin_every and start else []
        yield Window([*begin, *ids[start + len(begin) : end]], end - done)
        done = end


def document_row(document: Document, bits: float, tokens: int) -> Row:
    """The row of a document."""
    return {
        "id": document.id,
        "domain": document.domain,
        "bits": bits,
        "tokens": tokens,
        "bytes": len(document.text.encode()),
    }


def bits_per_byte(rows: Sequence[Row]) -> Measurement:
    """Total bits over total bytes, with a standard error over documents.

    Raises:
        UserError: none of the documents holds a byte.
    """
    if not any(row["bytes"] for row in rows):
        names = sorted({str(row.get("domain", "")) for row in rows})
        of = f" of the domain '{names[0]}'" if len(names) == 1 and names[0] else ""
        raise UserError(f"There is no text to measure: {counted(len(rows), 'documents')}{of}, all of them empty.")
    return ratio([row["bits"] for row in rows], [row["bytes"] for row in rows])


def perplexity_figures(rows: Sequence[Row]) -> dict[str, Measurement]:
    """Bits per byte; and bits per token and perplexity, which depend on the tokenizer."""
    tokens = [row["tokens"] for row in rows]
    per_token = ratio([row["bits"] for row in rows], tokens)
    value = 2**per_token.value
    error = None if per_token.standard_error is None else value * math.log(2) * per_token.standard_error
    return {
        "bits_per_byte": bits_per_byte(rows),
        "bits_per_token": per_token,
        "perplexity": Measurement(value, error, per_token.count),
    }
