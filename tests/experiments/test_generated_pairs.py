"""Generated pairs: the text recipe reads them, with both labels, and no pair twice."""

from pathlib import Path

import pytest

from experiments.generated_pairs import write_generated_pairs
from indexer.recipes.text_tables import read_table

pytest.importorskip("transformers")


def test_files_are_the_same_every_time_and_no_pair_is_there_twice(tmp_path: Path):
    contents = []
    for name in ("one", "two"):
        write_generated_pairs(tmp_path / name)
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        contents.append([(file.name, file.read_bytes()) for file in files])
    assert contents[0] == contents[1]
    tables = [read_table(tmp_path / "one" / f"{split}.tsv").rows for split in ("train", "dev")]
    premises = [row["sentence1"] for rows in tables for row in rows]
    assert len(premises) == len(set(premises)) == 140
    assert all({row["label"] for row in rows} == {"entailment", "not_entailment"} for rows in tables)


def test_no_word_is_unknown_to_the_tokenizer(tmp_path: Path):
    import transformers

    write_generated_pairs(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    for row in read_table(tmp_path / "train.tsv").rows:
        assert tokenizer.unk_token_id not in tokenizer(row["sentence1"], row["sentence2"])["input_ids"]
