"""A small retriever with random weights in the layout of sentence-transformers, and a small collection."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import decoders as token_decoders
from tokenizers import models, normalizers, pre_tokenizers, processors

LATE_WIDTH = 16
"""Of the vectors of tokens."""

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"]
_WORDS = (
    "the of a is in and to what who where when why how sea ship captain island storm harbor sailor whale ocean wind"
    " bread flour oven baker yeast butter sugar cake salt kitchen star planet moon orbit comet galaxy sun telescope"
    " light gravity king queen castle war sword crown army battle throne knight goal ball team player match league cup"
    " stadium coach score code loop function class string number list error test program"
)
WORDS = _WORDS.split()
PIECES = ["##s", "##ing", "##er", "##ed", ".", "?", ",", "-", "1", "2"]
TOPICS = [WORDS[13:23], WORDS[23:33], WORDS[33:43], WORDS[43:53], WORDS[53:63], WORDS[63:73]]


def wordpiece() -> tokenizers.Tokenizer:
    """A tokenizer of the BERT family."""
    vocabulary = {token: id for id, token in enumerate([*SPECIAL, *WORDS, *PIECES])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = token_decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(SPECIAL[:5])
    return backend


def write_retriever(
    directory: Path,
    seed: int = 0,
    pooling: str = "mean",
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    include_prompt: bool = True,
    max_length: int = 32,
    width: int = 32,
) -> Path:
    """Write one."""
    torch.manual_seed(seed)
    backend = wordpiece()
    config = transformers.BertConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.mul_(4.0 if "LayerNorm" not in name else 1.0)  # so that words tell
    model.save_pretrained(directory)
    backend.save(str(directory / "tokenizer.json"))
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    settings = {**names, "mask_token": "[MASK]", "tokenizer_class": "BertTokenizer", "model_max_length": 64}
    _write(directory / "tokenizer_config.json", settings)
    (directory / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS, *PIECES]) + "\n")
    _write(directory / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(directory / "config_sentence_transformers.json", {"prompts": prompts or {}, "similarity_fn_name": None})
    old = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens"}
    old |= {mode: f"pooling_mode_{mode}" for mode in ("lasttoken", "mean_sqrt_len_tokens")}
    old["weightedmean"] = "pooling_mode_weightedmean_tokens"
    modes = {key: mode == pooling for mode, key in old.items()}
    folder = directory / "1_Pooling"
    folder.mkdir(exist_ok=True)
    _write(folder / "config.json", {"word_embedding_dimension": width, **modes, "include_prompt": include_prompt})
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    _write(directory / "modules.json", modules)
    return directory


def write_collection(directory: Path, documents: int = 60, queries: int = 36, seed: int = 0) -> Path:
    """Write a collection: documents of a few topics, questions about them in two splits."""
    generator = torch.Generator().manual_seed(seed)

    def draw(words: list[str], count: int) -> str:
        picked = torch.randint(len(words), (count,), generator=generator).tolist()
        return " ".join(words[each] for each in picked)

    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        {"_id": f"d{number:03d}", "title": draw(TOPICS[number % 6], 1), "text": draw([*TOPICS[number % 6], "the"], 9)}
        for number in range(documents)
    ]
    asked = [{"_id": f"q{number:03d}", "text": f"what is {draw(TOPICS[number % 6], 3)}?"} for number in range(queries)]
    for name, records in (("corpus", rows), ("queries", asked)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (directory / f"{name}.jsonl").write_text(text)
    (directory / "qrels").mkdir(exist_ok=True)
    for split, part in (("train", asked[: queries // 2]), ("test", asked[queries // 2 :])):
        lines = ["query-id\tcorpus-id\tscore"]
        for record in part:
            topic = int(record["_id"][1:]) % 6
            lines += [f"{record['_id']}\td{topic + 6 * each:03d}\t{1 + each % 2}" for each in range(3)]
        (directory / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return directory


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_late(place: Path, attend: bool = False, expansion: bool = True, seed: int = 0) -> Path:
    """A directory of late interaction as PyLate writes them."""
    write_retriever(place, seed=seed, max_length=48)
    folder = place / "1_Dense"
    folder.mkdir()
    torch.manual_seed(seed + 1)
    save_file({"linear.weight": torch.randn(LATE_WIDTH, 32)}, folder / "model.safetensors")
    dense = {"in_features": 32, "out_features": LATE_WIDTH, "bias": False}
    activation = "torch.nn.modules.linear.Identity"
    (folder / "config.json").write_text(json.dumps({**dense, "activation_function": activation}))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    (place / "modules.json").write_text(json.dumps(modules))
    settings = {
        "model_type": "ColBERT",
        "prompts": {},
        "query_prefix": "[unused0]",
        "document_prefix": "[MASK]",
        "query_length": 14,
        "document_length": 24,
        "attend_to_expansion_tokens": attend,
        "do_query_expansion": expansion,
        "skiplist_words": [".", ",", "-"],
        "similarity_fn_name": "MaxSim",
    }
    (place / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return place
