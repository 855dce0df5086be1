"""What a file is, told by its first bytes."""

from typing import BinaryIO


def demuxer(start: bytes) -> str | None:
    """FFmpeg's name for the kind of container that begins with these 12 bytes; None: it is none."""
    if start[4:8] == b"ftyp":
        return "mov"
    return "matroska" if start[:4] == b"\x1aE\xdf\xa3" else None


def undecodable(start: bytes) -> str | None:
    """The name of a common format that is not decoded, by the first 12 bytes of a file."""
    if start[:2] in (b"\xff\xf1", b"\xff\xf9"):
        return "AAC (ADTS)"
    if start[:4] == b"0&\xb2u":
        return "Windows Media audio"
    if start.startswith(b"#!AMR"):
        return "AMR"
    return None


def tells_mp3_length(source: BinaryIO, start: bytes) -> bool:
    """Whether the first frame of an MP3 tells the length. Else libsndfile cuts the audio at a guessed one.

    Args:
        start: the first bytes, 10 of which hold the length of an ID3v2 tag if there is one (7 bits a byte).
    """
    tag = 0
    if start.startswith(b"ID3") and len(start) >= 10:
        tag = 10 + sum(byte << shift for byte, shift in zip(start[6:10], (21, 14, 7, 0), strict=True))
    source.seek(tag)
    frame = source.read(2048)
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))
