"""One digest for many: the root of a Merkle tree over named digests, as in RFC 6962 (leaves and nodes kept apart)."""

import hashlib
from collections.abc import Mapping


def merkle_root(leaves: Mapping[str, str]) -> str:
    """Return the root over name -> sha256 (hex), in order of the names; an odd node rises as it is.

    Names are part of the leaves: two artifacts that change places change the root. No leaves: the sha256 of nothing.
    """
    level = [hashlib.sha256(b"\x00" + f"{name}={leaves[name]}".encode()).digest() for name in sorted(leaves)]
    if not level:
        return hashlib.sha256().hexdigest()
    while len(level) > 1:
        pairs = [level[place : place + 2] for place in range(0, len(level), 2)]
        level = [hashlib.sha256(b"\x01" + b"".join(pair)).digest() if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0].hex()
