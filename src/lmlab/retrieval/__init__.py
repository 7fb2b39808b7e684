"""Dense and lexical retrieval: encoders, collections of documents and queries, stored vectors, exact search, BM25,
fusion, and metrics equal to trec_eval's.

    encoder, data = load_encoder("minilm"), load_dataset("data/scifact", split="test")
    store = EmbeddingStore.build("cache/scifact", encoder, data.corpus.ids, data.corpus.texts)
    index = ExactIndex(data.corpus.ids, store.chunks())
    hits = index.topk(encoder.encode_text(data.queries.texts, "query"), k=100)
    print(evaluate_run(hits.run(data.queries.ids, data.corpus.ids), data.qrels).means["nDCG@10"])
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
