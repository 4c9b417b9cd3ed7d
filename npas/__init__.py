"""Train any PyTorch network inside a fixed parameter budget.

    model = npas.share(torchvision.models.resnet50(), budget=0.1)

Names are imported when they are first used, so that `import npas` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npas import sharing as sharing
    from npas.cli.from_python import train
    from npas.reporting.hub import from_pretrained, push_to_hub, save_pretrained
    from npas.sharing import (
        Allocation,
        Packing,
        count_parameters,
        distillation_loss,
        fold,
        is_shared,
        load,
        materialize,
        param_groups,
        parse_budget,
        plan,
        read_artifact,
        save,
        share,
        similarity,
        summary,
        weight_errors,
        write_artifact,
    )
    from npas.sharing.api import allocation
    from npas.sharing.generators.schemes import register_scheme
    from npas.training.huggingface import BudgetCallback
    from npas.utils.plugins import register_model, register_task

__all__ = [
    "Allocation",
    "BudgetCallback",
    "Packing",
    "allocation",
    "count_parameters",
    "distillation_loss",
    "fold",
    "from_pretrained",
    "is_shared",
    "load",
    "materialize",
    "param_groups",
    "parse_budget",
    "plan",
    "push_to_hub",
    "read_artifact",
    "register_model",
    "register_scheme",
    "register_task",
    "save",
    "save_pretrained",
    "share",
    "similarity",
    "summary",
    "train",
    "weight_errors",
    "write_artifact",
]


def __getattr__(name: str) -> Any:
    if name == "sharing":
        return import_module("npas.sharing")
    if name == "__version__":
        from importlib.metadata import version

        return version("npas")
    if name == "BudgetCallback":  # a class of transformers', which is imported for it alone
        return import_module("npas.training.huggingface").BudgetCallback
    if name == "train":
        return import_module("npas.cli.from_python").train
    if name in ("from_pretrained", "push_to_hub", "save_pretrained"):
        return getattr(import_module("npas.reporting.hub"), name)
    if name == "allocation":
        return import_module("npas.sharing.api").allocation
    if name == "register_scheme":  # by itself, without the rest of sharing's face
        return import_module("npas.sharing.generators.schemes").register_scheme
    if name.startswith("register_") and name in __all__:
        return getattr(import_module("npas.utils.plugins"), name)
    if name in __all__:
        return getattr(import_module("npas.sharing"), name)
    raise AttributeError(f"module 'npas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__", "sharing"]
