"""Results as DICOM objects about the series that a volume was read from, and sending them.

Needs the extra `dicom` (highdicom, pydicom, pynetdicom). Nothing here is imported before a DICOM result is asked for.
"""
