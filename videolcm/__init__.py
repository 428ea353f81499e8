"""VideoLCM: few-step video generation by latent consistency. `load` a model, make a `Request`, iterate `generate`.

Names are imported when they are first used, so that `import videolcm` costs next to nothing and a page can open before torch is there.
"""

from importlib import import_module

NAMES = {"errors": ("AppError",), "models": ("list_models", "load"), "pipeline": ("Progress", "Request", "Result", "generate", "save")}
MODULES = ("distill", "models", "sampling", "schedule")
WHERE = {name: module for module, names in NAMES.items() for name in names}
__all__ = [*WHERE, *MODULES]


def __getattr__(name):
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    if name in WHERE:
        return getattr(import_module(f"{__name__}.{WHERE[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
