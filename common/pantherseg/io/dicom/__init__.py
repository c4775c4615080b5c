"""DICOM as input: files are recognised, series found, one chosen, and its slices read as a volume.

Needs the extra `dicom` (pydicom); without it, DICOM is recognised and refused with a line that says so.
"""
