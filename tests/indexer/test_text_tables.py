"""Tables of texts are read as they stand, whatever they are written in, and refused by line where they are damaged."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from indexer.recipe import RecipeDataError
from indexer.recipes.text_tables import find_table, read_table

# Saved by datasets 5.2.0: DatasetDict(...).save_to_disk, six training and three validation pairs of RTE.
SAVED = Path(__file__).parents[1] / "golden" / "datasets-5.2.0"
ROWS = [
    {"text": 'He said "no".', "label": "a"},
    {"text": "  spaces stay ", "label": "b"},
    {"text": "line\u2028separator, comma", "label": "a"},
]


def written(folder: Path, ending: str) -> Path:
    path = folder / f"train{ending}"
    match ending:
        case ".tsv":
            path.write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS))
        case ".csv":
            quoted = ['"' + row["text"].replace('"', '""') + '"' for row in ROWS]
            path.write_text("text,label\n" + "".join(f"{t},{r['label']}\n" for t, r in zip(quoted, ROWS, strict=True)))
        case ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
        case ".parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("ending", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    path = written(tmp_path, ending)
    assert find_table(tmp_path, ["dev", "train"]) == path
    table = read_table(path)
    assert table.columns == ("text", "label")
    assert list(table.rows) == ROWS


def test_a_folder_saved_by_datasets_gives_its_splits_and_the_names_of_its_classes():
    path = find_table(SAVED, ["validation"])
    assert path is not None
    table = read_table(path)
    assert table.columns == ("premise", "hypothesis", "label", "source")
    assert len(table.rows) == 3
    assert table.class_names == {"label": ("entailment", "not_entailment")}
    assert read_table(SAVED / "train").rows[0]["hypothesis"] == "Weapons of Mass Destruction Found in Iraq."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.tsv", "", "empty"),
        ("train.tsv", "text\tlabel\none\n", "line 2 has 1 fields"),
        ("train.tsv", "text\tlabel\n\n\none\n", "line 4 has 1 fields"),
        ("train.tsv", "text\ttext\na\tb\n", "comes twice"),
        ("train.tsv", b"text\n\xff\n", "cannot be read"),
        ("train.csv", 'text,label\n"never closed,a\n', "cannot be read"),
        ("train.csv", "text,label\na,b,c\n", "line 2 has 3 fields"),
        ("train.jsonl", '{"text": "a"}\n\n{"text": b}\n', "line 3 is not JSON .Expecting value at column 10"),
        ("train.jsonl", '{"text": "a"}\n["b"]\n', "line 2 is not an object with text"),
        ("train.jsonl", '{"text": "a"}\n{"texts": "b"}\n', "line 2 is not an object with text"),
        ("train.jsonl", '{"text": \n', "line 1 is not JSON"),
        ("train.jsonl", "\n", "empty; every line is a JSON object"),
        ("train.parquet", "PAR1", "cannot be read"),
        ("train.txt", "a", "allowed: "),
    ],
)
def test_a_damaged_table_is_refused_and_says_where(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeDataError, match=message):
        read_table(path)


def test_a_folder_that_datasets_did_not_save_whole_is_refused(tmp_path):
    with pytest.raises(RecipeDataError, match=r"no state\.json"):
        read_table(tmp_path)
    shutil.copytree(SAVED / "train", tmp_path / "train")
    state = json.loads((tmp_path / "train" / "state.json").read_text())
    (tmp_path / "train" / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "i"}]}))
    with pytest.raises(RecipeDataError, match="flatten_indices"):
        read_table(tmp_path / "train")
    outside = {**state, "_data_files": [{"filename": "../../secret.arrow"}]}
    (tmp_path / "train" / "state.json").write_text(json.dumps(outside))
    with pytest.raises(RecipeDataError, match=r"train.secret\.arrow"):  # looked for inside the folder only
        read_table(tmp_path / "train")


def test_columns_that_are_not_there_are_named_with_those_that_are(tmp_path):
    with pytest.raises(RecipeDataError, match="no column 'texts'; it has text, label"):
        read_table(written(tmp_path, ".tsv")).check_columns(["text", "texts"])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_carriage_return_within_a_text_is_text(tmp_path, end):
    (tmp_path / "train.tsv").write_bytes(f"text{end}one\rmore{end}two{end}".encode())
    assert [row["text"] for row in read_table(tmp_path / "train.tsv").rows] == ["one\rmore", "two"]


def test_a_column_without_a_name_has_the_one_that_pandas_gives_it(tmp_path):
    (tmp_path / "train.csv").write_text(",text,\n0,a,x\n1,b,y\n")
    table = read_table(tmp_path / "train.csv")
    assert table.columns == ("Unnamed: 0", "text", "Unnamed: 2")
    assert table.rows[1] == {"Unnamed: 0": "1", "text": "b", "Unnamed: 2": "y"}


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n', encoding="utf-8-sig")
    assert read_table(tmp_path / "train.jsonl").columns == ("text",)
