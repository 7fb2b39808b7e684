from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmlab.data import TULU_TEMPLATE, Tokenizer
from lmlab.endpoints.engine.served import ServedModel
from lmlab.models import ModelConfig, Transformer, end_token_ids, from_pretrained, save_pretrained

TEXT = "It was the best of times, it was the worst of times, été, straße, 数 and 日本語. def f(x): return x + 1\n" * 3


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights that are far from their initial values, and a tokenizer with a chat
    template.
    """
    directory = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train([TEXT], 300).with_chat_template(TULU_TEMPLATE)
    model = Transformer(
        ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=2, d_model=32, num_heads=2, max_seq_len=2048)
    ).initialize(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    save_pretrained(model, directory)
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="session")
def make_served(model_directory: Path):
    """The model, ready to be served as `small`; arguments as of `ServedModel`."""

    def make(**options) -> ServedModel:
        network, tokenizer = from_pretrained(model_directory), Tokenizer.load(model_directory)
        return ServedModel("small", network, tokenizer, end_token_ids(model_directory), **options)

    return make
