"""Does a file have the checksums that a server states: MD5 and CRC-32C."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

BLOCK_BYTES = 4 << 20


def read_stated_checksums(headers) -> dict[str, str]:
    """Base64 checksums by algorithm (`md5`, `crc32c`) from `x-goog-hash` and `Content-MD5`."""
    stated = {}
    for value in headers.get_all("x-goog-hash") or []:
        for pair in value.split(","):
            algorithm, separator, checksum = pair.strip().partition("=")
            if separator and algorithm in ("md5", "crc32c"):
                stated[algorithm] = checksum
    if headers.get("Content-MD5"):
        stated.setdefault("md5", headers["Content-MD5"].strip())
    return stated


def find_mismatch(path: Path, stated: Mapping[str, str]) -> str | None:
    """Say how the file differs from the checksums that the server stated; `None` if it does not."""
    md5, crc = hashlib.md5(usedforsecurity=False), 0
    with open(path, "rb") as file:
        while stated and (block := file.read(BLOCK_BYTES)):
            md5.update(block)
            if "crc32c" in stated:
                crc = crc32c(block, crc)
    found = {"md5": md5.digest(), "crc32c": crc.to_bytes(4, "big")}
    for algorithm, checksum in stated.items():
        text = base64.b64encode(found[algorithm]).decode()
        if text != checksum:
            return f"the server states the {algorithm} {checksum}, the file has {text}"
    return None


def _make_crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


_CRC_TABLE = _make_crc_table()


def crc32c(data: bytes, crc: int = 0) -> int:
    r"""Compute the CRC-32C (Castagnoli) of `data`, going on from the checksum of what came before it.

    The standard library has none, and a loop over single bytes would take minutes for a large file. A checksum is
    linear in the data: many pieces of one length run side by side, and are joined by moving each over the zeros after
    it.

    Args:
        data (`bytes`): Any length.
        crc (`int`, *optional*, defaults to 0): Checksum of the bytes before.
    Returns:
        `int` in `[0, 2**32)`.
    """
    state = crc ^ 0xFFFFFFFF
    length = 1 << max(0, (len(data).bit_length() - 1) // 2)
    count = len(data) // length
    pieces = np.frombuffer(data, dtype=np.uint8, count=count * length).reshape(count, length)
    states = np.zeros(count, dtype=np.uint32)
    if count:
        states[0] = state
    for column in np.ascontiguousarray(pieces.T):  # one byte of every piece at a time
        states = _CRC_TABLE[(states ^ column) & np.uint32(0xFF)] ^ (states >> np.uint32(8))
    shift = _zero_shift(length)
    while len(states) > 1:
        if len(states) % 2:  # zeros in front of everything change nothing
            states = np.concatenate([np.zeros(1, dtype=np.uint32), states])
        states = _apply_shift(shift, states[0::2]) ^ states[1::2]
        shift = _apply_shift(shift, shift)  # over twice as many zeros
    state = int(states[0]) if count else state
    for byte in data[count * length :]:
        state = int(_CRC_TABLE[(state ^ byte) & 0xFF]) ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def _zero_shift(length: int) -> np.ndarray:
    """What becomes of each of the 32 bits of a state after `length` zero bytes (a power of two)."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    shift = _CRC_TABLE[bits & np.uint32(0xFF)] ^ (bits >> np.uint32(8))
    for _ in range(length.bit_length() - 1):
        shift = _apply_shift(shift, shift)
    return shift


def _apply_shift(shift: np.ndarray, states: np.ndarray) -> np.ndarray:
    moved = np.zeros_like(states)
    for bit in range(32):
        moved ^= np.where(states & np.uint32(1 << bit), shift[bit], np.uint32(0))
    return moved
