"""What stands beside the weights of a random directory: adapters, tokenizers that were used, templates; and directories
that only a refusal fits.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
import transformers
from compared_directories import Outcome, load_theirs
from random_directories import OTHERS, draw_directory, edit_config, random_ids

from lmlab.data import Tokenizer, encode_for_answer
from lmlab.errors import LmlabError
from lmlab.models import from_pretrained, load_lora

_TEMPLATES = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "{%- for m in messages %}{{- '<' + m.role + '>' + m.content | trim }}{%- endfor %}"
    "{%- if tools is not none and tools %}{{ tools }}{%- endif %}{{ '<assistant>' if add_generation_prompt }}",
)
_TEXT = "Packed my box with five dozen liquor jugs, 1234 times; the quick fox naps.\n  And again: naive cafe?"


def compare_adapters(seed: int, directory: Path) -> Outcome:
    """Random adapters of `peft` on a random model."""
    chance = random.Random(seed)
    base, target = directory / "base", directory / "adapters"
    drawn = draw_directory(seed, base, odd=False)
    model = load_theirs(base)
    names = [name for name, module in model.named_modules() if _is_linear(module) and "head" not in name]
    ends = sorted({name.rpartition(".")[2] for name in names} - {"gate"})
    head, table = ("lm_head", _table(model))
    settings: dict[str, Any] = {"r": chance.choice([1, 3, 8]), "lora_alpha": chance.choice([1, 4, 16.5])}
    settings["target_modules"] = chance.sample(ends, chance.randint(1, min(3, len(ends))))
    if {"gate_proj", "up_proj"} & set(settings["target_modules"]):  # peft wants both of a mixture, or neither
        settings["target_modules"] = sorted({*settings["target_modules"], "gate_proj", "up_proj"} & {*ends})
    settings |= chance.choice(
        [
            {},
            {"use_rslora": True},
            {"rank_pattern": {settings["target_modules"][0]: 5}, "alpha_pattern": {settings["target_modules"][-1]: 7}},
            {"modules_to_save": [table]},
            {"modules_to_save": [head]},
            {"modules_to_save": [table, head]},
            {"layers_to_transform": [0]},
            {"use_dora": True},
            {"bias": "all"},
            {"target_modules": "all-linear"},
        ]
    )
    try:
        theirs = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    except ValueError as error:  # such as DoRA on experts
        return Outcome(refused=f"peft does not support it: {error}")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    theirs.save_pretrained(target)
    try:
        ours = from_pretrained(base)
        load_lora(ours, target)
    except LmlabError as error:
        return Outcome(refused=f"{drawn.config.model_type}, {settings}: {error}")
    found = Outcome()
    with torch.no_grad():
        found.same(f"{settings}", ours(random_ids(seed)).logits_BTV, theirs(random_ids(seed)).logits)
    return found


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D)


def _table(model: Any) -> str:
    table = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is table).rpartition(".")[2]


def compare_tokenizer(seed: int, directory: Path) -> Outcome:
    """A tokenizer file that was saved after use, with a template."""
    chance = random.Random(seed)
    specials = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=chance.random() < 0.3)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    if chance.random() < 0.7:
        tokenizer.enable_truncation(max_length=chance.choice([3, 8]))
    if chance.random() < 0.7:
        tokenizer.enable_padding(pad_id=0, pad_token="<pad>", length=chance.choice([None, 200]))
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": chance.choice(_TEMPLATES)}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs, ours, found = transformers.AutoTokenizer.from_pretrained(directory), Tokenizer.load(directory), Outcome()
    if ours.encode(_TEXT) != theirs.encode(_TEXT, add_special_tokens=False):
        found.wrong.append("the ids of a text differ")
    messages = [{"role": "user", "content": "quick fox"}, {"role": "assistant", "content": "jugs"}]
    messages.append({"role": "user", "content": "again"})
    wanted = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    if encode_for_answer(ours, messages) != list(wanted):
        found.wrong.append(f"the ids of a chat differ: {settings['chat_template']}")
    return found


def compare_refusals(seed: int, directory: Path) -> Outcome:
    """Directories of architectures that lmlab does not have, quantized ones, and ones with code of their own."""
    chance = random.Random(seed)
    kind = chance.choice(["another architecture", "quantized", "its own code"])
    draw_directory(seed, directory, "llama", odd=False)
    if kind == "another architecture":
        named = chance.choice(OTHERS)
        edit_config(directory, model_type=named)
    elif kind == "quantized":
        named = chance.choice(["gptq", "awq", "bitsandbytes", "fp8", "mxfp4"])
        edit_config(directory, quantization_config={"quant_method": named, "bits": 4})
    else:
        named = "auto_map"
        edit_config(directory, model_type="mymodel", auto_map={"AutoConfig": "configuration_mymodel.MyConfig"})
    try:
        from_pretrained(directory)
    except LmlabError as error:
        wrong = [] if named in str(error) and "Did you mean" not in str(error) else [f"an untrue sentence: {error}"]
        return Outcome(refused=str(error), wrong=wrong)
    return Outcome(wrong=[f"read, although {kind}"])
