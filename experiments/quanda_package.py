"""Imports the parts of the quanda package that an explainer needs, and none of the others.

``import quanda`` imports wrappers of captum, traker, dattri and kronfluence, and networks of torchvision. captum 0.8
wants numpy below 2, this project 2 or newer, and the usual wheel of torchvision does not load beside a CPU build of
torch. The metrics and the base class of explainers use none of them.
"""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec

#: Packages whose own ``__init__`` imports what is not needed.
_SHELLS = ("quanda", "quanda.explainers")


def quanda_is_installed() -> bool:
    """Say whether quanda can be found."""
    return "quanda" in sys.modules or find_spec("quanda") is not None


def prepare_quanda() -> None:
    """Let ``quanda.metrics`` and ``quanda.explainers.base`` be imported without the rest; nothing where quanda is in.

    Raises:
        ModuleNotFoundError: If quanda is not installed; it says how to get an environment with it.
    """
    if "quanda" in sys.modules:
        return
    for name in _SHELLS:
        spec = find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(
                "quanda is not installed: experiments/README.md has the commands for an environment with it", name=name
            )
        sys.modules[name] = module_from_spec(spec)
    # Explainers of quanda take their base class from the package.
    sys.modules["quanda.explainers"].__dict__["Explainer"] = import_module("quanda.explainers.base").Explainer
