"""LoRA adapters on a text model: put on new, or loaded from a folder, so that only they have Jacobians.

The adapted model's frozen weights require no gradient, and the choice of parameters (`indexer/parameters.py`) leaves
such weights out; nothing else has to know that a model is adapted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from torch import nn

from indexer.recipe import RecipeError, RecipeOptionError

Task = Literal["SEQ_CLS", "CAUSAL_LM"]


def new_adapters(model: nn.Module, rank: int, task: Task) -> nn.Module:
    """Put LoRA adapters on every linear layer of a model but its head; a classification head is trained with them.

    An adapted layer computes W x + (α / r) B A x with α = 2 r; A is drawn from torch's generator, B is 0, so that the
    adapted model starts as the model it was.

    Args:
        model: The model; its weights are frozen.
        rank: r, at least 1.
        task: What the model does.

    Returns:
        The adapted model in eval mode.
    """
    peft = _peft()
    config = peft.LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    with _without_its_warnings():
        adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted.eval()


def load_adapters(model: nn.Module, folder: str) -> nn.Module:
    """Put adapters on a model that PEFT's ``save_pretrained`` wrote.

    Args:
        model: The model they were trained on.
        folder: Their folder, with adapter_config.json and adapter_model.safetensors.

    Returns:
        The adapted model in eval mode, the adapters requiring gradients.

    Raises:
        RecipeOptionError: If the folder holds no adapters in the safetensors format.
        RecipeError: If they do not fit the model.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(folder) / name).is_file():
            raise RecipeOptionError(
                f"option 'adapter': {folder!r} has no {name}; give a folder that PEFT's save_pretrained wrote"
            )
    peft = _peft()
    try:
        with _without_its_warnings():
            # peft draws at random what the folder lacks, and warns
            warnings.filterwarnings("error", message=".*missing adapter keys", category=UserWarning)
            # is_trainable, or the adapters would count as frozen like everything else
            adapted: nn.Module = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
    except (RuntimeError, ValueError, TypeError, UserWarning) as error:
        raise RecipeError(f"option 'adapter': {folder!r} does not fit the model: {error}") from error
    return adapted.eval()


def adapter_weights(folder: str) -> set[str]:
    """Return the names of a model's own parameters that adapters bring whole, such as a classification head.

    Args:
        folder: What `load_adapters` has loaded.

    Returns:
        Names as the model without adapters has them.
    """
    with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
        names: list[str] = file.keys()
    return {name.removeprefix("base_model.model.").replace(".modules_to_save", "") for name in names}


def _peft() -> Any:
    try:
        with _without_its_warnings():
            import peft
    except ImportError as error:
        raise RecipeError(f"adapters need peft ({error}); install the extra: pip install 'nattribute[lora]'") from error
    return peft


@contextmanager
def _without_its_warnings() -> Iterator[None]:
    # peft reads attributes that transformers is about to rename; nothing that a user could act on
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
