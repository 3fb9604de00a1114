"""Every error that Sagittal raises on purpose.

    SagittalError
    ├── ReadError (ValueError)        a file cannot be read, or holds less than it must
    ├── GeometryError (ValueError)    positions, spacings or grids that do not fit
    ├── MaskError (ValueError)        masks that do not fit each other
    ├── DataError (ValueError)        files are readable, but the data set cannot answer the question
    ├── ScopeError (ValueError)       a study lies outside what the model was made for
    ├── ConfigError (ValueError)      an option, a plan or a file of options is wrong
    ├── BudgetError (ValueError)      the time budget cannot hold what was asked
    ├── PackageError (ValueError)     a model on disk is damaged, unsafe or too new
    ├── ResourceError (OSError)       memory, disk or device is missing
    ├── MissingPackageError (ImportError)   an optional package is not installed
    └── ServeError (RuntimeError)     the service cannot start or go on

Messages name the case, never the patient; they say what was found, what was expected and what to do.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class SagittalError(Exception):
    """Base of every error that Sagittal raises on purpose."""


class ReadError(SagittalError, ValueError):
    """A file cannot be read, or holds less than it must."""


class GeometryError(SagittalError, ValueError):
    """Positions, spacings or grids that do not fit."""


class MaskError(SagittalError, ValueError):
    """Masks that do not fit each other."""


class DataError(SagittalError, ValueError):
    """The files are readable, but the data set cannot answer the question."""


class ScopeError(SagittalError, ValueError):
    """A study lies outside what the model was made for."""


class ConfigError(SagittalError, ValueError):
    """An option, a plan or a file of options is wrong."""


class BudgetError(SagittalError, ValueError):
    """The time budget cannot hold what was asked."""


class PackageError(SagittalError, ValueError):
    """A model on disk is damaged, unsafe or of a newer format."""


class ResourceError(SagittalError, OSError):
    """Memory, disk space or a device is missing."""


class MissingPackageError(SagittalError, ImportError):
    """An optional package is not installed."""


class ServeError(SagittalError, RuntimeError):
    """The service cannot start or go on."""


def require(module: str, *, feature: str, extra: str) -> ModuleType:
    """Import an optional package inside the function that needs it.

    Parameters
    ----------
    module : str
        Dotted name to import, such as ``"captum.attr"``.
    feature : str
        What the user asked for, in words, for the message.
    extra : str
        The extra of the distribution that installs the package.

    Raises
    ------
    MissingPackageError
        If the package cannot be imported; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".", maxsplit=1)[0]
        raise MissingPackageError(
            f"{feature} needs the package '{package}', which cannot be imported ({error}). "
            f"Install it with: pip install 'sagittal[{extra}]'"
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the known name nearest to a mistyped one, or lists the known ones.

    >>> nearest("pacth", ["patch", "batch"])
    "Did you mean 'patch'?"
    >>> nearest("zzz", ["patch", "batch"])
    'Known: batch, patch.'
    """
    names = sorted(set(known))
    lower = {n.lower(): n for n in reversed(names)}
    match = difflib.get_close_matches(name.lower(), list(lower), n=1)
    if match:
        return f"Did you mean '{lower[match[0]]}'?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"Known: {shown}." if names else "There are none."
