"""The list of the attacker's own queries, which an evaluation leaves out."""

import pytest

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.attack.crafted import ATTACKERS, query_digests
from lmlab.methods.corpus_poisoning.measure.run import attackers


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"\x86" + data[1:], lambda data: data + b"x"])
def test_a_damaged_list_would_let_them_count_and_is_refused(tmp_path, damage):
    digests = query_digests(["what?", "who?"])
    path = tmp_path / ATTACKERS
    path.write_text("".join(f"{each}\n" for each in digests))
    assert attackers(None, tmp_path) == set(digests)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=ATTACKERS):
        attackers(None, tmp_path)
