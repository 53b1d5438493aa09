"""The part that the text recipes have in common: tables, tokens, a pretrained model, fine-tuning, adapters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar

import torch
from blake3 import blake3
from torch import Tensor, nn

from indexer.fine_tuning import FineTuning, Step, fine_tune, fine_tuning_steps, frozen
from indexer.parameters import Layers
from indexer.recipe import BuiltinRecipe, MapDataset, OptionValue, RecipeDataError, RecipeOptionError
from indexer.recipes.adapters import Task, adapter_weights, load_adapters, new_adapters
from indexer.recipes.pretrained import (
    load_config,
    load_model,
    load_offline_first,
    longest_read,
    model_of_config,
    model_source,
    num_positions,
    transformers_library,
)
from indexer.recipes.text_examples import (
    TextExample,
    Tokenizer,
    joined_names,
    other_columns,
    pad_right,
    split_names,
    texts_of_content,
    usual_columns,
)
from indexer.recipes.text_tables import TextTable, find_table, read_table
from indexer.training import cached_weights, seeded, state_digest

QUERY_NAMES = ("dev", "validation", "test")
"""Tables tried as the query set when none is named."""
USUAL_LENGTH = 128
"""Tokens of a text when no number of them is given, and the model has positions for so many."""


class TextRecipe(BuiltinRecipe):
    """A Hugging Face model on a table of texts.

    Options that a user leaves empty are found in the data and the model (``columns``, ``labels``); what is found stands
    in ``options`` from then on, and so in the manifest: a service needs the model's folder, but no data.

    Attributes:
        task: What the model does, in PEFT's words.
    """

    _drawn: Sequence[str] = ()  # parameters that the model's source has no weights of
    task: ClassVar[Task]
    option_defaults: ClassVar[Mapping[str, OptionValue]] = {
        "model": "",
        "train": "train",
        "query": "",
        "columns": "",
        "id": "",
        "max_length": 0,
        "seed": 0,
        "epochs": 0,
        "batch_size": 16,
        "learning_rate": 5e-5,
        "lora_rank": 0,
        "adapter": "",
    }

    @property
    def default_layers(self) -> Layers:  # type: ignore[override]
        """The linear layers, as the paper chose for BERT; of a model with adapters all that is trained."""
        return "all" if self.options["adapter"] or self.options["lora_rank"] else "linear"

    @property
    @abstractmethod
    def auto_class(self) -> Any:
        """The transformers class that loads the model."""

    @abstractmethod
    def config_changes(self) -> dict[str, Any]:
        """Return what this task changes in the model's configuration."""

    @abstractmethod
    def examples(self, table: TextTable, split: str) -> MapDataset:
        """Return the examples of a table."""

    @abstractmethod
    def mean_loss(self, model: nn.Module, examples: Sequence[Any]) -> Tensor:
        """Return the mean training loss of some examples, with its graph."""

    def check_options(self) -> None:  # noqa: D102
        length = int(self.options["max_length"])
        if length < 0 or length == 1:
            raise RecipeOptionError(
                f"option 'max_length': {length} must be at least 2; 0 is for {USUAL_LENGTH}, or what the model reads"
            )
        for key, least in (("epochs", 0), ("batch_size", 1), ("lora_rank", 0), ("seed", 0)):
            if int(self.options[key]) < least:
                raise RecipeOptionError(f"option {key!r}: {self.options[key]} must be at least {least}")
        if not 0 < float(self.options["learning_rate"]) < 1:
            raise RecipeOptionError(
                f"option 'learning_rate': {self.options['learning_rate']} must be greater than 0 and less than 1"
            )
        if self.options["lora_rank"] and self.options["adapter"]:
            raise RecipeOptionError("lora_rank puts new adapters on the model, adapter loads trained ones; give one")
        if self.options["lora_rank"] and not self.options["epochs"]:
            raise RecipeOptionError("adapters of lora_rank must be trained: give --option epochs=3 or so")

    # The data

    @cached_property
    def train_table(self) -> TextTable:
        """The training table.

        Raises:
            RecipeDataError: If it is not there.
        """
        name, folder = str(self.options["train"]), self.data_folder("")
        path = find_table(folder, [name])
        if path is None:
            raise RecipeDataError(
                f"{folder}: no table {name!r} ({name}.tsv, .csv, .jsonl, .parquet or a datasets folder {name}); name "
                "another with --option train=NAME"
            )
        return read_table(path)

    @cached_property
    def query_table(self) -> TextTable | None:
        """The query table; None where there is none and none is asked for.

        Raises:
            RecipeDataError: If the one asked for is not there.
        """
        name = str(self.options["query"])
        if name == "none":
            return None
        folder = self.data_folder("")
        path = find_table(folder, [name] if name else QUERY_NAMES)
        if path is None and name:
            raise RecipeDataError(f"{folder}: no table {name!r}; name another with --option query=NAME, or none")
        return None if path is None else read_table(path)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the text columns; found by their usual names where the option is empty."""
        given = split_names(str(self.options["columns"]))
        if not given:
            given = usual_columns(self.train_table)
            self.options = {**self.options, "columns": joined_names(given)}
        return given

    def train_set(self) -> MapDataset:  # noqa: D102
        return self._train

    def query_set(self) -> MapDataset | None:  # noqa: D102
        return None if self.query_table is None else self.examples(self.query_table, "query")

    @cached_property
    def _train(self) -> MapDataset:
        self.train_table.check_columns(self.columns)
        return self.examples(self.train_table, "train")

    def row_name(self, table: TextTable, row: int) -> str | None:
        """Return the external id of a row from the column that the option ``id`` names, None without one.

        Raises:
            RecipeDataError: If the column has none for the row.
        """
        column = str(self.options["id"])
        if not column:
            return None
        table.check_columns([column])
        if (found := table.rows[row][column]) is None:
            raise RecipeDataError(f"{table.path}: column {column!r} is null in row {row}; every row needs an id")
        return str(found)

    def row_columns(self, table: TextTable, row: int, used: Sequence[str]) -> dict[str, Any]:
        """Return the columns of a row to store and to filter by."""
        return other_columns(table, row, (*self.columns, *used))

    def collate(self, examples: Sequence[TextExample]) -> tuple[dict[str, Tensor], Tensor]:  # noqa: D102
        batch = pad_right([example.tokens for example in examples], self.pad_id)
        return batch, torch.tensor([example.label for example in examples], dtype=torch.int64)

    @property
    def pad_id(self) -> int:
        """The token that shorter texts are filled with."""
        return self.tokenizer.pad_id

    def label(self, example: TextExample) -> int:  # noqa: D102
        return example.label

    def id(self, example: TextExample, row: int, split: str) -> str:  # noqa: D102
        return f"{split}:{row}" if example.name is None else example.name

    def metadata(self, example: TextExample) -> Mapping[str, Any]:
        """Return the table's other columns."""
        return example.columns

    def preview(self, example: TextExample) -> Mapping[str, str]:
        """Return the texts by column: readable, and content that :meth:`parse` reads."""
        return example.texts

    def length(self, example: TextExample) -> int:
        """Return the number of tokens, by which batches of like length are made."""
        return len(example.tokens["input_ids"])

    def texts_of(self, content: Mapping[str, Any]) -> dict[str, str]:
        """Read the text columns of a request's content.

        Args:
            content: The JSON object.

        Returns:
            Column to text.
        """
        return texts_of_content(content, self.columns)

    # The model

    @cached_property
    def source(self) -> str:
        """Where the model comes from."""
        return model_source("model", str(self.options["model"]))

    @cached_property
    def max_length(self) -> int:
        """Tokens that a text may have, special ones included; found where the option is 0."""
        given = int(self.options["max_length"])
        if not given:
            positions = self._num_positions()
            given = min(USUAL_LENGTH, positions) if positions else USUAL_LENGTH
            self.options = {**self.options, "max_length": given}
        return given

    def _num_positions(self) -> int | None:
        # Positions that the model has, as far as its configuration says
        config = load_config("model", self.source, download=self.data_dir is not None)
        return num_positions(config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; downloaded only where there are data, so never for an index that a service opens."""
        return self.load_tokenizer("model", self.source)

    def load_tokenizer(self, option: str, source: str) -> Tokenizer:
        """Load a tokenizer.

        Args:
            option: The option that names it.
            source: Its folder or name.

        Returns:
            The tokenizer.
        """
        auto_class = transformers_library().AutoTokenizer

        def load(source: str, *, local_files_only: bool) -> Any:
            return auto_class.from_pretrained(source, local_files_only=local_files_only, trust_remote_code=False)

        found = load_offline_first(option, source, load, download=self.data_dir is not None)
        return Tokenizer(found, self.max_length)

    def base_model(self) -> nn.Module:
        """Return the pretrained model before fine-tuning and adapters; what its source lacks is drawn from the seed."""
        with seeded(int(self.options["seed"])):
            model, self._drawn = load_model("model", self.source, self.auto_class, **self.config_changes())
        return model

    def base_architecture(self) -> nn.Module:
        """Return a model of the same modules; its weights do not matter."""
        with seeded(int(self.options["seed"])):
            return model_of_config(load_config("model", self.source, **self.config_changes()), self.auto_class)

    def architecture(self) -> nn.Module:  # noqa: D102
        return self._ready(self._adapted(self.base_architecture()))

    def initial_model(self) -> nn.Module:
        """Return the model as fine-tuning begins with it.

        Raises:
            RecipeOptionError: If it is not fine-tuned, and some of its weights would be drawn at random; or if it
                cannot read a text of ``max_length`` tokens.
        """
        model = self._ready(self._adapted(self.base_model()))
        self._check_length(model)
        given = adapter_weights(str(self.options["adapter"])) if self.options["adapter"] else set[str]()
        random = [name for name in self._drawn if name not in given]
        if random and not self.options["epochs"]:
            more = f" and {len(random) - 3} more" if len(random) > 3 else ""
            raise RecipeOptionError(
                f"option 'model': {self.options['model']!r} has no weights for {', '.join(random[:3])}{more}, and "
                "would be indexed with random ones: name a model that has them all, or fine-tune it with "
                "--option epochs=5 or so"
            )
        return model

    def _adapted(self, model: nn.Module) -> nn.Module:
        if self.options["adapter"]:
            return load_adapters(model, str(self.options["adapter"]))
        if self.options["lora_rank"]:
            with seeded(int(self.options["seed"])):
                return new_adapters(model, int(self.options["lora_rank"]), self.task)
        return model

    def _check_length(self, model: nn.Module) -> None:
        longest = longest_read(model, self.max_length)
        if longest is not None and longest < self.max_length:
            raise RecipeOptionError(
                f"option 'max_length': {self.options['model']!r} reads texts of {longest} tokens at most, not of "
                f"{self.max_length}: give --option max_length={longest} or fewer; longer texts are cut"
            )

    def _ready(self, model: nn.Module) -> nn.Module:
        """Prepare what :meth:`call` needs to know about a model; every model of this recipe passes here.

        Args:
            model: The model.

        Returns:
            The same model.
        """
        return model

    def model(self) -> nn.Module:  # noqa: D102
        initial = self.initial_model()
        if not self.options["epochs"]:
            return initial
        self.check_documents()
        settings, seed = self.fine_tuning(), int(self.options["seed"])
        self.model_source = "cache"

        def train() -> nn.Module:
            self.model_source = "training"
            with frozen(self.left_alone(initial)):
                self.warm_up(initial, settings)
                return fine_tune(
                    initial, self.documents, self.lengths(), self.mean_loss, settings, seed=seed, name=self.name
                )

        determined_by = {
            "recipe": self.name,
            "seed": seed,
            "warm_up_options": dict(self.warm_up_options()),
            "fine_tuning": asdict(settings),
            "initial": state_digest(initial.state_dict()),
            "data": self._data_digest(),
            "transformers": transformers_library().__version__,
            "torch": torch.__version__,
        }
        return cached_weights(self.name, determined_by, train, self.architecture())

    def fine_tuning(self) -> FineTuning:
        """Return how the model is fine-tuned."""
        return FineTuning(
            epochs=int(self.options["epochs"]),
            batch_size=int(self.options["batch_size"]),
            learning_rate=float(self.options["learning_rate"]),
            threads=max(1, torch.get_num_threads()),
        )

    def check_documents(self) -> None:
        """Refuse documents that cannot be learnt from; every one can by default."""

    def left_alone(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters that fine-tuning does not train."""
        return []

    def warm_up(self, model: nn.Module, settings: FineTuning) -> None:
        """Train the model on what needs no labels, before fine-tuning."""

    def warm_up_options(self) -> Mapping[str, OptionValue]:
        """Return the options that decide what :meth:`warm_up` does."""
        return {}

    def fine_tuning_steps(self) -> Iterator[Step]:
        """Fine-tune a fresh model step by step, for whoever times an epoch; there is no warm-up, nothing is cached.

        Yields:
            Each step when it is done.
        """
        model = self.initial_model()
        with frozen(self.left_alone(model)):
            yield from fine_tuning_steps(
                model,
                self.documents,
                self.lengths(),
                self.mean_loss,
                self.fine_tuning(),
                seed=int(self.options["seed"]),
            )

    @property
    def documents(self) -> MapDataset:
        """What the model is trained on: the training set, whatever part of a document one of its rows is."""
        return self._train

    def lengths(self) -> list[int]:
        """Return the number of tokens of each document."""
        return [self.length(self.documents[row]) for row in range(len(self.documents))]

    def _data_digest(self) -> str:
        hasher = blake3()
        for row in range(len(self.documents)):
            example = self.documents[row]
            tokens = sorted((key, list(ids)) for key, ids in example.tokens.items())
            hasher.update(repr((tokens, example.label)).encode())
        return hasher.hexdigest()
