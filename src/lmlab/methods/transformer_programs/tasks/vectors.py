"""Word vectors from which the categories of words begin: a text file as GloVe's, or the input embeddings of a model.

Shapes: W words, D width of vectors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.files import open_binary
from lmlab.methods.transformer_programs.network.spec import NetworkSpec


def starting_logits(source: str, spec: NetworkSpec) -> Tensor:
    """(W, variables * d_var) logits of the categories of each word: its vector, brought to that width by a Gaussian
    random projection; normal noise for words without a vector (Friedman et al. 2023, appendix).

    Raises:
        UserError: the network embeds no words, or the source has no vectors.
    """
    if not spec.embedding_vars:
        raise UserError("init_embeddings needs embedding_vars of 1 or more.")
    path = Path(source)
    known = _text_vectors(path, set(spec.vocabulary)) if path.is_file() and path.suffix != ".gguf" else {}
    if not known:
        known = _model_vectors(source, spec.vocabulary)
    width = len(next(iter(known.values())))
    random = np.random.RandomState(0)
    vectors_WD = np.stack([known[word] if word in known else random.randn(width) for word in spec.vocabulary])
    wanted = spec.embedding_vars * spec.d_var
    # scikit-learn's GaussianRandomProjection(wanted, random_state=0)
    projection = np.random.RandomState(0).normal(scale=wanted**-0.5, size=(wanted, width))
    logits = vectors_WD @ projection.T if wanted != width else vectors_WD
    return torch.from_numpy(logits).float()


def _text_vectors(path: Path, words: set[str]) -> dict[str, np.ndarray]:
    """Lines of a word and its numbers."""
    found: dict[str, np.ndarray] = {}
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            word, _, rest = line.decode("utf-8", "replace").rstrip().partition(" ")
            if word not in words:
                continue
            try:
                vector = np.array(rest.split(" "), dtype=np.float64)
            except ValueError:
                raise UserError(f"'{path}', line {number}: not a word and its numbers.") from None
            if found and len(vector) != len(next(iter(found.values()))):
                raise UserError(f"'{path}', line {number}: {len(vector)} numbers where others have another count.")
            found[word] = vector
    if not found:
        raise UserError(f"'{path}' has a vector for none of the words.")
    return found


def _model_vectors(source: str, words: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The mean of the input embeddings of a word's pieces, scaled to unit variance."""
    from lmlab.data import Tokenizer
    from lmlab.runs import Model, Vocabulary

    model = Model.find(source)
    tokenizer: Tokenizer = Vocabulary.find(source).load()
    table = model.load().embedding.weight.detach().double().numpy()
    table = table / max(float(table.std()), 1e-12)
    found = {}
    for word in words[1:]:
        pieces = tokenizer.encode(f" {word}")
        if pieces:
            found[word] = table[pieces].mean(0)
    return found
