"""Pancreatic-tumour masks from abdominal MR volumes. Not for clinical use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pantherseg.errors import (
    DeviceError,
    DeviceMemoryError,
    DownloadError,
    Float16Error,
    InputError,
    JobError,
    LostDeviceError,
    ModelError,
    OptionError,
    OutputError,
    PantherSegError,
    RecipeError,
    UploadError,
)

__all__ = [
    "DeviceError",
    "DeviceMemoryError",
    "DownloadError",
    "Float16Error",
    "InputError",
    "JobError",
    "LostDeviceError",
    "ModelError",
    "OptionError",
    "OutputError",
    "PantherSegError",
    "Recipe",
    "RecipeError",
    "UploadError",
    "Volume",
    "__version__",
    "load",
    "read_volume",
    "segment",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pantherseg.api import load, read_volume, segment
    from pantherseg.recipe import Recipe
    from pantherseg.volume import Volume
else:
    # Imported on first use: these import numpy and the libraries that read volumes and run networks.
    _MODULES = {"load": "api", "read_volume": "api", "segment": "api", "Recipe": "recipe", "Volume": "volume"}

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
