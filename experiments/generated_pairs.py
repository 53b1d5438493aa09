"""A few generated pairs of sentences and a tiny classifier of them, for a smoke run of text that needs no files."""

from itertools import product
from pathlib import Path

from experiments.datasets import shuffled
from indexer.recipes.pretrained import quiet_transformers, transformers_library
from indexer.training import seeded

ANIMALS = ("cat", "dog", "bird", "mouse", "horse")
COLOURS = ("black", "white", "brown", "grey", "red", "young")
PLACES = ("mat", "roof", "table", "wall", "bridge")
_TRAIN, _DEV = 100, 40
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def write_generated_pairs(folder: Path) -> None:
    """Write ``train.tsv``, ``dev.tsv`` and ``model``, a BERT of one layer and 16 dimensions with random weights.

    A pair is "the grey cat sat on the roof" with "the cat was on the roof", which follows, or "… was under the roof".

    Args:
        folder: Where to; the same files every time.
    """
    pairs = list(product(ANIMALS, COLOURS, PLACES))
    chosen = [pairs[place] for place in shuffled(len(pairs), seed=0)[: _TRAIN + _DEV].tolist()]
    rows = []
    for number, (animal, colour, place) in enumerate(chosen):
        label, where = ("not_entailment", "under") if number % 2 else ("entailment", "on")
        rows.append(f"the {colour} {animal} sat on the {place}\tthe {animal} was {where} the {place}\t{label}\n")
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", rows[:_TRAIN]), ("dev", rows[_TRAIN:])):
        (folder / f"{name}.tsv").write_text("sentence1\tsentence2\tlabel\n" + "".join(some), encoding="utf-8")
    _write_model(folder / "model")


def _write_model(folder: Path) -> None:
    library = transformers_library()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors  # transformers needs it

    words = {
        word: number
        for number, word in enumerate((*_SPECIAL, "the", "sat", "was", "on", "under", *ANIMALS, *COLOURS, *PLACES))
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, words[word]) for word in ("[CLS]", "[SEP]")],
    )
    config = library.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    with quiet_transformers(), seeded(0):
        library.BertModel(config).save_pretrained(folder)
        library.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        ).save_pretrained(folder)
