"""One root for many digests: it follows the names and digests, and nothing else."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from storage.merkle import merkle_root

DIGESTS = st.integers(0, 2**64).map(lambda number: hashlib.sha256(str(number).encode()).hexdigest())
LEAVES = st.dictionaries(st.text(st.characters(codec="ascii", exclude_characters="="), min_size=1), DIGESTS, min_size=1)


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def test_three_leaves_by_hand() -> None:
    a, b, c = (sha(b"\x00" + f"{name}={name * 2}".encode()) for name in "abc")
    expected = sha(b"\x01" + sha(b"\x01" + a + b) + c)
    assert merkle_root({"c": "cc", "a": "aa", "b": "bb"}) == expected.hex()
    assert merkle_root({"a": "aa"}) == a.hex()
    assert merkle_root({}) == sha(b"").hex()


@given(LEAVES, st.data())
def test_any_other_leaf_gives_another_root_and_the_order_none(leaves: dict[str, str], data: st.DataObject) -> None:
    root = merkle_root(leaves)
    assert merkle_root(dict(reversed(leaves.items()))) == root
    name = data.draw(st.sampled_from(sorted(leaves)))
    assert merkle_root({**leaves, name: sha(leaves[name].encode()).hex()}) != root
    assert merkle_root({other: value for other, value in leaves.items() if other != name}) != root
