"""What the text recipes share about examples: tokens with the texts they came from, and padded batches of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from indexer.recipe import RecipeDataError, RecipeInputError, RecipeOptionError
from indexer.recipes.text_tables import TextTable

USUAL_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("sentence",),
    ("text",),
)
"""Column names of the usual data sets, tried in this order when none are given."""


class TextExample(NamedTuple):
    """One example as a text model reads it, with the texts it came from.

    Attributes:
        tokens: What the tokenizer gave: ``input_ids`` and, of some, ``token_type_ids``; lists of integers.
        label: The label, or −1.
        texts: Column name to text.
        columns: The row's other columns, to store and to filter by.
        name: External id of the row, None where the data set names none.
    """

    tokens: Mapping[str, Sequence[int]]
    label: int
    texts: Mapping[str, str]
    columns: Mapping[str, Any]
    name: str | None = None


class Tokenizer:
    """A Hugging Face tokenizer that may be used from several threads.

    Fast tokenizers keep the truncation of a call in shared state and fail when two threads meet in it, hence the lock.

    Args:
        tokenizer: The tokenizer.
        max_length: Tokens an example may have; longer ones are cut.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._lock = threading.Lock()

    @property
    def pad_id(self) -> int:
        """Token that fills a batch: the tokenizer's own, else its end-of-text, else 0; it is masked whatever it is."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    def encode(self, *texts: str) -> dict[str, list[int]]:
        """Tokenise one text or a pair of texts, special tokens included; the longer text of a pair is cut first.

        Args:
            texts: One or two texts.

        Returns:
            ``input_ids`` and, where the tokenizer gives them, ``token_type_ids``.
        """
        with self._lock:
            encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length, padding=False)
        kept = ("input_ids", "token_type_ids")
        return {key: [int(token) for token in encoded[key]] for key in kept if key in encoded}

    def num_special(self, num_texts: int) -> int:
        """Return how many special tokens an example of one text or two gets besides those of its texts."""
        return int(self.tokenizer.num_special_tokens_to_add(pair=num_texts == 2))

    def decode(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """Return the text of some tokens, with or without special ones."""
        with self._lock:
            return str(self.tokenizer.decode(list(tokens), skip_special_tokens=not special))

    def without_last_special(self, tokens: Sequence[int]) -> list[int]:
        """Return tokens up to the last that is not special: what a text has before its end is marked."""
        special = set(self.tokenizer.all_special_ids)
        kept = len(tokens)
        while kept and tokens[kept - 1] in special:
            kept -= 1
        return list(tokens[:kept])


def pad_right(examples: Sequence[Mapping[str, Sequence[int]]], pad_id: int) -> dict[str, Tensor]:
    """Stack tokens into one batch, filled on the right; the mask says what is filled.

    Args:
        examples: Tokens of each example.
        pad_id: Token to fill with.

    Returns:
        ``input_ids``, ``attention_mask`` (1 for a token, 0 for filling) and what else the examples have, int64
        ``[b, t]`` with t the longest example.
    """
    batch = {}
    for key in examples[0]:
        rows = [torch.tensor(example[key], dtype=torch.int64) for example in examples]
        batch[key] = pad_sequence(rows, batch_first=True, padding_value=pad_id if key == "input_ids" else 0)
    ones = [torch.ones(len(example["input_ids"]), dtype=torch.int64) for example in examples]
    return {**batch, "attention_mask": pad_sequence(ones, batch_first=True)}


def usual_columns(table: TextTable) -> tuple[str, ...]:
    """Find the text columns of a table by their usual names.

    Args:
        table: The table.

    Returns:
        One or two names.

    Raises:
        RecipeDataError: If none of the usual names is there.
    """
    for columns in USUAL_COLUMNS:
        if all(name in table.columns for name in columns):
            return columns
    raise RecipeDataError(
        f"{table.path}: which of the columns {', '.join(table.columns)} are text? Say it with --option columns=A or "
        "--option columns=A,B"
    )


def text_of(table: TextTable, row: int, column: str) -> str:
    """Return the text of a row.

    Args:
        table: The table.
        row: The row.
        column: One of its columns.

    Returns:
        The text as it stands.

    Raises:
        RecipeDataError: If it is not text.
    """
    value = table.rows[row][column]
    if not isinstance(value, str):
        raise RecipeDataError(f"{table.path}: column {column!r} holds {value!r} in row {row}, must hold text")
    return value


def other_columns(table: TextTable, row: int, used: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a row that are neither text nor label, as far as an index can store them.

    Args:
        table: The table.
        row: The row.
        used: Columns to leave out.

    Returns:
        Name to JSON scalar; anything nested is left out.
    """
    kinds = (str, int, float, bool, type(None))
    return {name: value for name, value in table.rows[row].items() if name not in used and isinstance(value, kinds)}


def texts_of_content(content: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str]:
    """Read the texts of a request.

    Args:
        content: The JSON object.
        columns: The fields it must have, and the only ones it may have.

    Returns:
        Field to text, as sent.

    Raises:
        RecipeInputError: Naming the field and what would be accepted.
    """
    allowed = json.dumps(dict.fromkeys(columns, "…"), ensure_ascii=False)
    for name in content:
        if name not in columns:
            raise RecipeInputError(f"unknown field {name!r}", pointer=f"/{name}", allowed=allowed)
    for name in columns:
        if name not in content:
            raise RecipeInputError(f"field {name!r} is missing", allowed=allowed)
        if not isinstance(content[name], str):
            raise RecipeInputError(
                f"expected text, got {type(content[name]).__name__}", pointer=f"/{name}", allowed=allowed
            )
        if not content[name].strip():
            raise RecipeInputError("the text is empty", pointer=f"/{name}", allowed=allowed)
    return {name: content[name] for name in columns}


def split_names(option: str) -> tuple[str, ...]:
    """Read an option that lists names.

    Args:
        option: Names separated by commas, or a JSON list where a name has a comma of its own.

    Returns:
        The names; none for an empty option.

    Raises:
        RecipeOptionError: If it begins like a JSON list and is none.
    """
    if option.startswith("["):
        try:
            names = json.loads(option)
        except json.JSONDecodeError as error:
            raise RecipeOptionError(
                f"{option!r} is no list of names ({error.msg} at character {error.colno}): what begins with [ is "
                'a JSON list, such as ["a","b"]; names without a comma of their own need none: a,b'
            ) from error
        return tuple(str(name) for name in names)
    return tuple(name.strip() for name in option.split(",") if name.strip())


def joined_names(names: Sequence[str]) -> str:
    """Write names so that `split_names` reads them.

    Args:
        names: The names.

    Returns:
        The option's value.
    """
    plain = ",".join(names)
    return plain if split_names(plain) == tuple(names) and not plain.startswith("[") else json.dumps(list(names))


class Rows:
    """A map-style data set over a function of the row."""

    def __init__(self, num_rows: int, example: Any) -> None:
        self._num_rows = num_rows
        self._example = example

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row < self._num_rows:
            raise IndexError(f"row {row}; this data set has rows 0 to {self._num_rows - 1}")
        return self._example(row)

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(self._num_rows))
