"""Issue-resolving benchmarks from any repository, graded so that nobody can forge a pass (SWE-bench: Jimenez et al.,
ICLR 2024, arXiv 2310.06770).

instances = load_instances("instances.jsonl")
verdict = grade_log(instances[0], Path("test_output.txt").read_text())
print(verdict.resolution, verdict.fail_to_pass.failure)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
