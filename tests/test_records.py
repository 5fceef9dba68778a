"""A site's data files: what is read as it stands, and what is refused with a code, a place and no value."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path

import pytest
from cafe_kit import data_look, records
from cafe_kit.errors import CafeError
from cafe_kit.records import DataSource, clean, fingerprint, read
from cafe_kit.task import Record, Task
from hypothesis import example, given
from hypothesis import strategies as st

ROUTING = Task(kind="classification", description="messages to a clinic", labels=("billing", "cardiology"))
CHAT = Task(kind="instruction", description="questions")
SECRET = "Zebediah-Quux-4711"  # stands for private text: no refusal may show it
TWO = [Record("my heart", "cardiology"), Record("the bill", "billing")]


def put(folder: Path, name: str, content: str | bytes) -> DataSource:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataSource(path)


def refused(source: DataSource, task: Task = ROUTING) -> CafeError:
    with pytest.raises(CafeError) as caught:
        read(source, task)
    assert SECRET not in str(caught.value)
    assert caught.value.message.endswith(".") and caught.value.hint
    return caught.value


# --- what is read -------------------------------------------------------------------------------------------------


def test_csv_jsonl_and_their_gz_give_the_same_records(tmp_path: Path) -> None:
    csv = "text,label,age\nmy heart,cardiology,4\n\nthe bill,billing,NA\n"
    lines = '{"text": "my heart", "label": "cardiology", "age": 4}\n\n{"label": "billing", "text": "the bill"}\n'
    for name, content in (("a.csv", csv), ("a.jsonl", lines), ("a.ndjson", lines), ("a.JSON", lines)):
        assert read(put(tmp_path, name, content), ROUTING) == TWO
    assert read(put(tmp_path, "a.csv.gz", gzip.compress(csv.encode())), ROUTING) == TWO
    assert read(put(tmp_path, "b.jsonl.gz", gzip.compress(lines.encode())), ROUTING) == TWO


def test_columns_are_mapped_and_the_format_can_be_said(tmp_path: Path) -> None:
    path = put(tmp_path, "export.dat", "message,department\nmy heart,cardiology\nthe bill,billing\n").path
    assert read(DataSource(path, {"text": "message", "label": "department"}, "csv"), ROUTING) == TWO


def test_quotes_commas_and_line_ends_inside_a_field(tmp_path: Path) -> None:
    source = put(tmp_path, "a.csv", 'text,label\r\n"my, ""heart""\r\nhurts",cardiology\r\nthe bill,billing\r\n')
    assert read(source, ROUTING)[0] == Record('my, "heart"\nhurts', "cardiology")


def test_byte_order_mark_and_na_and_blank_rows(tmp_path: Path) -> None:
    source = put(tmp_path, "a.csv", b'\xef\xbb\xbf"text",label\nNA,billing\nnull,billing\n  ,billing\n')
    assert read(source, ROUTING) == [Record("NA", "billing"), Record("null", "billing")]


def test_instruction_data_with_and_without_input(tmp_path: Path) -> None:
    lines = [{"instruction": "Add.", "input": "1 1", "output": "2"}, {"instruction": "Greet.", "output": "Hi"},
             {"instruction": "Wave.", "input": None, "output": "o/"}, {"instruction": "Say nothing.", "output": " "}]  # fmt: skip
    source = put(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    short = [Record("Greet.", "Hi"), Record("Wave.", "o/")]
    assert read(source, CHAT) == [Record("Add.\n\n1 1", "2"), *short]
    assert read(put(tmp_path, "a.csv", "instruction,output\nGreet.,Hi\nWave.,o/\n"), CHAT) == short


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    labels = pyarrow.array(["cardiology", "billing"]).dictionary_encode()
    table = pyarrow.table({"text": ["my heart", "the bill"], "label": labels, "n": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(DataSource(tmp_path / "a.parquet"), ROUTING) == TWO


def test_a_link_is_followed(tmp_path: Path) -> None:
    put(tmp_path, "real.csv", "text,label\nmy heart,cardiology\nthe bill,billing\n")
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert read(DataSource(tmp_path / "link.csv"), ROUTING) == TWO


LOADER = "def load():\n    yield {'text': 'my heart', 'label': 'cardiology'}\n    yield {'text': 'the bill', 'label': 'billing'}\n"


def test_a_loader_gives_roles_whatever_the_columns_say(tmp_path: Path) -> None:
    assert read(DataSource(put(tmp_path, "site.py", LOADER).path, {"text": "message"}), ROUTING) == TWO


def test_signs_that_do_not_belong_are_dropped_wherever_they_come_from(tmp_path: Path) -> None:
    """NUL, control characters, halves of letters, turned text; U+FFFD is a sign like others, and dates stay as they are written."""
    lines = [{"text": "a\x00b\x1b[2Jc \u202egnihton\u202c", "label": "billing"}, {"text": "d\ud800e \ufffd 2026-01-02", "label": "billing"}]
    expected = [Record("ab[2Jc gnihton", "billing"), Record("de \ufffd 2026-01-02", "billing")]
    assert read(put(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines))), ROUTING) == expected
    assert read(put(tmp_path, "a.csv", "text,label\na\x00b,billing\nc\u202ed,billing\n"), ROUTING) == [
        Record("ab", "billing"),
        Record("cd", "billing"),
    ]


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "N/A", "-", "true", "0", "1e5", "2026-01-02"])
def test_a_word_that_others_take_for_nothing_is_a_text(tmp_path: Path, word: str) -> None:
    assert read(put(tmp_path, "a.csv", f"text,label\n{word},billing\nx,billing\n"), ROUTING)[0] == Record(word, "billing")


def test_cleaning_rule() -> None:
    assert clean("  a\x00b\x07\tc\r\nd\x0ce\x7f \u202e\ufeff") == "ab\tc\nd\ne"
    assert clean("e\u0301") == "é" and clean("\ud800x") == "x" and clean("می\u200cخواهم") == "می\u200cخواهم"


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    clean(text).encode()  # no lone surrogate is left


def test_labels_compare_after_cleaning_and_keep_the_name_of_the_list(tmp_path: Path) -> None:
    task = Task(kind="classification", description="", labels=("cafe\u0301", "bar"))
    assert [r.answer for r in read(put(tmp_path, "a.csv", "text,label\nx,café \ny,bar\n"), task)] == ["cafe\u0301", "bar"]


@given(st.lists(st.tuples(st.text(), st.sampled_from(ROUTING.labels)), min_size=2))
def test_json_lines_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    source = put(tmp_path_factory.mktemp("data"), "a.jsonl", "".join(json.dumps({"text": t, "label": a}) + "\n" for t, a in rows))
    kept = [Record(clean(text), answer) for text, answer in rows if clean(text)]
    if len(kept) > 1:
        assert read(source, ROUTING) == kept
    else:
        assert refused(source).code in ("CAFE-203", "CAFE-214")


# --- what is refused ----------------------------------------------------------------------------------------------

GOOD = f"text,label\n{SECRET},billing\n"
BAD_FILES = {
    "empty": ("a.csv", "", "203", "no rows"),
    "blank": ("a.csv", "\n\n", "203", "no rows"),
    "header only": ("a.csv", "text,label\n", "203", "no rows"),
    "no text": ("a.csv", "text,label\n ,billing\n", "203", "no rows"),
    "blank lines": ("a.jsonl", "\n \n", "203", "no rows"),
    "one row": ("a.csv", GOOD, "214", "fewer than 2"),
    "latin-1": ("a.csv", GOOD.encode() + b"caf\xe9,billing\n", "204", f"byte {len(GOOD) + 3} "),
    "cut character": ("a.jsonl", b'{"text": "\xc3"}', "204", "byte 10 "),
    "utf-16": ("a.csv", GOOD.encode("utf-16"), "204", "UTF-16"),
    "utf-16 without mark": ("a.csv", GOOD.encode("utf-16-le"), "204", "UTF-16"),
    "pdf": ("a.csv", b"%PDF-1.7\n...", "205", "a PDF, not CSV"),
    "sqlite": ("a.jsonl", b"SQLite format 3\0\x10\x00", "205", "SQLite database, not JSON lines"),
    "parquet as csv": ("a.csv", b"PAR1\x15\x04", "205", "a Parquet file"),
    "csv as parquet": ("a.parquet", GOOD, "205", "not Parquet"),
    "gzip without the name": ("a.csv", gzip.compress(GOOD.encode()), "205", "gzip"),
    "web page": ("a.csv", "\n<!DOCTYPE html><title>Log in</title>", "205", "web page"),
    "git lfs": ("a.jsonl", "version https://git-lfs.github.com/spec/v1\n", "205", "Git LFS"),
    "json as csv": ("a.csv", '{"text": "x"}\n', "205", "JSON"),
    "missing column": ("a.csv", f"message,department\n{SECRET},billing\n", "206", "no column 'text' in the first line"),
    "missing key": ("a.jsonl", f'{{"text": "{SECRET}", "label": "billing"}}\n{{"text": "{SECRET}"}}', "206", "no column 'label' in line 2"),
    "no header": ("a.csv", f"{SECRET} hurts since last week,billing\n", "206", "no column"),
    "column twice": ("a.csv", "text,text,label\na,b,billing\n", "206", "several columns 'text'"),
    "semicolons": ("a.csv", f"text;label\n{SECRET};billing\n", "207", "';'"),
    "excel's sep line": ("a.csv", f"sep=;\ntext;label\n{SECRET};billing\n", "207", "';'"),
    "tabs": ("a.csv", f"text\tlabel\n{SECRET}\tbilling\n", "207", "tabulators"),
    "extra field": ("a.csv", f"text,label\na,billing\nb,{SECRET},billing\n", "208", "Line 3 has 3 fields"),
    "missing field": ("a.csv", f'text,label\n"a\nb",billing\n{SECRET}\n', "208", "Line 4 has 1 fields"),
    "unclosed quote": ("a.csv", f'text,label\na,billing\n"{SECRET},billing\nb,billing\n', "209", "Line 3 "),
    "text after quote": ("a.csv", f'text,label\n"a"{SECRET},billing\n', "209", "Line 2 "),
    "old mac line ends": ("a.csv", f"text,label\r{SECRET},billing\r", "209", "Line 1 "),
    "huge field": ("a.csv", f"text,label\n{'x' * 200_000},billing\n", "209", "Line 2 "),
    "bad json": ("a.jsonl", f'{{"text": "a", "label": "billing"}}\n{{"text": "{SECRET}"\n', "210", "Line 2 "),
    "pretty json": ("a.json", f'{{\n"text": "{SECRET}"}}', "210", "Line 1 "),
    "json of a number": ("a.jsonl", "17\n", "210", "Line 1 "),
    "deep json": ("a.jsonl", "{" + '"a":[' * 100_000, "210", "Line 1 "),
    "long number": ("a.jsonl", '{"text": ' + "9" * 10_000 + "}", "210", "Line 1 "),
    "json array": ("a.json", f'[{{"text": "{SECRET}", "label": "billing"}}]', "211", "JSON array"),
    "number": ("a.jsonl", '{"text": 4711, "label": "billing"}', "212", "Line 1 has a number in column 'text'"),
    "nested": ("a.jsonl", f'{{"text": {{"a": "{SECRET}"}}, "label": "billing"}}', "212", "an object in column 'text'"),
    "null": ("a.jsonl", '{"text": "a", "label": null}', "212", "nothing (null) in column 'label'"),
    "nan": ("a.jsonl", '{"text": NaN, "label": "billing"}', "212", "a number"),
    "unknown label": ("a.csv", f"text,label\na,billing\nb,{SECRET}\n", "213", "Line 3 has a label that is not in the list"),
    "latin-1 further down": ("a.csv", GOOD.encode() + 9_999 * b"a text,billing\n" + b"caf\xe9,billing\n", "204", "byte "),
    "excel by its old form": ("a.csv", b"\xd0\xcf\x11\xe0" + GOOD.encode(), "205", "an old Excel"),
    "a pickle": ("a.csv", b"\x80\x04\x95" + GOOD.encode(), "205", "a Python pickle"),
    "arrow": ("a.csv", b"ARROW1" + GOOD.encode(), "205", "an Arrow file"),
    "column of blanks": ("a.csv", f" ,label\n{SECRET},billing\n", "206", "no column 'text'"),
    "a date as number": ("a.jsonl", '{"text": "a", "label": 20260102}', "212", "a number in column 'label'"),
    "a list of texts": ("a.jsonl", f'{{"text": ["{SECRET}"], "label": "billing"}}', "212", "a list in column 'text'"),
    "true": ("a.jsonl", '{"text": true, "label": "billing"}', "212", "true or false"),
    "empty label": ("a.csv", "text,label\na,\n", "213", "Line 2 "),
    "unknown suffix": ("a.tsv", "text\tlabel\n", "216", "cannot be told"),
    "torn gzip": ("a.csv.gz", gzip.compress(GOOD.encode() * 99)[:-9], "218", "gzip"),
    "no gzip": ("a.csv.gz", GOOD, "218", "gzip"),
    "no loader": ("a.py", f"x = '{SECRET}'", "215", "no function load()"),
    "loader raises": ("a.py", f"def load():\n    raise KeyError('{SECRET}')", "215", "KeyError"),
    "loader raises later": ("a.py", f"{LOADER}    raise ValueError('{SECRET}')", "215", "ValueError"),
    "loader that exits": ("a.py", f"raise SystemExit('{SECRET}')", "215", "SystemExit"),
    "loader that is no python": ("a.py", f"{SECRET}((", "215", "SyntaxError"),
    "loader of texts": ("a.py", f"def load():\n    return ['{SECRET}']", "215", "Row 1 "),
    "loader of nothing": ("a.py", "def load():\n    pass", "215", "TypeError"),
    "loader of numbers": ("a.py", "def load():\n    yield {'text': 1, 'label': 'billing'}", "212", "Row 1 has a number"),
    "loader without label": ("a.py", "def load():\n    yield {'text': 'a'}", "206", "no column 'label' in row 1"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "code", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file(tmp_path: Path, name: str, content: str | bytes, code: str, words: str) -> None:
    error = refused(put(tmp_path, name, content))
    assert error.code == f"CAFE-{code}"
    assert words in error.message


some_bytes = st.binary(max_size=60) | st.text('",;{}[]:\n\rtextlabe ').map(str.encode)


@given(st.sampled_from(["a.csv", "a.jsonl", "a.csv.gz", "a.parquet"]), some_bytes)
@example("a.parquet", b"PAR1PAR1")
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    for data in (content, b"text,label\n" + content, gzip.compress(content)):
        try:
            read(put(tmp_path_factory.getbasetemp(), name, data), ROUTING)
        except CafeError as error:
            assert error.code.startswith("CAFE-2")


def test_missing_column_names_the_columns_but_a_first_record_is_not_shown(tmp_path: Path) -> None:
    assert "It has 'message', 'department'" in refused(put(tmp_path, "a.csv", "message,department\nx,billing\n")).hint
    hint = refused(put(tmp_path, "b.csv", "chest pain since last week Tuesday,cardiology\n")).hint
    assert "chest" not in hint and "cardiology" not in hint


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    expected = {"none.csv": "CAFE-201", "x" * 300 + ".csv": "CAFE-201", "a\0.csv": "CAFE-201", "loop.csv": "CAFE-201",
                "folder.csv": "CAFE-202", "pipe.csv": "CAFE-202"}  # fmt: skip
    for name, code in expected.items():
        assert refused(DataSource(tmp_path / name)).code == code
    assert refused(DataSource(Path("/dev/zero"), format="csv")).code == "CAFE-202"


def test_file_of_somebody_else(tmp_path: Path) -> None:
    source = put(tmp_path, "a.csv", GOOD)
    source.path.chmod(0)
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)  # root may read everything, so be nobody for a moment
    try:
        assert refused(source).code == "CAFE-202"
    finally:
        os.seteuid(mine)


def test_excel_file_under_the_name_of_a_csv(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv", "w") as archive:
        archive.writestr("xl/workbook.xml", SECRET)
    assert refused(DataSource(tmp_path / "a.csv")).code == "CAFE-205"


def test_parquet_that_is_damaged_or_holds_no_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    for column in (pyarrow.array([1, 2]), pyarrow.array([["a"], ["b"]]), pyarrow.array([{"a": SECRET}, None])):
        parquet.write_table(pyarrow.table({"text": column, "label": ["billing", "billing"]}), path)
        assert refused(DataSource(path)).code == "CAFE-212"
    parquet.write_table(pyarrow.table({"message": [SECRET], "label": ["billing"]}), path)
    assert "'message'" in refused(DataSource(path)).hint
    parquet.write_table(pyarrow.table({"text": ["a", None], "label": ["billing", "billing"]}), path)
    assert "Row 2 has nothing" in refused(DataSource(path)).message
    whole = path.read_bytes()
    for broken in (whole[:-20], b"PAR1" + bytes(99), whole[:60] + bytes(20) + whole[80:]):
        path.write_bytes(broken)
        assert refused(DataSource(path)).code in ("CAFE-218", "CAFE-212")


def test_parquet_of_odd_types(tmp_path: Path) -> None:
    """Nothing but text is read: no dates, bytes, lists in dictionaries, and no type that brings code of its own."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    labels = pyarrow.array(["billing", "billing"])
    odd = [
        pyarrow.array([1, 2], pyarrow.timestamp("s")),
        pyarrow.array([b"a", b"b"]),
        pyarrow.array([True, False]),
        pyarrow.array([None, None]),
        pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 0]), pyarrow.array([1.5])),
        pyarrow.array([[("a", SECRET)], []], pyarrow.map_(pyarrow.string(), pyarrow.string())),
        pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array([f'"{SECRET}"', "1"])),
        pyarrow.ExtensionArray.from_storage(pyarrow.uuid(), pyarrow.array([b"x" * 16] * 2, pyarrow.binary(16))),
    ]
    for column in odd:
        parquet.write_table(pyarrow.table({"text": column, "label": labels}), path)
        assert refused(DataSource(path)).code == "CAFE-212", column.type


def test_parquet_that_swells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of some kilobytes that unpacks to hundreds of megabytes ends at the limit, and a flood of columns before anything is read."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    flood = {f"c{number}": [1, 2] for number in range(10_001)}
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": ["billing", "billing"], **flood}), path)
    assert refused(DataSource(path)).code == "CAFE-219"
    text = pyarrow.array([SECRET + "x" * 90_000] * 5_000).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": text, "label": ["billing"] * 5_000}), path)
    assert path.stat().st_size < 300_000
    monkeypatch.setattr(records, "MAX_CHARACTERS", 5_000_000)
    assert refused(DataSource(path)).code == "CAFE-219"


def test_what_its_owner_should_look_at(tmp_path: Path) -> None:
    """Read without a word by every library: one label alone, next to no text, damaged letters, the answer inside the question."""

    def look(rows: str) -> tuple[str, ...]:
        return data_look.look(put(tmp_path, "a.csv", "text,label\n" + rows), ROUTING)[0].unusual

    assert look("my heart,cardiology\nthe bill,billing\n") == ()
    assert look("my heart,cardiology\nmy veins,cardiology\n") == ("1 of 2 labels occur",)
    assert look("my heart,cardiology\nok,billing\n") == ("1 texts have fewer than 3 characters",)
    assert look("my h\ufffdart,cardiology\nthe bill,billing\n") == ("1 texts hold the sign for a damaged character (U+FFFD)",)
    assert look("to cardiology,cardiology\nBilling please,billing\n") == ("2 texts name their own label",)
    assert data_look.look(put(tmp_path, "b.csv", "instruction,output\nGreet.,Hi\nWave.,o/\n"), CHAT)[0].unusual == ()


def test_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    grow = "import pathlib\n" + LOADER + "    pathlib.Path(__file__).open('a').write('#')\n"
    source = put(tmp_path, "a.py", grow)
    before = fingerprint(source)
    assert refused(source).code == "CAFE-220"
    assert fingerprint(source) != before


def test_mapping_of_an_unknown_role(tmp_path: Path) -> None:
    source = DataSource(put(tmp_path, "a.csv", GOOD).path, {"txt": "text"})
    assert refused(source).code == "CAFE-221"


def test_text_and_line_above_the_limit(tmp_path: Path) -> None:
    long = json.dumps({"text": "x" * 1_000_001, "label": "billing"})
    assert refused(put(tmp_path, "a.jsonl", long)).code == "CAFE-219"
    assert refused(put(tmp_path, "b.jsonl", " " * (17 * 2**20))).code == "CAFE-219"
