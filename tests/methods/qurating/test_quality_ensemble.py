"""Several raters of one corpus: mean, disagreement, and a choice by their lower bound."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.errors import UserError
from lmlab.methods.qurating import select
from lmlab.methods.qurating.analysis.ensemble import write_ensemble

COUNT = 400


@pytest.fixture
def raters(tmp_path: Path) -> list[str]:
    """Three raters with scales of their own, in files that are cut elsewhere; they disagree on every other row."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, COUNT)
    folders = []
    for number in range(3):
        noise = rng.normal(0, 1, COUNT) * np.where(np.arange(COUNT) % 2, 1.5, 0.1)
        rating = (truth + noise) * 10.0**number + 1000 * number
        place = tmp_path / f"rated-{number}"
        place.mkdir()
        ends = np.linspace(0, COUNT, number + 2).astype(int)
        for part, (start, end) in enumerate(pairwise(ends)):
            columns = {"id": [f"d{n}" for n in range(start, end)], "r_average": rating[start:end].tolist()}
            if number == 1 and start == 0:
                columns["r_average"][3] = None
            pq.write_table(pa.table(columns | {"length": [1] * (end - start)}), place / f"{part}.parquet")
        folders.append(str(place))
    return folders


def table(place: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(map(pq.read_table, sorted(place.glob("*.parquet")))).to_pylist()


def test_mean_and_deviation_are_of_standardized_ratings(raters: list[str], tmp_path: Path, lmlab: Any) -> None:
    out = tmp_path / "out"
    done = lmlab("quality", "ensemble", *raters, "--out", out)
    assert done.code == 0 and "400 rows by 3 raters" in done.out and "1 row lacks a rating" in done.out, done.err
    rows = table(out)
    given = np.array([[row["r_average"] for row in table(Path(place))] for place in raters], float)
    kept = np.isfinite(given).all(0)
    z = (given - given[:, kept].mean(1)[:, None]) / given[:, kept].std(1)[:, None]
    scale = z.mean(0)[kept].std()
    found = np.array([[row["r_average"], row["r_average_deviation"]] for row in rows], float)
    assert not np.isfinite(found[3]).any() and np.isfinite(found[kept]).all()
    np.testing.assert_allclose(found[kept, 0], z.mean(0)[kept] / scale, atol=1e-9)
    np.testing.assert_allclose(found[kept, 1], z.std(0, ddof=1)[kept] / scale, atol=1e-9)
    expected = np.corrcoef(given[:, kept])[np.triu_indices(3, 1)].mean()
    assert write_ensemble(raters, out).agreement["r_average"] == pytest.approx(expected)


def test_a_lower_bound_takes_what_the_raters_agree_on(raters: list[str], tmp_path: Path) -> None:
    write_ensemble(raters, tmp_path / "out")
    ask: dict[str, Any] = {"metric": "r_average", "mode": "top_k", "tokens": 60, "id": "id", "drop_nonfinite": True}
    plain = select(str(tmp_path / "out"), **ask).ids
    bound = select(str(tmp_path / "out"), uncertainty="r_average_deviation", penalty=1.0, **ask).ids
    shaky = [sum(int(str(id)[1:]) % 2 for id in ids) for ids in (plain, bound)]
    assert shaky[1] < 0.7 * shaky[0]


def test_raters_of_other_rows_are_refused(raters: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two"):
        write_ensemble(raters[:1], tmp_path / "out")
    with pytest.raises(UserError, match="no column 'x_average'"):
        write_ensemble(raters, tmp_path / "out", ["x_average"])
    rows = table(Path(raters[0]))
    (tmp_path / "short").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:-1]), tmp_path / "short" / "a.parquet")
    with pytest.raises(UserError, match="has 'None' where .* has 'd399'"):
        write_ensemble([raters[0], str(tmp_path / "short")], tmp_path / "out")
    (tmp_path / "none").mkdir()
    nothing = pa.Table.from_pylist(rows).to_pydict() | {"r_average": pa.nulls(len(rows), pa.float64())}
    pq.write_table(pa.table(nothing), tmp_path / "none" / "a.parquet")
    with pytest.raises(UserError, match="No row has a rating in 'r_average' by each rater"):
        write_ensemble([raters[0], str(tmp_path / "none")], tmp_path / "out")
    with pytest.raises(UserError, match="more rows"):
        write_ensemble([str(tmp_path / "short"), raters[0]], tmp_path / "out")
    assert not (tmp_path / "out").exists()
