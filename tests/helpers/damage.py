"""What disks, power cuts and people do to a file."""

from __future__ import annotations

from random import Random

DAMAGES = ("emptied", "zeroed", "cut", "flipped", "partly zeroed", "spliced", "longer")


def damage(content: bytes, kind: str, choose: Random, *, splice: bytes = b"") -> bytes:
    """Returns a file's content with damage of a kind of `DAMAGES`, never the content itself.

    Args:
        content: Of the file.
        kind: What happens to it.
        choose: Says where.
        splice: Another file's content, a piece of which takes the place of a piece of this one's.
    """
    if not content:
        return b"\0"
    at = choose.randrange(len(content))
    if kind == "emptied":
        return b""
    if kind == "zeroed":
        damaged = bytes(len(content))
    elif kind == "cut":
        damaged = content[:at]
    elif kind == "flipped":
        damaged = content[:at] + bytes([content[at] ^ (1 << choose.randrange(8))]) + content[at + 1 :]
    elif kind == "partly zeroed":
        damaged = content[:at] + bytes(len(content[at : at + 4096])) + content[at + 4096 :]
    elif kind == "spliced":
        damaged = content[:at] + (splice or content[::-1])[at:]
    else:
        damaged = content + choose.randbytes(choose.randrange(1, 200))
    return damaged if damaged != content else content + b"\0"
