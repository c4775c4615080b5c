"""Reading and writing volumes: one reader for each format, in an ordered list that can be extended."""

from pantherseg.io.reader import (
    READERS,
    Reader,
    case_name,
    find_sources,
    input_name,
    mask_name,
    read_grid,
    read_image,
    read_labels,
    read_volume,
    register_reader,
    source_datasets,
    source_files,
    write_volume,
)

__all__ = [
    "READERS",
    "Reader",
    "case_name",
    "find_sources",
    "input_name",
    "mask_name",
    "read_grid",
    "read_image",
    "read_labels",
    "read_volume",
    "register_reader",
    "source_datasets",
    "source_files",
    "write_volume",
]
