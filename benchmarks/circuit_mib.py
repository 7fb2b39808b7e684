"""Our curves, areas and scores beside the harness of the Mechanistic Interpretability Benchmark (MIB) itself.

    git clone https://github.com/hannamw/EAP-IG
    git clone https://github.com/hannamw/MIB-circuit-track
    pip install 'transformer-lens<4' einops
    export PYTHONPATH=EAP-IG/src:MIB-circuit-track
    python benchmarks/circuit_mib.py --file MIB-circuit-track/circuits/ioi-eap-ig.json

A GPT-2 of random weights in fp64, on random prompts with answers. Scores by EAP and EAP-IG, which each side computes
for itself, are compared; ours go over as JSON and as tensors, and both sides measure the circuits of the ten sizes of
the benchmark, by signed and by absolute scores. Of a file of the benchmark the circuits of these sizes are compared
edge by edge.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def _models(layers: int, heads: int, seed: int) -> tuple[Any, Any]:
    """The same network on both sides."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    from lmlab.models import ModelConfig, Transformer

    shape: dict[str, Any] = {"vocab_size": 97, "num_layers": layers, "d_model": 4 * heads, "num_heads": heads}
    gpt2 = {"norm": "layernorm", "positions": "learned", "activation": "gelu_tanh", "gated": False, "norm_bias": True}
    biases = {"qkv_bias": True, "attention_output_bias": True, "ffn_bias": True, "tie_embeddings": False}
    ours = Transformer(ModelConfig(**shape, **gpt2, **biases, max_seq_len=16)).initialize(seed).double().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.15)
    sizes = {"n_layers": layers, "d_model": 4 * heads, "n_heads": heads, "d_head": 4, "d_mlp": ours.config.d_ff}
    more = {"n_ctx": 16, "d_vocab": 97, "act_fn": "gelu_new", "normalization_type": "LN", "dtype": torch.float64}
    theirs = HookedTransformer(HookedTransformerConfig(**sizes, **more, device="cpu", eps=ours.config.norm_eps))
    for setting in ("attn_result", "split_qkv_input", "hook_mlp_in"):
        getattr(theirs, f"set_use_{setting}")(True)
    own = ours.state_dict()
    found: dict[str, torch.Tensor] = {
        "embed.W_E": own["embedding.weight"],
        "pos_embed.W_pos": own["position_embedding.weight"],
        "unembed.W_U": own["head.weight"].T,
        "unembed.b_U": torch.zeros(97, dtype=torch.float64),
        "ln_final.w": own["final_norm.weight"],
        "ln_final.b": own["final_norm.bias"],
    }
    for layer in range(layers):
        at = f"blocks.{layer}."  # on both sides
        for norm, name in (("ln1", "attention_norm"), ("ln2", "ffn_norm")):
            found |= {f"{at}{norm}.w": own[f"{at}{name}.weight"], f"{at}{norm}.b": own[f"{at}{name}.bias"]}
        for part, name in (("Q", "query"), ("K", "key"), ("V", "value")):
            found[f"{at}attn.W_{part}"] = own[f"{at}attention.{name}.weight"].T.unflatten(1, (heads, 4)).transpose(0, 1)
            found[f"{at}attn.b_{part}"] = own[f"{at}attention.{name}.bias"].view(heads, 4)
        found[f"{at}attn.W_O"] = own[f"{at}attention.output.weight"].T.unflatten(0, (heads, 4))
        found[f"{at}attn.b_O"] = own[f"{at}attention.output.bias"]
        for part, name in (("in", "up"), ("out", "down")):
            found[f"{at}mlp.W_{part}"] = own[f"{at}ffn.{name}.weight"].T
            found[f"{at}mlp.b_{part}"] = own[f"{at}ffn.{name}.bias"]
    missing = theirs.load_state_dict({name: each.contiguous() for name, each in found.items()}, strict=False)
    assert all(name.split(".")[-1] in ("mask", "IGNORE") for name in missing.missing_keys), missing
    return ours, theirs


@contextlib.contextmanager
def _quietly_without_a_gpu() -> Iterator[None]:
    """The harness makes its tables on a GPU whatever it is told, and shows its progress."""
    zeros = torch.zeros

    def here(*sizes: Any, device: Any = None, **named: Any) -> torch.Tensor:
        return zeros(*sizes, device=None if device == "cuda" else device, **named)

    torch.zeros = here  # type: ignore[assignment]
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        torch.zeros = zeros


def _loader(examples: Any, size: int) -> list[Any]:
    """Their batches: clean and corrupted prompts, and pairs of right and wrong tokens."""
    pairs = torch.stack((examples.answers, examples.distractors), 1)
    parts = [each.split(size) for each in (examples.clean, examples.corrupted, pairs)]
    return list(zip(*parts, strict=True))


def _difference(logits: torch.Tensor, _: Any, lengths: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    last = logits[torch.arange(len(labels)), lengths - 1]
    return last.gather(1, labels[:, :1])[:, 0] - last.gather(1, labels[:, 1:])[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="a graph of the benchmark, JSON: whether its circuits are ours")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--examples", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import eap.attribute
    import eap.evaluate
    import MIB_circuit_track.evaluation
    from eap.graph import Graph
    from MIB_circuit_track.evaluation import evaluate_area_under_curve

    from lmlab.methods.edge_pruning import (
        Circuit,
        CircuitGraph,
        Counterfactuals,
        Ends,
        GraphOptions,
        MaskedModel,
        areas,
        attribute,
        clean,
        curve,
        make_examples,
        top_edges,
    )
    from lmlab.methods.edge_pruning.graph.formats import read_eap_ig, their_edges, write_eap_ig
    from lmlab.methods.edge_pruning.measures import FRACTIONS
    from lmlab.models import ModelConfig

    torch.set_num_threads(1)

    def as_they_are(model: Any, inputs: torch.Tensor, max_length: Any = None) -> tuple[Any, ...]:
        # prompts are tokens here: there is no tokenizer
        return inputs, torch.ones_like(inputs), torch.full((len(inputs),), inputs.shape[1]), inputs.shape[1]

    def evaluated(*each: Any, optimal_ablation_path: Any = None, **named: Any) -> torch.Tensor:
        # newer versions of EAP-IG do not know the option that the harness gives
        return eap.evaluate.evaluate_graph(*each, **named)

    MIB_circuit_track.evaluation.evaluate_graph = evaluated
    eap.evaluate.tokenize_plus = eap.attribute.tokenize_plus = as_they_are
    if arguments.file is not None:
        given = Graph.from_json(str(arguments.file))
        shape = {"vocab_size": 97, "num_layers": given.cfg["n_layers"], "num_heads": given.cfg["n_heads"]}
        learned = {"positions": "learned", "d_model": given.cfg["d_model"], "norm": "layernorm", "gated": False}
        whole_graph = CircuitGraph(ModelConfig(**shape, **learned), GraphOptions(join_embeddings=True))
        _, scores_E = read_eap_ig(arguments.file, whole_graph)
        names = [each[0] for each in their_edges(whole_graph)]
        print(f"{arguments.file.name}: {whole_graph.num_edges:,} edges, theirs {len(given.edges):,}")
        for absolute in (True, False):
            rank_E, same = scores_E.abs() if absolute else scores_E, []
            for fraction in FRACTIONS:
                kept_E = torch.zeros(len(rank_E), dtype=torch.bool)
                kept_E[rank_E.argsort(descending=True, stable=True)[: int(fraction * len(rank_E))]] = True
                own = set(itertools.compress(names, clean(whole_graph, kept_E).tolist()))
                given.apply_topn(int(fraction * len(given.edges)), absolute)
                theirs = given.in_graph
                places = torch.nonzero(theirs).tolist()
                sources = ["input", *(name for name in given.nodes if name not in ("input", "logits"))]
                targets = given.get_dst_nodes()
                same.append(own == {f"{sources[a]}->{targets[b]}" for a, b in places})
            how = "absolute" if absolute else "signed"
            print(f"  by {how} scores the circuits of {sum(same)} of {len(same)} sizes are the same", flush=True)
    ours, theirs = _models(arguments.layers, arguments.heads, arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    size = (2, arguments.examples, arguments.tokens)
    clean_, corrupted = torch.randint(0, 97, size, generator=generator).tolist()
    answers, wrong = torch.randint(0, 97, (2, arguments.examples), generator=generator).tolist()
    examples = make_examples(clean_, corrupted, [[arguments.tokens - 1]] * arguments.examples, answers, wrong)
    graph = CircuitGraph(ours.config, GraphOptions(join_embeddings=True))
    task = Counterfactuals(MaskedModel(ours, graph), examples, batch_size=3)
    ends, batches = Ends.of(task), _loader(examples, 3)
    names = [each[0] for each in their_edges(graph)]
    whole = max(
        float((ours(each).logits_BTV - theirs(each)).detach().abs().max())
        for each in (examples.clean, examples.corrupted)
    )
    print(f"{graph.num_edges:,} edges; logits of the two networks differ by at most {whole:.1e}")
    print("| scores | largest difference of a score, of the largest |\n|---|---|")
    sides = {}
    for name, method in (("eap", "EAP"), ("eap-ig", "EAP-IG-inputs")):
        scores_E, found = attribute(task, name), Graph.from_model(theirs)
        with _quietly_without_a_gpu():
            eap.attribute.attribute(
                theirs,
                found,
                batches,
                lambda *each: -_difference(*each).mean(),
                method,
                intervention="patching",
                ig_steps=5,
                quiet=True,
            )
        their_E = torch.tensor([float(found.edges[each].score) for each in names], dtype=torch.float64)
        scale = float((scores_E * their_E).sum() / their_E.square().sum())  # theirs are means over batches, summed
        gap = float((scores_E - scale * their_E).abs().max() / scores_E.abs().max())
        print(f"| {name} | {gap:.1e} (ours are {scale:.3g} times theirs) |")
        sides[name] = scores_E
    print("| scores, by | CPR, ours and theirs | CMD | CPR over logs | CMD over logs | edges | largest difference |")
    print("|" + "---|" * 7)
    with tempfile.TemporaryDirectory() as folder:
        for (name, scores_E), absolute in itertools.product(sides.items(), (True, False)):
            # our scores, handed over as a file of theirs
            path = Path(folder) / f"{name}.{'pt' if absolute else 'json'}"
            write_eap_ig(Circuit(graph, scores_E > 0, "interchange", scores_E), path)
            handed = Graph.from_pt(str(path)) if absolute else Graph.from_json(str(path))
            rank_E = scores_E.abs() if absolute else scores_E
            rows = curve(task, rank_E, ends)
            found, width = areas(rows), torch.tensor(1000.0).log()
            with _quietly_without_a_gpu():
                counts, cpr, cmd, _, each = evaluate_area_under_curve(
                    theirs, handed, batches, _difference, quiet=True, absolute=absolute
                )
                _, log_cpr, log_cmd, _, _ = evaluate_area_under_curve(
                    theirs, handed, batches, _difference, quiet=True, absolute=absolute, log_scale=True
                )
            own = [int(top_edges(task, rank_E, int(row["fraction"] * graph.num_edges)).sum()) for row in rows]
            gap = max(abs(row["faithfulness"] - other) for row, other in zip(rows, each, strict=True))
            pairs = (("cpr", cpr), ("cmd", cmd), ("cpr_log", log_cpr / width), ("cmd_log", log_cmd / width))
            cells = " | ".join(f"{found[key]:.6f}, {float(value):.6f}" for key, value in pairs)
            same = "equal" if own == [int(count) for count in counts] else f"{own}, {counts}"
            print(f"| {name}, {'absolute' if absolute else 'signed'} | {cells} | {same} | {gap:.1e} |", flush=True)


if __name__ == "__main__":
    main()
