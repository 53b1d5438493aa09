r"""causal-lm: a causal language model on texts; what is explained is how likely it finds a text, or one token of it.

The scalar of a sequence is the sum of its tokens' log-odds, that of a token (``unit=token``) is its own:

.. math:: f = \sum_{t>1} \log \frac{p_t}{1 - p_t}, \qquad p_t = p(x_t \mid x_{<t})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from indexer.recipe import UNLABELLED, MapDataset, OptionValue, RecipeDataError, RecipeInputError, RecipeOptionError
from indexer.recipes.pretrained import model_of_config, model_source, transformers_library
from indexer.recipes.text_examples import Rows, TextExample, Tokenizer, text_of, texts_of_content
from indexer.recipes.text_recipe import TextRecipe
from indexer.recipes.text_tables import TextTable
from indexer.training import seeded

NEW_MODEL = "new"
_CAUSAL_PROBE_TOKENS = 4


class CausalLanguageModel(TextRecipe):
    """AutoModelForCausalLM on one text a row: the text columns joined by a space.

    ``model=new`` makes a small GPT-2 of ``width``, ``depth`` and ``heads`` and trains it on the table from nothing; it
    needs a ``tokenizer`` and ``epochs``. With ``unit=token`` every token but the first of a text is a row of its own:
    its label is the token, its measurements are those of a classifier over the vocabulary.
    """

    name = "causal-lm"
    task = "CAUSAL_LM"
    option_defaults: ClassVar[Mapping[str, OptionValue]] = {
        **TextRecipe.option_defaults,
        "unit": "sequence",
        "tokenizer": "",
        "width": 64,
        "depth": 2,
        "heads": 2,
    }

    def check_options(self) -> None:  # noqa: D102
        super().check_options()
        options = self.options
        if options["unit"] not in ("sequence", "token"):
            raise RecipeOptionError(f"option 'unit': {options['unit']!r} must be sequence or token")
        if options["model"] == NEW_MODEL:
            if not options["tokenizer"] or not options["epochs"]:
                raise RecipeOptionError(
                    "model=new is trained from nothing: say with which tokenizer and for how many epochs, "
                    "--option tokenizer=… --option epochs=…"
                )
            width, heads = int(options["width"]), int(options["heads"])
            if min(width, heads, int(options["depth"])) < 1 or width % heads:
                raise RecipeOptionError(
                    f"options width {width}, heads {heads}, depth {options['depth']}: all from 1, and the heads must "
                    "divide the width"
                )

    @property
    def auto_class(self) -> Any:  # noqa: D102
        return transformers_library().AutoModelForCausalLM

    def config_changes(self) -> dict[str, Any]:  # noqa: D102
        return {"use_cache": False}

    @property
    def measurement(self) -> Callable[..., Tensor] | None:  # type: ignore[override]
        """The scalar of a sequence; a token's measurements are the built-in ones."""
        return None if self._by_token else _itself

    default_measurement = "margin"  # of a token: its log-odds

    @property
    def _by_token(self) -> bool:
        return self.options["unit"] == "token"

    # Examples

    @cached_property
    def tokenizer(self) -> Tokenizer:  # noqa: D102
        given = str(self.options["tokenizer"])
        if given:
            return self.load_tokenizer("tokenizer", model_source("tokenizer", given))
        return self.load_tokenizer("model", self.source)

    def documents_of(self, table: TextTable) -> Rows:
        """Return the texts of a table, whole.

        Args:
            table: The table.

        Returns:
            One example a row.
        """

        def whole(row: int) -> TextExample:
            texts = {column: text_of(table, row, column) for column in self.columns}
            tokens = self._tokens(" ".join(texts.values()))
            if len(tokens["input_ids"]) < 2:
                raise RecipeDataError(f"{table.path}: row {row} has fewer than two tokens, so none has a probability")
            return TextExample(tokens, UNLABELLED, texts, self.row_columns(table, row, []), self.row_name(table, row))

        table.check_columns(self.columns)
        return Rows(len(table.rows), whole)

    @property
    def documents(self) -> Rows:
        """The texts, whole: the same model is trained whatever a row of the index is."""
        return self.documents_of(self.train_table)

    def examples(self, table: TextTable, split: str) -> MapDataset:  # noqa: D102
        whole = self.documents_of(table)
        if not self._by_token:
            return whole
        # starts[row]: tokens that have a probability in the rows before; a text of t tokens has t − 1 of them
        starts = list(accumulate((self.length(document) - 1 for document in whole), initial=0))
        rows = [row for row in range(len(table.rows)) for _ in range(starts[row + 1] - starts[row])]

        def one_token(position: int) -> TextExample:
            row = rows[position]
            example = whole[row]
            name = f"{split}:{row}" if example.name is None else example.name
            return self._at_token(example, position - starts[row] + 1, name, {"document": row})

        return Rows(starts[-1], one_token)

    def _tokens(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self.tokenizer.encode(text)["input_ids"]}

    def _at_token(self, example: TextExample, place: int, name: str | None, columns: Mapping[str, Any]) -> TextExample:
        # The model reads what comes before the token at this place; the token is the label.
        tokens = example.tokens["input_ids"]
        shown = {
            "text": self.tokenizer.decode(tokens[:place], special=False),
            "token": self.tokenizer.decode([tokens[place]]),
        }
        return TextExample(
            {"input_ids": tokens[:place]},
            tokens[place],
            shown,
            {**example.columns, **columns, "place": place, "token": shown["token"]},
            None if name is None else f"{name}@{place}",
        )

    def parse(self, content: Mapping[str, Any]) -> TextExample:
        """Read the text columns; with ``unit=token``, ``{"text": "…"}``, of which the last token is asked about.

        Args:
            content: The JSON object.

        Returns:
            The example; its label is −1, or the last token.

        Raises:
            RecipeInputError: If the text has fewer than two tokens.
        """
        if self._by_token:
            return self._parse_token(content)
        texts = self.texts_of(content)
        tokens = self._tokens(" ".join(texts.values()))
        if len(tokens["input_ids"]) < 2:
            raise RecipeInputError("the text has fewer than two tokens", allowed="a text of two tokens or more")
        return TextExample(tokens, UNLABELLED, texts, {})

    def _parse_token(self, content: Mapping[str, Any]) -> TextExample:
        tokens = self.tokenizer.without_last_special(
            self._tokens(texts_of_content(content, ["text"])["text"])["input_ids"]
        )
        if len(tokens) < 2:
            raise RecipeInputError(
                "nothing stands before the text's last token", pointer="/text", allowed="a text of two tokens or more"
            )
        whole = TextExample({"input_ids": tokens}, UNLABELLED, {}, {})
        return self._at_token(whole, len(tokens) - 1, None, {})

    # The model

    def base_model(self) -> nn.Module:  # noqa: D102
        return self.base_architecture() if self.options["model"] == NEW_MODEL else super().base_model()

    def _num_positions(self) -> int | None:
        return None if self.options["model"] == NEW_MODEL else super()._num_positions()

    def base_architecture(self) -> nn.Module:  # noqa: D102
        if self.options["model"] != NEW_MODEL:
            return super().base_architecture()
        tokenizer, options = self.tokenizer.tokenizer, self.options
        config = transformers_library().GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=self.max_length,
            n_embd=int(options["width"]),
            n_layer=int(options["depth"]),
            n_head=int(options["heads"]),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_id,
            **self.config_changes(),
        )
        with seeded(int(options["seed"])):
            return model_of_config(config, self.auto_class)

    def _ready(self, model: nn.Module) -> nn.Module:
        # What a token is measured by is what the model says before it has read the token.
        first = torch.arange(1, _CAUSAL_PROBE_TOKENS + 1)[None]
        other = first.clone()
        other[0, -1] = 1
        mask = torch.ones_like(first)
        with torch.no_grad():
            one, two = (model(input_ids=tokens, attention_mask=mask).logits[:, :-1] for tokens in (first, other))
        if not torch.allclose(one, two, rtol=1e-4, atol=1e-5):
            raise RecipeOptionError(
                f"option 'model': {self.options['model']!r} does not read from left to right: the last token of a text "
                "changes what it says of those before, so it gives no p(token | tokens before it). Name a causal "
                "language model, such as a GPT-2; encoders such as BERT are none"
            )
        return model

    def call(self, model: nn.Module, inputs: Any) -> Tensor:
        """Return what is measured: log-odds of sequences ``[b]``, or logits at the tokens' places ``[b, V]``."""
        logits: Tensor = model(**inputs).logits
        mask = inputs["attention_mask"]
        if not self._by_token:
            odds = token_log_odds(logits[:, :-1], inputs["input_ids"][:, 1:])
            summed: Tensor = (odds * mask[:, 1:]).sum(1)
            return summed
        last = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, logits.shape[2])
        at_place: Tensor = logits.gather(1, last).squeeze(1)
        return at_place

    def mean_loss(self, model: nn.Module, examples: Sequence[TextExample]) -> Tensor:
        """Return the mean cross-entropy of all tokens of some examples."""
        return self.token_loss(model, self.collate(examples)[0])

    def token_loss(self, model: nn.Module, inputs: Any) -> Tensor:
        """Return the mean cross-entropy of all tokens of a collated batch."""
        logits, following = model(**inputs).logits[:, :-1], inputs["input_ids"][:, 1:]
        real = inputs["attention_mask"][:, 1:].bool()
        return nn.functional.cross_entropy(logits[real], following[real])


def token_log_odds(logits: Tensor, tokens: Tensor) -> Tensor:
    r"""Log-odds of each token, without cancellation: :math:`z_y - \log \sum_{c \ne y} e^{z_c}`.

    Args:
        logits: z before each token, shape [b, t, V].
        tokens: The tokens y, shape [b, t].

    Returns:
        Shape [b, t].
    """
    is_token = torch.arange(logits.shape[-1], device=logits.device) == tokens[..., None]
    own = logits.gather(-1, tokens[..., None]).squeeze(-1)
    log_odds: Tensor = own - logits.masked_fill(is_token, -torch.inf).logsumexp(-1)
    return log_odds


def _itself(outputs: Tensor, label: Tensor) -> Tensor:
    return outputs


RECIPE = CausalLanguageModel
