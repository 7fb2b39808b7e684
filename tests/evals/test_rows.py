"""Rows on the disk: parts of several processes, what a kill leaves, and shares that do not depend on what others have
done.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lmlab.errors import UserError
from lmlab.evals import read_rows, rows
from lmlab.evals.rows import RowFile
from lmlab.evals.run import collect_rows


@dataclass
class Item:
    id: str


ITEMS = [Item(str(number)) for number in range(10)]


def test_workers_take_the_same_shares_whenever_they_begin(tmp_path):
    path = tmp_path / "rows.jsonl"
    other = RowFile(path, 0)
    for item in ITEMS[0:6:2]:  # the first worker is already half done
        other.append({"id": item.id})
    seen = []
    collect_rows(
        ITEMS, lambda waiting: (seen.append(item.id) or {"id": item.id} for item in waiting), path, "rows", (1, 2)
    )
    assert seen == [item.id for item in ITEMS[1::2]]


def test_parts_become_one_file_in_the_order_of_the_items(tmp_path):
    path = tmp_path / "rows.jsonl"
    for part in (1, 0):
        file = RowFile(path, part)
        for item in ITEMS[part::2]:
            file.append({"id": item.id, "part": part})
        file.close()
    rows = RowFile(path).finish(item.id for item in ITEMS)
    assert [row["id"] for row in rows] == [item.id for item in ITEMS]
    assert list(tmp_path.iterdir()) == [path]


def test_rows_that_a_finished_file_lacks_are_added_to_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "0"}\n')
    rows = collect_rows(ITEMS[:3], lambda waiting: ({"id": item.id} for item in waiting), path, "rows")
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert [row["id"] for row in read_rows([path])] == ["0", "1", "2"]


@pytest.mark.parametrize("line", ["garbage", "[1]", '{"gold": 1}'])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    (tmp_path / "rows.part-0.jsonl").write_text(f'{{"id": "0"}}\n{line}\n{{"id": "1"}}\n')
    with pytest.raises(UserError, match=r"rows\.part-0\.jsonl', line 2 is not a row"):
        RowFile(tmp_path / "rows.jsonl").done()


def test_a_part_is_written_by_one_process_at_a_time(tmp_path):
    path = tmp_path / "rows.jsonl"
    first, second = RowFile(path), RowFile(path)
    first.append({"id": "0"})
    with pytest.raises(UserError, match="Another process is writing"):
        second.append({"id": "1"})
    RowFile(path, 1).append({"id": "2"})  # another part is free
    first.close()
    second.append({"id": "1"})
    second.close()
    assert [row["id"] for row in read_rows([tmp_path / "rows.part-0.jsonl"])] == ["0", "1"]


def _finish_before(monkeypatch, step, file):
    """Another process, which has the row 0, finishes before the next call of a step."""
    real = getattr(rows, step)

    def meanwhile(*arguments):
        monkeypatch.setattr(rows, step, real)
        file.finish(["0"])
        return real(*arguments)

    monkeypatch.setattr(rows, step, meanwhile)


def test_nothing_is_lost_where_another_process_finishes_between_opening_and_locking(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    first, second = RowFile(path), RowFile(path)
    first.append({"id": "0"})

    _finish_before(monkeypatch, "locked", first)
    second.append({"id": "1"})
    assert set(RowFile(path).done()) == {"0", "1"}
    with pytest.raises(UserError, match="Another process is writing"):
        first.append({"id": "2"})
    assert [row["id"] for row in second.finish(["0", "1"])] == ["0", "1"] and list(tmp_path.iterdir()) == [path]


def test_rows_are_read_while_another_process_finishes(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    first = RowFile(path)
    first.append({"id": "0"})

    _finish_before(monkeypatch, "read_rows", first)
    assert set(RowFile(path).done()) == {"0"}
