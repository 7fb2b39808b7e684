"""Compile RASP programs by Tracr to folders that `lmlab circuits find --model` reads: their circuits are known.

    git clone https://github.com/google-deepmind/tracr
    git clone https://github.com/FlyingPumba/circuits-benchmark
    python -m venv jax && jax/bin/pip install jax dm-haiku networkx einops chex
    PYTHONPATH=tracr jax/bin/python benchmarks/tracr_compile.py --cases circuits-benchmark --out programs

It needs neither lmlab nor PyTorch, only JAX and the compiler. The programs are those of InterpBench (129 cases, MIT);
what cannot be compiled in a minute of processor time, or is larger than --most-edges, is listed with the reason. The
compiled weights are exact, not trained: this is Tracr, not the SIIT models of InterpBench.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import signal
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

_MOST_CASES = 256


def _stub(cases: Path) -> None:
    """Let the cases be imported without the training packages of their repository: only their programs are wanted."""
    sys.path.insert(0, str(cases))

    class Case:
        def get_max_seq_len(self) -> int:
            return 10

    class _Anything(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    for name, members in {
        "circuits_benchmark.benchmark.tracr_benchmark_case": {"TracrBenchmarkCase": Case},
        "circuits_benchmark.transformers": {},
        "circuits_benchmark.transformers.hooked_tracr_transformer": {},
        "torch": {},
    }.items():
        module = _Anything(name)
        module.__path__ = []  # type: ignore[attr-defined]
        module.__dict__.update(members)
        sys.modules[name] = module


def _compile(case: Any) -> tuple[Any, np.ndarray]:
    """The assembled model, and the matrix of its outputs, [width, outputs]."""
    import haiku
    from tracr.compiler import assemble, compiling
    from tracr.craft import vectorspace_fns

    kept: list[np.ndarray] = []
    plain = assemble._make_embedding_modules

    def recording(residual_space: Any, tokens_space: Any, indices_space: Any, output_space: Any) -> Any:
        kept.append(np.asarray(vectorspace_fns.project(residual_space, output_space).matrix))
        return plain(residual_space, tokens_space, indices_space, output_space)

    # the compiler draws weights only to put its own in their place, and JAX compiles the draw anew for each shape: half
    # of the time of a program
    drawing = haiku.initializers.TruncatedNormal.__call__
    haiku.initializers.TruncatedNormal.__call__ = lambda self, shape, dtype: np.zeros(shape, dtype)
    assemble._make_embedding_modules = recording
    try:
        model = compiling.compile_rasp_to_model(
            case.get_program(), vocab=case.get_vocab(), max_seq_len=case.get_max_seq_len(), compiler_bos="BOS"
        )
    finally:
        assemble._make_embedding_modules = plain
        haiku.initializers.TruncatedNormal.__call__ = drawing
    return model, kept[-1]


def _weights(model: Any, unembed: np.ndarray) -> dict[str, np.ndarray]:
    config, params = model.model_config, model.params
    heads, size = config.num_heads, config.key_size
    found = {
        "token_embed": params["token_embed"]["embeddings"],
        "pos_embed": params["pos_embed"]["embeddings"],
        "unembed": unembed,
    }
    width = found["token_embed"].shape[1]
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}.", f"transformer/layer_{layer}/"
        for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
            each = params[f"{theirs}attn/{name}"]
            found[f"{ours}{part}_w"] = np.asarray(each["w"]).reshape(width, heads, size).transpose(1, 0, 2)
            found[f"{ours}{part}_b"] = np.asarray(each["b"]).reshape(heads, size)
        found[f"{ours}o_w"] = np.asarray(params[f"{theirs}attn/linear"]["w"]).reshape(heads, size, width)
        found[f"{ours}o_b"] = params[f"{theirs}attn/linear"]["b"]
        for part, name in (("mlp_in", "linear_1"), ("mlp_out", "linear_2")):
            found[f"{ours}{part}_w"], found[f"{ours}{part}_b"] = (params[f"{theirs}mlp/{name}"][x] for x in "wb")
    return {name: np.asarray(each, np.float32) for name, each in found.items()}


def _edges(layers: int, heads: int) -> int:
    writers, total = 2, 0
    for _ in range(layers):
        total += 3 * heads * writers + writers + heads
        writers += heads + 1
    return total + writers


def _cases(case: Any, encode: Any, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Different inputs, and the same with every token replaced by another, begin token first."""
    draws, vocab = random.Random(seed), sorted(case.get_vocab(), key=str)
    if len(vocab) ** length <= _MOST_CASES:
        import itertools

        rows = [list(each) for each in itertools.product(vocab, repeat=length)]
    else:
        seen: dict[tuple[Any, ...], None] = {}
        while len(seen) < _MOST_CASES:
            seen[tuple(draws.choice(vocab) for _ in range(length))] = None
        rows = [list(each) for each in seen]
    other = [[draws.choice([each for each in vocab if each != token]) for token in row] for row in rows]
    return tuple(np.asarray([encode(["BOS", *row]) for row in each]) for each in (rows, other))


def _save(name: str, case: Any, out: Path, most_edges: int) -> str:
    model, unembed = _compile(case)
    config = model.model_config
    edges = _edges(config.num_layers, config.num_heads)
    if edges > most_edges:
        return f"left out: {edges:,} edges"
    length = min(case.get_max_seq_len(), len(model.params["pos_embed"]["embeddings"]) - 1)
    clean, corrupted = _cases(case, model.input_encoder.encode, length, 0)
    encoder = model.output_encoder
    numerical = encoder is None or type(encoder).__name__ == "NumericalEncoder"
    weights = _weights(model, unembed)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "weights.npz", **weights)
    # what the compiler's own network gives, in the compiler's own arithmetic, to check a loader against
    outputs = np.asarray([np.asarray(model.forward(model.params, row[None]).unembedded_output[0]) for row in clean[:8]])
    np.savez_compressed(folder / "cases.npz", input_ids=clean, corrupted_ids=corrupted, unembedded_first8=outputs)
    settings = {
        "program": name,
        "task": case.get_task_description() if hasattr(case, "get_task_description") else "",
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "d_model": weights["token_embed"].shape[1],
        "d_head": config.key_size,
        "d_mlp": config.mlp_hidden_size,
        "activation": "relu",
        "norm": "none",
        "causal": False,
        "output_kind": "numerical" if numerical else "categorical",
        "n_outputs": unembed.shape[1],
        "n_cases": len(clean),
        "n_edges": edges,
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=1))
    return f"{edges:,} edges, {config.num_layers} layers, {config.num_heads} heads, {len(clean)} cases"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="a checkout of circuits-benchmark")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most-edges", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=60, help="of processor time, for each program")
    arguments = parser.parse_args()
    _stub(arguments.cases)

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"not compiled in {arguments.seconds} s of processor time")

    signal.signal(signal.SIGPROF, too_long)  # of the process, so that a busy machine leaves out no more programs
    folder = arguments.cases / "circuits_benchmark" / "benchmark" / "cases"
    names = sorted((path.stem for path in folder.glob("case_*.py")), key=lambda name: (len(name), name))
    written = 0
    for name in names:
        if (arguments.out / name / "config.json").exists():
            written += 1
            continue
        signal.setitimer(signal.ITIMER_PROF, arguments.seconds)
        try:
            module = importlib.import_module(f"circuits_benchmark.benchmark.cases.{name}")
            case = getattr(module, "".join(part.capitalize() for part in name.split("_")))()
            done = _save(name, case, arguments.out, arguments.most_edges)
            written += not done.startswith("left out")
        except Exception as error:
            done = f"left out: {type(error).__name__}: {str(error)[:150]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(f"{name}: {done}", flush=True)
    print(f"{written} programs: {arguments.out}")


if __name__ == "__main__":
    main()
