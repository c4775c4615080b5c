"""Names of files and folders that name the patient, in whatever spelling."""

from __future__ import annotations

import unicodedata

import pytest
from pydicom import Dataset
from pydicom.config import disable_value_validation

from dicom_files import header
from pantherseg.io.dicom.naming import identifies


def patient(**tags: object) -> Dataset:
    nobody = dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber"), "")
    with disable_value_validation():
        return header(**{**nobody, **tags})


def other_number(number: str) -> list[Dataset]:
    item = Dataset()
    item.PatientID = number
    return [item]


FOUND = [
    ({"PatientName": "Müller^Zoë"}, unicodedata.normalize("NFD", "mri müller")),
    ({"PatientName": unicodedata.normalize("NFD", "Müller^Zoë")}, "mri müller"),
    ({"PatientName": "Müller^Zoë"}, "MUELLER"),
    ({"PatientName": "Mueller^Zoe"}, "Müller"),
    ({"PatientName": "Müller^Zoë"}, "scan_zoe"),
    ({"PatientName": "Weiß^Jørgen"}, "weiss"),
    ({"PatientName": "Weiß^Jørgen"}, "joergen"),
    ({"PatientName": "Łuczak^Ewa"}, "luczak 2"),
    ({"PatientName": "Li^Bo"}, "BO_LI"),
    ({"PatientName": "Li^Bo"}, "LiBo"),
    ({"PatientName": "Li^Bo"}, "scan li"),
    ({"PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"}, "太郎さん"),
    ({"PatientName": "=洪^吉"}, "洪吉"),
    ({"PatientName": "\uff2d\uff35\uff33\uff34\uff25\uff32^A"}, "muster"),
    ({"OtherPatientNames": ["Alias^A", "Mädchen^M"]}, "maedchen"),
    ({"PatientBirthName": "Geborene"}, "geborene"),
    ({"OtherPatientIDsSequence": other_number("XY-4711")}, "xy4711"),
    ({"PatientID": "12-34-56"}, "export 123456"),
    ({"AccessionNumber": "ACC0815"}, "acc0815_t1"),
    *(
        ({"PatientBirthDate": "19430226"}, f"MR {date} tra")
        for date in ("19430226", "1943-02-26", "26.02.1943", "26.2.43", "02_26_1943", "430226", "260243", "26 Feb 1943")
    ),
    ({"PatientBirthDate": "19430226"}, "Feb-26-1943"),
    ({"PatientBirthDate": "19430326"}, "26. März 1943"),
    ({"PatientBirthDate": "1943.02.26"}, "19430226"),
]
NOT_FOUND = [
    ({"PatientName": "Li^Bo", "PatientID": "7"}, "liver_body_t1"),
    ({"PatientName": "Anonymous^A"}, "scan a"),
    ({"PatientID": "07"}, "scan07"),
    ({"PatientBirthDate": "19430226"}, "scan of 1943"),
    ({"PatientBirthDate": "19430226"}, "1.2.826.0.1.3680043.2.26"),
    ({"PatientBirthDate": "19010203"}, "series 1 2 3"),
    ({"PatientBirthDate": "unknown 1"}, "scan"),
    ({"PatientBirthDate": "19430226"}, f"1943 {'2' * 5000} 26 𐄇"),
    ({}, "scan"),
]


@pytest.mark.parametrize(("tags", "name"), FOUND)
def test_finds_the_patient_in_any_spelling(tags: dict[str, object], name: str) -> None:
    assert identifies(name, patient(**tags))


@pytest.mark.parametrize(("tags", "name"), NOT_FOUND)
def test_takes_no_other_name_for_the_patients(tags: dict[str, object], name: str) -> None:
    assert not identifies(name, patient(**tags))
