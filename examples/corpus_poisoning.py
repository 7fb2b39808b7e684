"""Corpus poisoning (Zhong et al. 2023): how few passages mislead a retriever of your own, and whether a gate stops
them.

Everything that is crafted is an overlay beside the corpus, marked and with a list of ids to remove.

python examples/corpus_poisoning.py DATA SENTINELS [ENCODER]
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lmlab.methods.corpus_poisoning import (
    AdmissionGate,
    CraftConfig,
    DetectorContext,
    EncoderSpec,
    Passages,
    craft,
    evaluate_attack,
    passage_scores,
)
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.retrieval import read_queries

if len(sys.argv) < 3:
    sys.exit(__doc__)
data, sentinels, encoder = sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "minilm"
with TemporaryDirectory() as folder:
    retriever = Retriever(EncoderSpec(encoder), Path(folder) / "vectors")
    train, test = (Target.load(retriever, data, split) for split in ("train", "test"))
    length = min(50, retriever.encoder.max_length - 4)
    config = CraftConfig(k=3, length=length, evaluations=400, candidates=20)
    attack = craft(retriever.spec, train.data.queries.texts, train.queries(), config, Path(folder) / "attack")

    texts = list(read_queries(sentinels).texts)
    context = DetectorContext(retriever.encoder, test.index, texts, retriever.encoder.encode_text(texts, "query"))
    documents = Passages(test.data.corpus.texts, test.documents)
    odd, even = range(1, len(documents), 2), range(0, len(documents), 2)
    gate = AdmissionGate.fit(["hubness", "similarity"], context, documents.part(odd), documents.part(even), rate=0.05)

    passages = Passages.of(attack.passages.texts, retriever.encoder)
    admitted = [row for row, verdict in enumerate(gate.check_all(passages)) if verdict.admit]
    hits = test.hits(20)
    for name, kept in (("undefended", list(range(len(passages)))), ("behind the gate", admitted)):
        scores = passage_scores(test.queries(), passages.vectors[kept])
        report = evaluate_attack(scores, hits, len(test.data.corpus), [5, 20])
        rates = ", ".join(f"ASR@{k} {100 * value:.1f} %" for k, value in report.asr.items())
        print(f"{name}: {len(kept)} passages, {rates}")
