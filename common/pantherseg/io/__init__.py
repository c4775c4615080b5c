"""Reading and writing volumes: one reader for each format, in an ordered list that can be extended."""

from pantherseg.io.reader import (
    READERS,
    Reader,
    case_name,
    find_sources,
    log_events,
    mask_name,
    read_image,
    read_labels,
    register_reader,
    write_volume,
)

__all__ = [
    "READERS",
    "Reader",
    "case_name",
    "find_sources",
    "log_events",
    "mask_name",
    "read_image",
    "read_labels",
    "register_reader",
    "write_volume",
]
