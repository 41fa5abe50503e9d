"""Rejects package releases that are known to be malicious before they are imported."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from saeval._util.errors import InputError

_MALICIOUS = {"litellm": (re.compile(r"1\.82\.[78]|1\.107\..*"), "'litellm>=1.83.7,<1.107'")}


def refuse_malicious(package: str) -> None:
    """Check that the installed release of a package is not known to be malicious.

    Args:
        package: Name of the package on PyPI.

    Raises:
        InputError: If it is.
    """
    pattern, instead = _MALICIOUS[package]
    try:
        installed = version(package)
    except PackageNotFoundError:
        return
    if pattern.fullmatch(installed):
        raise InputError(
            f"{package} {installed} is a malicious release that steals keys; remove it, change your keys, and "
            f"install {instead}"
        )
