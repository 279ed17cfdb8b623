"""Seeds of what is drawn for a sample: functions of a text, so that draws depend on no order and no worker."""

import hashlib


def seed_from(text: str) -> int:
    """64 bits that the text decides, the same in every process and on every machine, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


__all__ = ["seed_from"]
