"""CRC-32, the checksum of packed images and of indices: ISA-L's where it is installed, which is faster than zlib's.

Both compute the same number, so what is read does not depend on it; `fastselfie doctor` says which is there.
"""

try:
    from isal.isal_zlib import crc32
except ImportError:  # an extra
    from zlib import crc32

__all__ = ["crc32"]
