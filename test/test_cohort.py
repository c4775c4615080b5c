"""Cohorts in one process: manifests, the table, finished cases, cases that fail, status and page."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cohorts import fast_recipe, job_of, kill_and_start_again, small_volume, write_volumes
from conftest import one_line_about, run_python, valid_report
from pantherseg import __version__
from pantherseg.batch import Wanted, run_batch
from pantherseg.cli import main as pantherseg
from pantherseg.cohort.manifest import NAME_BYTES, CohortCase, find_cases, write_manifest
from pantherseg.cohort.page import write_cohort_page
from pantherseg.cohort.ray_crew import Cluster
from pantherseg.cohort.run import run_cohort
from pantherseg.cohort.status import status_of
from pantherseg.cohort.storage import local_source, read_bytes, write_bytes
from pantherseg.cohort.table import MANIFEST, RESULTS, ResultsTable, read_rows
from pantherseg.cohort.worker import Worker
from pantherseg.dicom_results.formats import FORMATS
from pantherseg.errors import InputError, OutputError, PantherSegError
from pantherseg.files import lock_folder
from pantherseg.io import write_volume
from pantherseg.io.digest import sha256_of
from pantherseg.io.probabilities import SUFFIX as PROBABILITIES
from pantherseg.io.reader import VOLUME_SUFFIXES
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.session import Session

GOOD = ("a", "b")
DAMAGED = "damaged"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two good volumes and a damaged one in `in`, and what a run made of them in `out`."""
    folder = tmp_path_factory.mktemp("cohort")
    for seed, name in enumerate(GOOD):
        write_volume(small_volume(seed), folder / "in" / f"{name}.mha")
    whole = (folder / "in" / "a.mha").read_bytes()
    (folder / "in" / f"{DAMAGED}.mha").write_bytes(whole[: len(whole) // 2])
    failed = run_cohort(str(folder / "in"), job_of(folder / "out"))
    assert [row.case for row in failed] == [DAMAGED]
    return folder


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    """A copy of `done` that a test may change."""
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy"


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out" / "cases").iterdir()}


def test_masks_are_those_of_predict(done: Path, tmp_path: Path) -> None:
    session = Session(fast_recipe(1), DEMO_WEIGHTS, device="cpu", many_cases=True)
    run_batch(done / "in", tmp_path, session)
    assert {path.name for path in tmp_path.iterdir()} == set(times(done))
    for name in GOOD:
        assert (tmp_path / f"{name}.mha").read_bytes() == (done / "out" / "cases" / f"{name}.mha").read_bytes()


def test_the_table_says_what_the_reports_say(done: Path) -> None:
    table = pd.read_parquet(done / "out" / RESULTS).set_index("case")
    assert list(table.index) == [*GOOD, DAMAGED]
    for name in GOOD:
        report, row = valid_report(done / "out" / "cases" / f"{name}.json"), table.loc[name]
        assert (row.status, row.error, row.tries) == ("done", "", 1)
        assert row.input == str(done / "in" / f"{name}.mha")
        assert list(row.events) == [event["code"] for event in report["events"]]
        assert row.tumour_ml == report["tumour_ml"]
        assert row.peak_memory_mb == report["peak_memory_mb"]
        assert row.input_sha256 == sha256_of(done / "in" / f"{name}.mha")
        assert row.mask_sha256 == sha256_of(done / "out" / row["mask"])
        assert row.models_sha256 == report["fingerprint"]["models_sha256"]
        assert row.total_seconds >= row.seconds > 0
    damaged = table.loc[DAMAGED]
    assert damaged.status == "failed"
    assert damaged.error.startswith(f"{done / 'in' / 'damaged.mha'}: ")
    assert pd.isna(damaged["mask"])
    assert not (done / "out" / "cases" / "damaged.json").exists()


def test_duckdb_reads_the_table(done: Path) -> None:
    query = f"select status, count(*), sum(len(events)) from '{done / 'out' / RESULTS}' group by status order by status"
    assert duckdb.sql(query).fetchall()[1][:2] == ("failed", 1)


def test_skips_finished_cases_and_tries_failed_ones_again(folder: Path) -> None:
    job = job_of(folder / "out")
    before, rows = times(folder), read_rows(job.output)
    shutil.copy(folder / "in" / "a.mha", folder / "in" / f"{DAMAGED}.mha")
    assert run_cohort(str(folder / "in"), job) == []
    assert {name: time for name, time in times(folder).items() if not name.startswith(DAMAGED)} == before
    after = read_rows(job.output)
    assert (after[DAMAGED].status, after[DAMAGED].error) == ("done", "")
    # The inputs moved, so their rows are new; what was found is the same.
    assert [after[name].mask_sha256 for name in GOOD] == [rows[name].mask_sha256 for name in GOOD]
    assert run_cohort(str(folder / "in"), job) == []
    assert read_rows(job.output) == after


def test_a_changed_case_is_done_again(folder: Path) -> None:
    before = times(folder)
    write_volume(small_volume(9), folder / "in" / "a.mha")
    run_cohort(str(folder / "in"), job_of(folder / "out"))
    changed = {name for name, time in times(folder).items() if before[name] != time}
    assert changed == {"a.mha", "a.json"}
    assert read_rows(str(folder / "out"))["a"].input_sha256 == sha256_of(folder / "in" / "a.mha")


@pytest.mark.fault("cohorts", "a finished archive is damaged", "recorded, and the mask of before is removed")
def test_the_results_of_a_volume_that_no_reader_takes_are_removed(folder: Path) -> None:
    (folder / "in" / "a.mha").rename(folder / "in" / "a.zip")
    (folder / "in" / "a.zip").write_bytes(b"PK\x03\x04")
    (folder / "cases.csv").write_text("case,input\na,in/a.zip\nb,in/b.mha\n")
    (failed,) = run_cohort(str(folder / "cases.csv"), job_of(folder / "out"))
    assert failed.error.endswith("found a zip archive that is damaged or has no DICOM file")
    assert sorted(times(folder)) == ["b.json", "b.mha"]


@pytest.mark.fault("cohorts", "the options do not fit a finished volume", "recorded, and the mask of before is kept")
def test_results_are_kept_where_only_the_options_do_not_fit(folder: Path) -> None:
    before, job = times(folder), job_of(folder / "out")
    wanted = msgspec.structs.replace(job, wanted=Wanted(formats=(".seg.dcm",)))
    failed = run_cohort(str(folder / "in" / "a.mha"), wanted)
    assert [row.error.partition(": ")[2][:17] for row in failed] == ["expected DICOM in"]
    assert times(folder) == before
    assert run_cohort(str(folder / "in" / "a.mha"), job) == []
    assert times(folder) == before


@pytest.mark.fault("cohorts", "a finished volume cannot be fetched from its store", "recorded, its mask is kept")
def test_results_are_kept_where_a_store_does_not_have_the_volume(folder: Path) -> None:
    before, worker = times(folder), Worker(__version__, msgspec.json.encode(job_of(folder / "out")))
    row = worker.run(CohortCase(case="a", input="memory://gone/a.mha")).row
    assert row.error.startswith("memory://gone/a.mha: expected a file or folder that can be read, found ")
    assert times(folder) == before


def test_a_lost_table_is_made_of_the_reports(folder: Path) -> None:
    (folder / "out" / RESULTS).unlink()
    before = times(folder)
    run_cohort(str(folder / "in"), job_of(folder / "out"))
    assert times(folder) == before
    row = read_rows(str(folder / "out"))["a"]
    assert (row.status, row.total_seconds) == ("done", None)


@pytest.mark.slow
@pytest.mark.fault("cohorts", "the command is killed, and started again", "no case lost, and none done twice")
def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    kill_and_start_again(write_volumes(tmp_path / "in", 12), tmp_path)


def test_a_manifest_names_its_cases(folder: Path, tmp_path: Path) -> None:
    """Volumes in folders of patients have one name; paths are relative to the manifest."""
    for name in GOOD:
        (folder / name).mkdir()
        shutil.copy(folder / "in" / f"{name}.mha", folder / name / "t1.mha")
    (folder / "cohort.csv").write_text("\ufeffcase,input\nsecond,b/t1.mha\n001,a/t1.mha\n")
    assert run_cohort(str(folder / "cohort.csv"), job_of(tmp_path / "new")) == []
    assert sorted(path.name for path in (tmp_path / "new" / "cases").iterdir()) == [
        *("001.json", "001.mha", "second.json", "second.mha")
    ]
    mask = (folder / "out" / "cases" / "a.mha").read_bytes()
    assert (tmp_path / "new" / "cases" / "001.mha").read_bytes() == mask


@pytest.mark.parametrize("name", ["cases.csv", "cases.parquet"])
def test_a_folder_or_a_pattern_makes_a_manifest(done: Path, tmp_path: Path, name: str) -> None:
    cases = find_cases(str(done / "in"))
    assert cases == find_cases(str(done / "i*" / "*.mha"))
    assert [case.case for case in cases] == [*GOOD, DAMAGED]
    result = CliRunner().invoke(pantherseg, ["cohort", "manifest", str(done / "in"), str(tmp_path / name)])
    assert result.exit_code == 0
    assert find_cases(str(tmp_path / name)) == cases


def test_a_manifest_may_be_written_to_give_cases_of_one_name_other_names(done: Path, tmp_path: Path) -> None:
    for patient in "ab":
        shutil.copytree(done / "in", tmp_path / patient)
    pattern, manifest = str(tmp_path / "*" / f"{GOOD[0]}.mha"), tmp_path / "cases.csv"
    with pytest.raises(InputError, match=f"expected each case once, found several of {GOOD[0]}; write a manifest"):
        find_cases(pattern)
    assert CliRunner().invoke(pantherseg, ["cohort", "manifest", pattern, str(manifest)]).exit_code == 0
    first, *others = manifest.read_text().splitlines()
    manifest.write_text("\n".join([first, *(f"{number}{line}" for number, line in enumerate(others))]))
    assert [case.case for case in find_cases(str(manifest))] == [f"0{GOOD[0]}", f"1{GOOD[0]}"]


@pytest.mark.fault("cohorts", "a manifest exists that is to be written", "an error, and the manifest as it was")
def test_never_overwrites_a_manifest(done: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("edited")
    result = CliRunner().invoke(pantherseg, ["cohort", "manifest", str(done / "in"), str(tmp_path / "cases.csv")])
    assert result.exit_code == 1
    assert "there is a manifest already, which may have been edited; remove it, or name another" in result.stderr
    assert (tmp_path / "cases.csv").read_text() == "edited"


@pytest.mark.parametrize("name", ["in [1]", "*", "a?", "[", "."])
def test_what_exists_is_not_a_pattern(done: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    shutil.copytree(done / "in", folder, dirs_exist_ok=True)
    assert [case.input for case in find_cases(str(folder))] == [
        *(str(folder / f"{name}.mha") for name in [*GOOD, DAMAGED])
    ]
    assert find_cases(str(folder / "a.mha")) == [CohortCase(case="a", input=str(folder / "a.mha"))]


def test_what_exists_in_a_store_is_not_a_pattern(done: Path) -> None:
    store = "memory://a [1]"
    for name in ("b.mha", "c*/1.dcm", "c*/2/3.dcm", "cd/4.dcm"):
        write_bytes(f"{store}/{name}", name.encode())
    (case,) = find_cases(store)
    assert (case.case, read_bytes(case.input)) == ("b", b"b.mha")
    assert find_cases(f"{store}/b.mha") == [CohortCase(case="b", input=f"{store}/b.mha")]
    with local_source(f"{store}/c*") as copy:
        assert {str(path.relative_to(copy)) for path in copy.rglob("*.dcm")} == {"1.dcm", "2/3.dcm"}


@pytest.mark.parametrize(
    ("name", "found"), [("notes.txt", "another file"), ("no", "no such file or folder"), ("no.mha", "no such file")]
)
@pytest.mark.fault("cohorts", "MANIFEST is {found}, `{name}`", "an error that says what it may be")
def test_says_what_a_manifest_may_be(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    must = rf"expected a manifest \(.csv or .parquet\), a folder, a volume or a pattern, found {found}"
    with pytest.raises(InputError, match=must) as error:
        find_cases(str(tmp_path / name))
    one_line_about(tmp_path / name, error.value)


@pytest.mark.parametrize("source", ["memory://none", "nostore://bucket/in", "nostore://bucket/*.mha"])
@pytest.mark.fault("cohorts", "MANIFEST is {source}, which is not there", "an error that names it")
def test_names_a_folder_of_a_store_that_is_not_there(source: str) -> None:
    with pytest.raises(PantherSegError) as error:
        find_cases(source)
    one_line_about(source, error.value)


def missing_file(folder: Path) -> str:
    return "a,in/a.mha\nx,in/x.mha\n"


def double_id(folder: Path) -> str:
    return "a,in/a.mha\na,in/b.mha\n"


def no_value(folder: Path) -> str:
    return "a,in/a.mha\nb\n"


def name_of_a_folder(folder: Path) -> str:
    return "../a,in/a.mha\n"


def name_of_two_lines(folder: Path) -> str:
    return '"a\nb",in/a.mha\n'


def name_of_too_many_bytes(folder: Path) -> str:
    return f"{'ä' * (NAME_BYTES // 2 + 1)},in/a.mha\n"


def no_path(folder: Path) -> str:
    return "a,\n"


def no_case(folder: Path) -> str:
    return ""


@pytest.mark.parametrize(
    ("rows", "must"),
    [
        (missing_file, "1 of 2 volumes do not exist: {folder}/in/x.mha"),
        (double_id, "expected each case once, found several of a"),
        (no_value, "expected 2 values in case 2, found fewer"),
        (name_of_a_folder, "found input 'in/a.mha', case '../a'"),
        (name_of_two_lines, "without slash, control character and leading dot, found input 'in/a.mha', case 'a b'"),
        (name_of_too_many_bytes, "a name of at most 230 bytes"),
        (no_path, "found input '', case 'a'"),
        (no_case, "expected at least one case, found none"),
    ],
)
@pytest.mark.fault("cohorts", "a manifest has a {rows}", "an error that names it, before any case runs")
def test_refuses_rows_of_a_manifest(folder: Path, rows: Callable[[Path], str], must: str) -> None:
    refused(folder, "case,input\n" + rows(folder), must.format(folder=folder))


@pytest.mark.parametrize(
    ("columns", "must"),
    [
        ("case,input,age", "unknown column 'age', expected case and input"),
        ("case,inputs", "unknown column 'inputs', expected case and input; did you mean 'input'?"),
        ("case", "expected a column `input` with the path of each volume, found case"),
        ("case,input,case", "expected each column once, found case, input, case"),
    ],
)
@pytest.mark.fault("cohorts", "a manifest has the columns {columns}", "an error that names the columns it should have")
def test_refuses_columns_of_a_manifest(folder: Path, columns: str, must: str) -> None:
    refused(folder, f"{columns}\n", must)


@pytest.mark.parametrize(
    ("text", "must"),
    [
        ("", "expected a column `input` with the path of each volume, found no columns"),
        ("case;input\na;in/a.mha\n", "expected commas between the columns, found semicolons"),
        ("case\tinput\na\tin/a.mha\n", "expected commas between the columns, found tabs"),
    ],
    ids=["empty", "separated by semicolons", "separated by tabs"],
)
@pytest.mark.fault("cohorts", "a CSV manifest is {id}", "an error that says so, before any case runs")
def test_refuses_other_csv_than_with_commas(folder: Path, text: str, must: str) -> None:
    refused(folder, text, must)


def refused(folder: Path, text: str, must: str) -> None:
    """Check that a manifest is refused before anything is done, in one line."""
    manifest = folder / "cohort.csv"
    manifest.write_text(text)
    result = CliRunner().invoke(pantherseg, ["cohort", "run", str(manifest), str(folder / "new"), "--task", "1"])
    assert result.exit_code == 1
    assert must in result.stderr
    assert result.stderr.startswith(f"error: {manifest}")
    assert len(result.stderr.splitlines()) == 1
    assert not (folder / "new").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'case,input\n"a', b"PAR1 and more"])
@pytest.mark.fault("cohorts", "a manifest is damaged", "an error that names it")
def test_refuses_a_damaged_manifest(tmp_path: Path, content: bytes) -> None:
    manifest = tmp_path / ("a.parquet" if content.startswith(b"PAR1") else "a.csv")
    manifest.write_bytes(content)
    with pytest.raises(InputError) as error:
        find_cases(str(manifest))
    one_line_about(manifest, error.value)


def test_reads_names_that_are_numbers_in_parquet(done: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"case": [7], "input": [str(done / "in" / "a.mha")]}), tmp_path / "a.parquet")
    assert find_cases(str(tmp_path / "a.parquet")) == [CohortCase(case="7", input=str(done / "in" / "a.mha"))]


@pytest.mark.parametrize(
    ("column", "must"),
    [
        (pa.array([b"a.mha"]), "found the type binary"),
        (pa.array([1.5]), "found the type double"),
        (pa.array([["a.mha"]]), "found the type list"),
    ],
    ids=["bytes", "fractions", "lists"],
)
@pytest.mark.fault("cohorts", "a Parquet manifest has {id} in the place of paths", "an error that names the column")
def test_refuses_types_of_a_parquet_manifest(tmp_path: Path, column: pa.Array, must: str) -> None:
    pq.write_table(pa.table({"input": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="expected text or whole numbers in the column `input`, " + must):
        find_cases(str(tmp_path / "a.parquet"))


@pytest.mark.fault("cohorts", "a Parquet manifest has a column twice", "an error that says so")
def test_refuses_a_column_of_a_parquet_manifest_that_is_there_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a.mha"])] * 2, names=["input", "input"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="expected each column once, found input, input"):
        find_cases(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_reads_every_kind_of_text_in_parquet(done: Path, tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([str(done / "in" / "a.mha")]).cast(kind)
    pq.write_table(pa.table({"input": column}), tmp_path / "a.parquet")
    assert [case.case for case in find_cases(str(tmp_path / "a.parquet"))] == ["a"]


def test_the_longest_name_leaves_room_for_every_file_of_a_case() -> None:
    suffixes = [*VOLUME_SUFFIXES, *(one.suffix for one in FORMATS.values()), PROBABILITIES, ".json"]
    longest = max(suffixes, key=len)
    assert len(f".4194304.{'x' * NAME_BYTES}{longest}") == 255  # with the largest number of a process


@pytest.mark.fault("cohorts", "the table is that of another recipe", "an error, before any case runs")
def test_refuses_the_table_of_another_recipe(folder: Path) -> None:
    job = job_of(folder / "out")
    other = msgspec.structs.replace(job.recipe, name="other")
    before = times(folder)
    with pytest.raises(InputError, match="expected results of the recipe other, found task1"):
        run_cohort(str(folder / "in"), msgspec.structs.replace(job, recipe=other))
    assert times(folder) == before


@pytest.mark.fault("cohorts", "the table is damaged", "an error that says how it can be made again")
def test_refuses_a_damaged_table(folder: Path) -> None:
    table = folder / "out" / RESULTS
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(InputError, match="move it away") as error:
        run_cohort(str(folder / "in"), job_of(folder / "out"))
    one_line_about(table, error.value)


@pytest.mark.fault("cohorts", "two runs write to one folder", "an error of the second")
def test_refuses_a_second_run_in_a_folder(folder: Path) -> None:
    lock_folder(folder / "out")
    (folder / "link").symlink_to("out")
    for output in ("out", "link"):
        with pytest.raises(OutputError, match="another run writes to this folder"):
            run_cohort(str(folder / "in"), job_of(folder / output))


@pytest.mark.fault("cohorts", "volumes lie where masks would overwrite them", "an error before any case")
def test_never_overwrites_a_volume(folder: Path) -> None:
    inside = folder / "other" / "cases"
    shutil.copytree(folder / "in", inside)
    manifest = folder / "swapped.csv"  # each is called by the name of the other
    manifest.write_text("case,input\na,other/cases/b.mha\nb,other/cases/a.mha\n")
    for source in (inside, manifest, inside / "*.mha"):
        with pytest.raises(InputError, match=r"expected volumes outside the folder of the results, found .*[.]mha"):
            run_cohort(str(source), job_of(inside.parent))
    for name in GOOD:
        assert sha256_of(inside / f"{name}.mha") == sha256_of(folder / "in" / f"{name}.mha")


def test_a_pattern_does_not_mean_the_results(folder: Path) -> None:
    """The second run finds the masks of the first, and in a link, too."""
    (folder / "in" / f"{DAMAGED}.mha").unlink()
    job, pattern = job_of(folder / "in" / "all" / "out"), str(folder / "in" / "**" / "*.mha")
    (folder / "in" / "all").mkdir()
    assert run_cohort(pattern, job) == []
    (folder / "in" / "link").symlink_to(Path(job.output) / "cases")
    rows = read_rows(job.output)
    assert run_cohort(pattern, job) == []
    assert read_rows(job.output) == rows
    masks = Path(job.output) / "cases"
    for source in (masks, masks / "a.mha"):  # whoever names them means them
        with pytest.raises(InputError, match="expected volumes outside the folder of the results"):
            run_cohort(str(source), job)


def test_a_row_of_another_input_is_replaced_though_the_mask_is_the_same(folder: Path) -> None:
    job = job_of(folder / "out")
    run_cohort(str(folder / "in"), job)
    table = ResultsTable(job.output)
    right = table.rows["a"]
    table.add(msgspec.structs.replace(right, input_sha256="0" * 64))
    table.write()
    run_cohort(str(folder / "in"), job)
    assert read_rows(job.output)["a"].input_sha256 == right.input_sha256


@pytest.mark.fault("cohorts", "a file name is not in UTF-8", "an error that says to rename it")
def test_refuses_names_that_are_not_in_utf_8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.mha"
    shutil.copy(write_volumes(tmp_path / "in", 1) / "case00.mha", path)
    must = r"\\udcff[.]mha: expected a file name in UTF-8, found another encoding; rename it"
    for source in (tmp_path, tmp_path / "*.mha"):
        with pytest.raises(InputError, match=must):
            find_cases(str(source))


@pytest.mark.fault("cohorts", "the folder of the results is not in UTF-8", "an error that says to rename it")
def test_refuses_a_folder_of_results_that_is_not_in_utf_8(done: Path, tmp_path: Path) -> None:
    output = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    result = CliRunner().invoke(pantherseg, ["cohort", "run", str(done / "in"), output, "--task", "1"])
    assert result.exit_code == 1
    assert result.stderr.endswith(": expected a file name in UTF-8, found another encoding; rename it\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("cohorts", "Ray is not installed and an address is given", "an error that says how to install it")
def test_names_the_extra_that_ray_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PantherSegError, match="the package ray, found not installed; pip install"):
        run_cohort(str(folder / "in"), job_of(folder / "out"), Cluster("local"))


def test_needs_no_ray_without_an_address() -> None:
    code = "import sys; import pantherseg.cohort.run; assert 'ray' not in sys.modules"
    assert run_python("-c", code).returncode == 0


def test_says_how_far_a_cohort_is(folder: Path) -> None:
    write_manifest(
        [*find_cases(str(folder / "in")), CohortCase(case="z", input="z.mha")], str(folder / "out" / "manifest.parquet")
    )
    result = CliRunner().invoke(pantherseg, ["cohort", "status", str(folder / "out")])
    lines = result.stdout.splitlines()
    assert lines[0] == "4 cases: 2 done, 1 failed, 1 waiting"
    assert lines[1].startswith("recipe task1, ")
    assert " cases an hour, about " in lines[1]
    assert lines[2].startswith("failed: damaged: ")
    found = json.loads(CliRunner().invoke(pantherseg, ["cohort", "status", str(folder / "out"), "--json"]).stdout)
    assert (found["done"], found["waiting"], list(found["failures"])) == (2, 1, [DAMAGED])


@pytest.mark.parametrize("workers", [1, 4])
def test_pauses_between_runs_do_not_change_the_rate(done: Path, tmp_path: Path, workers: int) -> None:
    """Each worker does a case a minute, in two runs of ten minutes with a night between them."""
    row, table, cases = read_rows(str(done / "out"))["a"], ResultsTable(str(tmp_path)), []
    for began in (datetime(2026, 1, 1, 18, tzinfo=UTC), datetime(2026, 1, 2, 9, tzinfo=UTC)):
        for number in range(10 * workers):
            cases.append(CohortCase(case=f"case{len(cases)}", input="a.mha"))
            ended = began + timedelta(minutes=1) * (1 + number / workers)
            table.add(msgspec.structs.replace(row, case=cases[-1].case, finished=ended, total_seconds=60.0))
    table.write()
    waiting = CohortCase(case="waiting", input="a.mha")
    write_manifest([*cases, waiting], str(tmp_path / MANIFEST))
    status = status_of(str(tmp_path))
    assert status.cases_an_hour == pytest.approx(60 * workers, rel=0.1)
    assert status.left_s == pytest.approx(60 / workers, rel=0.1)


def test_rows_of_cases_that_left_the_manifest_are_kept_but_not_counted(folder: Path, tmp_path: Path) -> None:
    before = read_rows(str(folder / "out"))
    for name in ("a", DAMAGED):
        (folder / "in" / f"{name}.mha").unlink()
    assert run_cohort(str(folder / "in"), job_of(folder / "out")) == []
    after = read_rows(str(folder / "out"))
    assert (after.keys(), after["a"], after[DAMAGED]) == (before.keys(), before["a"], before[DAMAGED])
    assert (folder / "out" / "cases" / "a.mha").exists()
    assert status_of(str(folder / "out")).lines()[0] == "1 cases: 1 done, 0 failed, 0 waiting"
    write_cohort_page(str(folder / "out"), tmp_path / "page.html", cases=9)
    page = (tmp_path / "page.html").read_text()
    assert [f">{name}<" in page for name in before] == [name == "b" for name in before]


@pytest.mark.fault("cohorts", "`status` of a folder without a cohort", "an error that says how to begin one")
def test_names_a_folder_without_a_cohort(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="begin one with") as error:
        status_of(str(tmp_path))
    one_line_about(tmp_path, error.value)


def test_the_page_shows_what_needs_a_look_first(done: Path, tmp_path: Path) -> None:
    rows = sorted(read_rows(str(done / "out")).values(), key=lambda row: row.urgency)
    assert rows[0].case == DAMAGED
    write_cohort_page(str(done / "out"), tmp_path / "page.html", cases=2)
    page = (tmp_path / "page.html").read_text()
    assert page.index(f">{DAMAGED}<") < page.index(f">{rows[1].case}<")
    assert rows[0].error.partition(": ")[2][:30] in page
    assert f">{rows[2].case}<" not in page


@pytest.mark.fault("cohorts", "a page of a cohort with DICOM results alone", "an error that says what to do")
def test_names_the_format_that_a_page_needs(done: Path, tmp_path: Path) -> None:
    shutil.copy(done / "out" / MANIFEST, tmp_path)
    table = ResultsTable(str(tmp_path))
    for row in read_rows(str(done / "out")).values():
        table.add(msgspec.structs.replace(row, mask=row.mask and row.mask.replace(".mha", ".seg.dcm")))
    table.write()
    with pytest.raises(InputError, match="expected masks in volume files, found DICOM objects alone; run") as error:
        write_cohort_page(str(tmp_path), tmp_path / "page.html", cases=3)
    one_line_about(tmp_path, error.value)
    assert not (tmp_path / "page.html").exists()
    write_cohort_page(str(tmp_path), tmp_path / "page.html", cases=1)
    assert f">{DAMAGED}<" in (tmp_path / "page.html").read_text()


def test_uncertain_cases_come_before_certain_ones(done: Path) -> None:
    row = read_rows(str(done / "out"))["a"]
    known = [msgspec.structs.replace(row, case=str(dice), expected_dice=dice) for dice in (0.9, 0.1, 0.5)]
    unknown = msgspec.structs.replace(row, case="unknown", expected_dice=None, pairwise_dice=None)
    failed = msgspec.structs.replace(row, case="failed", status="failed")
    ordered = sorted([unknown, *known, failed], key=lambda row: row.urgency)
    assert [row.case for row in ordered] == ["failed", "0.1", "0.5", "0.9", "unknown"]
