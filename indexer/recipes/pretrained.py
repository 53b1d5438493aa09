"""Where a Hugging Face model comes from: a folder, an installed package that holds one, or a name; offline first.

Weights are safetensors only, code that comes with a model never runs, attention is always eager: the only kind that
torch.func can differentiate example by example.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from indexer.recipe import RecipeError, RecipeOptionError

Loaded = TypeVar("Loaded")
PACKAGE_PREFIX = "package:"
_MOST_UNUSED_POSITIONS = 8
"""Positions of a model's table that no token of a text gets, at most: RoBERTa's kind leaves two."""


def transformers_library() -> Any:
    """Import transformers, which only the text recipes need.

    Returns:
        The module.

    Raises:
        RecipeError: If it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise RecipeError(
            f"text recipes need transformers ({error}); install the extra: pip install 'nattribute[text]'"
        ) from error
    return transformers


def model_source(option: str, given: str) -> str:
    """Resolve what an option says about where a model or tokenizer is.

    Args:
        option: Name of the option, for the message.
        given: A folder; ``package:NAME/FOLDER``, a folder inside an installed Python package, which is not imported;
            or a name on the Hugging Face hub.

    Returns:
        The folder, or the name as it is.

    Raises:
        RecipeOptionError: If nothing is given, or the folder or package does not exist.
    """
    allowed = "a folder, package:NAME/FOLDER for one inside an installed Python package, or a Hugging Face name"
    if not given:
        raise RecipeOptionError(f"say which with --option {option}=…: {allowed}")
    if given.startswith(PACKAGE_PREFIX):
        package, _, inside = given.removeprefix(PACKAGE_PREFIX).partition("/")
        try:
            found = importlib.util.find_spec(package) if package.isidentifier() else None
        except ValueError:
            found = None
        if found is None or not found.submodule_search_locations:
            raise RecipeOptionError(f"option {option!r}: {given!r}: no Python package {package!r} is installed here")
        folder = Path(next(iter(found.submodule_search_locations))) / inside
        if not folder.is_dir():
            raise RecipeOptionError(f"option {option!r}: {given!r}: the package has no folder {inside!r}")
        return str(folder)
    if Path(given).is_dir():
        return given
    looks_like_a_path = given.startswith((".", "/", "~")) or given.count("/") > 1
    if looks_like_a_path:
        raise RecipeOptionError(f"option {option!r}: {given!r}: no such folder; allowed: {allowed}")
    return given


def load_offline_first(option: str, source: str, load: Callable[..., Loaded], *, download: bool) -> Loaded:
    """Load from what is on this machine; ask the hub only for a name that is not here, and only where that is allowed.

    Args:
        option: Name of the option, for the message.
        source: What :func:`model_source` gave.
        load: A ``from_pretrained`` bound to its other arguments; takes the source and ``local_files_only``.
        download: Whether the hub may be asked. Never for a service, which loads what an index names.

    Returns:
        What ``load`` gave.

    Raises:
        RecipeError: If it is not here, or is damaged, or not in the safetensors format.
    """
    with quiet_transformers():
        try:
            return load(source, local_files_only=True)
        except Exception as local:  # OSError, ValueError, ImportError, safetensors' own: all mean "not loadable here"
            if download and not Path(source).is_dir():
                try:
                    return load(source, local_files_only=False)
                except Exception as remote:
                    raise RecipeError(_refusal(option, source, remote)) from remote
            raise RecipeError(_refusal(option, source, local)) from local


def load_model(
    option: str, source: str, auto_class: Any, *, download: bool = True, **changes: Any
) -> tuple[nn.Module, list[str]]:
    """Load a pretrained model in float32 with eager attention; weights that the source lacks are drawn at random.

    Args:
        option: Name of the option, for messages.
        source: What :func:`model_source` gave.
        auto_class: Such as ``transformers.AutoModelForCausalLM``.
        download: Whether the hub may be asked.
        changes: Changes of the configuration, such as ``num_labels``.

    Returns:
        The model in eval mode, and the names of its parameters that the source has no weights of.
    """

    def load(source: str, *, local_files_only: bool) -> tuple[nn.Module, dict[str, Any]]:
        loaded: tuple[nn.Module, dict[str, Any]] = auto_class.from_pretrained(
            source,
            local_files_only=local_files_only,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            **changes,
        )
        return loaded

    model, found = load_offline_first(option, source, load, download=download)
    lacking = set(found["missing_keys"])
    return model.eval(), [name for name, _ in model.named_parameters() if name in lacking]


def load_config(option: str, source: str, *, download: bool = False, **changes: Any) -> Any:
    """Load a model's configuration.

    Args:
        option: Name of the option, for messages.
        source: What :func:`model_source` gave.
        download: Whether the hub may be asked.
        changes: Changes of the configuration, such as ``num_labels``.

    Returns:
        The configuration.
    """
    auto_class = transformers_library().AutoConfig

    def load(source: str, *, local_files_only: bool) -> Any:
        return auto_class.from_pretrained(source, local_files_only=local_files_only, trust_remote_code=False, **changes)

    return load_offline_first(option, source, load, download=download)


def model_of_config(config: Any, auto_class: Any) -> nn.Module:
    """Make a model of a configuration, with weights drawn from torch's generator, in float32 with eager attention.

    Args:
        config: The configuration.
        auto_class: Such as ``transformers.AutoModelForCausalLM``.

    Returns:
        The model in eval mode.
    """
    with quiet_transformers():
        model: nn.Module = auto_class.from_config(
            config, trust_remote_code=False, dtype=torch.float32, attn_implementation="eager"
        )
    return model.eval()


def num_positions(config: Any) -> int | None:
    """Return how many positions a configuration says that its model has; None where it says none."""
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def longest_read(model: nn.Module, num_tokens: int) -> int | None:
    """Find the longest text that a model with a table of positions can read.

    Args:
        model: A model of transformers, in eval mode.
        num_tokens: The most that will be asked of it.

    Returns:
        Tokens, at most ``num_tokens``; None where every length near its number of positions fails, for another reason.
    """
    positions = num_positions(getattr(model, "config", None))
    if positions is None or num_tokens <= positions - _MOST_UNUSED_POSITIONS:
        return num_tokens
    tried = [num_tokens, *range(min(positions, num_tokens - 1), positions - _MOST_UNUSED_POSITIONS - 1, -1)]
    return next((length for length in tried if length > 0 and _reads(model, length)), None)


def _reads(model: nn.Module, num_tokens: int) -> bool:
    # Of a token that is no filling: RoBERTa's kind gives filling no position of its own.
    filling = getattr(model.config, "pad_token_id", None)
    tokens = torch.full((1, num_tokens), 3 if filling != 3 else 4, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    except (IndexError, RuntimeError, ValueError, AssertionError):
        return False
    return True


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' load reports and bars off the terminal within the block, and restore its settings after it."""
    logging = transformers_library().utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _refusal(option: str, source: str, error: Exception) -> str:
    said = str(error).strip().partition("\n")[0]
    return (
        f"option {option!r}: nothing could be loaded from {source!r} ({type(error).__name__}: {said}). It must be a "
        "folder written by save_pretrained with safetensors weights, or a name that is in the local Hugging Face cache"
    )
