"""Picture files that are not what they promise."""

import struct
import zlib


def picture_bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG file of some dozen bytes whose header promises a picture that fills the memory."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
