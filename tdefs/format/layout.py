"""What every stored file has in common: its pages, and the header page in front of them. All sizes are bytes."""

from __future__ import annotations

PAGE_SIZE = 8192
HEADER_SIZE = PAGE_SIZE
SECTOR_SIZE = 512


def floor_to(value: int, unit: int) -> int:
    """Return the largest multiple of *unit* that is not above *value*."""
    return value - value % unit


def ceil_to(value: int, unit: int) -> int:
    """Return the smallest multiple of *unit* that is not below *value*."""
    return value + -value % unit


def page_of(offset: int) -> int:
    """Return the number of the page that holds plaintext byte *offset*."""
    return offset // PAGE_SIZE
