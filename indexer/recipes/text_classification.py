"""text-classification: a Hugging Face sequence classifier on sentences or sentence pairs, labels from a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from indexer.fine_tuning import FineTuning, fine_tune
from indexer.recipe import UNLABELLED, MapDataset, OptionValue, RecipeDataError, RecipeOptionError
from indexer.recipes.attention import bidirectional_mask, takes_prepared_masks
from indexer.recipes.pair_matching import matching_pairs, matching_settings
from indexer.recipes.pretrained import load_config, transformers_library
from indexer.recipes.text_examples import Rows, TextExample, joined_names, split_names, text_of
from indexer.recipes.text_recipe import TextRecipe
from indexer.recipes.text_tables import TextTable

_NO_LABEL = (None, "", UNLABELLED, str(UNLABELLED))


class TextClassification(TextRecipe):
    """AutoModelForSequenceClassification on one or two text columns.

    A model that is already a classifier is used as it is; an encoder gets a fresh head and needs ``epochs``. Labels are
    numbers, or names in the order of the option ``labels``, else of the model's id2label, else of the data set's
    ClassLabel feature, else sorted.
    """

    name = "text-classification"
    task = "SEQ_CLS"
    option_defaults: ClassVar[Mapping[str, OptionValue]] = {
        **TextRecipe.option_defaults,
        "label": "label",
        "labels": "",
        "matching_epochs": 0,
    }

    @property
    def auto_class(self) -> Any:  # noqa: D102
        return transformers_library().AutoModelForSequenceClassification

    def config_changes(self) -> dict[str, Any]:  # noqa: D102
        names = self.label_names
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            # Decoders find an example's last token by it. A model that has one may take its positions from it.
            **({"pad_token_id": self.tokenizer.pad_id} if self._own_pad_id is None else {}),
        }

    @property
    def pad_id(self) -> int:  # noqa: D102
        return self.tokenizer.pad_id if self._own_pad_id is None else self._own_pad_id

    @cached_property
    def _own_pad_id(self) -> int | None:
        own, size = (getattr(self._config, name, None) for name in ("pad_token_id", "vocab_size"))
        return own if isinstance(own, int) and 0 <= own < (size or own + 1) else None

    @cached_property
    def _config(self) -> Any:
        return load_config("model", self.source, download=self.data_dir is not None)

    # Labels

    @cached_property
    def label_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the labels 0, 1, ….

        Raises:
            RecipeOptionError: If there are fewer than two, or not as many as the model has outputs.
        """
        given = split_names(str(self.options["labels"]))
        own = self._classifier_labels
        if given and own is not None and len(given) != len(own):
            raise RecipeOptionError(
                f"option 'labels' names {len(given)} labels, the model has {len(own)}: {', '.join(own)}"
            )
        if not given:
            given = own if own is not None else self._labels_of_the_data()
            self.options = {**self.options, "labels": joined_names(given)}
        if len(given) < 2 or len(set(given)) != len(given):
            raise RecipeOptionError(f"labels must be at least two different names, got {', '.join(given) or 'none'}")
        return given

    @cached_property
    def _classifier_labels(self) -> tuple[str, ...] | None:
        # id2label of a model that was saved as a classifier; None for a bare encoder, whose config names two by default
        config = self._config
        if not any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
            return None
        return tuple(str(config.id2label[number]) for number in sorted(config.id2label))

    def _labels_of_the_data(self) -> tuple[str, ...]:
        table, column = self.train_table, str(self.options["label"])
        table.check_columns([column])
        if column in table.class_names:
            return table.class_names[column]
        values = {row[column] for row in table.rows} - set(_NO_LABEL)
        if all(isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) for value in values):
            return tuple(str(number) for number in range(1 + max((int(value) for value in values), default=0)))
        return tuple(sorted(str(value) for value in values))

    def _label_of(self, table: TextTable, row: int) -> int:
        column = str(self.options["label"])
        if column not in table.columns:
            if table is self.train_table:
                table.check_columns([column])
            return UNLABELLED
        value = table.rows[row][column]
        if value in _NO_LABEL:
            return UNLABELLED
        names = self.label_names
        if isinstance(value, int) and column in table.class_names:
            value = self._of_class_label(table, column, value, row)
        if str(value) in names:
            return names.index(str(value))
        number = int(value) if isinstance(value, int) or str(value).isdecimal() else -1
        if not 0 <= number < len(names):
            raise RecipeDataError(
                f"{table.path}: column {column!r} holds {value!r} in row {row}, none of {', '.join(names)}; say the "
                "names in the model's order with --option labels=A,B,…"
            )
        return number

    def _of_class_label(self, table: TextTable, column: str, value: int, row: int) -> str | int:
        # A number of a ClassLabel column stands for a name, which the model may have under another number.
        own, names = table.class_names[column], self.label_names
        if not 0 <= value < len(own):
            return value
        if sorted(own) == sorted(names):
            return own[value]
        folded = [name.casefold() for name in names]
        if sorted(folded) == sorted(name.casefold() for name in own):
            return names[folded.index(own[value].casefold())]
        if any(name.casefold() in folded for name in own):
            raise RecipeDataError(
                f"{table.path}: column {column!r} has the classes {', '.join(own)}, the model {', '.join(names)}: only "
                f"some are the same, so it cannot be told what {value} in row {row} is. Name the model's labels, in "
                "its order, as the column does: --option labels=…"
            )
        return value

    # Examples

    def examples(self, table: TextTable, split: str) -> MapDataset:  # noqa: D102
        table.check_columns(self.columns)
        if len(self.columns) > 2:
            raise RecipeOptionError(f"option 'columns': {', '.join(self.columns)}: a classifier reads one or two texts")
        marks = self.tokenizer.num_special(len(self.columns))
        if self.max_length < marks + len(self.columns):
            raise RecipeOptionError(
                f"option 'max_length': {self.max_length} leaves nothing of {' and '.join(self.columns)}: "
                f"{marks} tokens are the tokenizer's own marks, so it must be at least {marks + len(self.columns)}"
            )

        def example(row: int) -> TextExample:
            texts = {column: text_of(table, row, column) for column in self.columns}
            label = self._label_of(table, row)
            columns = self.row_columns(table, row, [str(self.options["label"])])
            columns["label_name"] = None if label == UNLABELLED else self.label_names[label]
            return TextExample(self.tokenizer.encode(*texts.values()), label, texts, columns, self.row_name(table, row))

        return Rows(len(table.rows), example)

    def parse(self, content: Mapping[str, Any]) -> TextExample:
        """Read the text columns: ``{"sentence1": "…", "sentence2": "…"}``, say.

        Args:
            content: The JSON object.

        Returns:
            The example, with label −1.
        """
        texts = self.texts_of(content)
        return TextExample(self.tokenizer.encode(*texts.values()), UNLABELLED, texts, {})

    # The model

    def check_options(self) -> None:  # noqa: D102
        super().check_options()
        if int(self.options["matching_epochs"]) < 0:
            raise RecipeOptionError(f"option 'matching_epochs': {self.options['matching_epochs']} must be at least 0")
        if int(self.options["matching_epochs"]) and not self.options["epochs"]:
            raise RecipeOptionError("matching_epochs is a warm-up before fine-tuning: give --option epochs=3 or so too")
        untrained = self.options["model"] and not self.options["epochs"] and not self.options["adapter"]
        if untrained and self._classifier_labels is None:
            raise RecipeOptionError(
                f"option 'model': {self.options['model']!r} is an encoder without a classification head; fine-tune it "
                "with --option epochs=5 or so, or name a model that is a classifier"
            )

    def _ready(self, model: nn.Module) -> nn.Module:
        self._prepared_masks = takes_prepared_masks(model, self.max_length)
        return model

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Run the classifier; vmap refuses transformers' own masks, so they are made here where the model takes them.

        Args:
            model: The model.
            inputs: What :meth:`collate` gave.

        Returns:
            What the model returns, with ``.logits``.
        """
        if self._prepared_masks:
            inputs = {**inputs, "attention_mask": bidirectional_mask(inputs["attention_mask"])}
        return model(**inputs)

    def mean_loss(self, model: nn.Module, examples: Sequence[TextExample]) -> Tensor:
        """Return the mean cross-entropy of those of some examples that have a label; 0 where none has."""
        inputs, labels = self.collate(examples)
        logits: Tensor = self.call(model, inputs).logits
        if bool((labels == UNLABELLED).all()):
            return 0.0 * logits.sum()  # a mean over nothing would be NaN, and end the training
        return nn.functional.cross_entropy(logits, labels, ignore_index=UNLABELLED)

    def check_documents(self) -> None:
        """Refuse to fine-tune on rows of which none has a label.

        Raises:
            RecipeDataError: If none has.
        """
        if all(self.documents[row].label == UNLABELLED for row in range(len(self.documents))):
            raise RecipeDataError(
                f"{self.train_table.path}: no row has a label, and fine-tuning needs some. Name the column with "
                "--option label=…, or a model that is trained already with --option epochs=0"
            )

    def left_alone(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the embeddings: half of a small encoder's weights, which a few thousand examples hardly move."""
        modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        return [parameter for module in modules for parameter in module.parameters()]

    def warm_up_options(self) -> Mapping[str, OptionValue]:  # noqa: D102
        return {"matching_epochs": self.options["matching_epochs"]}

    def warm_up(self, model: nn.Module, settings: FineTuning) -> None:
        """Learn for ``matching_epochs`` which texts belong together (`pair_matching.py`).

        Args:
            model: Trained in place.
            settings: How it will be fine-tuned.

        Raises:
            RecipeOptionError: If the examples are not pairs.
        """
        epochs, seed = int(self.options["matching_epochs"]), int(self.options["seed"])
        if not epochs:
            return
        if len(self.columns) != 2:
            raise RecipeOptionError(f"matching_epochs needs two text columns, there is {', '.join(self.columns)}")
        first, second = self.columns
        texts = [(row[first], row[second]) for row in self.train_table.rows]
        pairs = matching_pairs(texts, self.tokenizer, seed)
        lengths = [self.length(pair) for pair in pairs]
        fine_tune(
            model,
            pairs,
            lengths,
            self.mean_loss,
            matching_settings(settings, epochs),
            seed=seed,
            name=f"{self.name} to match pairs",
        )

    def representation(self, model: nn.Module, inputs: Any) -> Tensor | None:
        """Return what the last linear layer of the head reads, None where that is more than one vector an example."""
        heads = [
            module
            for module in model.modules()
            if isinstance(module, nn.Linear) and module.out_features == len(self.label_names)
        ]
        if not heads:
            return None
        read: list[Tensor] = []
        handle = heads[-1].register_forward_pre_hook(lambda _, given: read.append(given[0].detach()))
        try:
            with torch.no_grad():
                self.call(model, inputs)
        finally:
            handle.remove()
        return read[-1] if read and read[-1].ndim == 2 else None


RECIPE = TextClassification
