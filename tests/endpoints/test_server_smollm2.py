"""The real SmolLM2-135M-Instruct by `lmlab serve`, against `transformers`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
import transformers

from lmlab.data import Tokenizer
from lmlab.endpoints.engine.served import ServedModel
from lmlab.endpoints.server import background
from lmlab.models import end_token_ids, from_pretrained

pytestmark = pytest.mark.slow

QUESTIONS = [
    "What is the capital of France?",
    "Name three colors.",
    "2 + 2 =",
    "Why is the sky blue? Answer in a sentence, please, if you can.",
]
TOKENS = 12


@torch.no_grad()
def test_concurrent_chats_have_the_tokens_and_the_log_probabilities_of_transformers(smollm2):
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2).eval()
    served = ServedModel("smollm2", from_pretrained(smollm2), Tokenizer.load(smollm2), end_token_ids(smollm2))

    def ask(question):
        messages = [{"role": "user", "content": question}]
        options = {"max_tokens": TOKENS, "temperature": 0, "logprobs": True, "top_logprobs": 5}
        return client.chat.completions.create(model="smollm2", messages=messages, **options).choices[0]

    with (
        background(served) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        choices = list(pool.map(ask, QUESTIONS))
        scored = client.completions.create(
            model="smollm2", prompt=QUESTIONS[0], max_tokens=0, echo=True, logprobs=1
        ).choices[0]
    for question, choice in zip(QUESTIONS, choices, strict=True):
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        written = theirs.generate(ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=2)[0, ids.shape[1] :]
        assert choice.message.content == tokenizer.decode(written, skip_special_tokens=True)
        tokens = choice.logprobs.content
        expected = theirs(torch.cat((ids, written[None]), 1)).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        assert [token.logprob for token in tokens] == pytest.approx(
            expected[range(len(tokens)), written[: len(tokens)]].tolist(), abs=1e-4
        )
        tops = [[other.logprob for other in token.top_logprobs] for token in tokens]
        torch.testing.assert_close(torch.tensor(tops), expected[: len(tokens)].topk(5).values, atol=1e-4, rtol=0)
    ids = tokenizer(QUESTIONS[0], return_tensors="pt").input_ids
    expected = theirs(ids).logits[0].log_softmax(-1)[range(ids.shape[1] - 1), ids[0, 1:]]
    assert scored.logprobs.token_logprobs[1:] == pytest.approx(expected.tolist(), abs=1e-4)
