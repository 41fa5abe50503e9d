"""Reads, merges and validates task specs, and expands their matrix."""

from __future__ import annotations

from saeval.task.spec.document import KeyPath, SpecDocument, override, parse_assignment, plain, read_document
from saeval.task.spec.matrix import axis_id, cells_of
from saeval.task.spec.models import (
    OF_ALL_LATENTS,
    SHUFFLED,
    CellFilter,
    FindingSpec,
    GroupSpec,
    LatentSelection,
    PartSpec,
    RoleSpec,
    RunOptions,
    Spec,
    score_reference,
)
from saeval.task.spec.validation import explain_error, parse, refuse_secrets

__all__ = [
    "OF_ALL_LATENTS",
    "SHUFFLED",
    "CellFilter",
    "FindingSpec",
    "GroupSpec",
    "KeyPath",
    "LatentSelection",
    "PartSpec",
    "RoleSpec",
    "RunOptions",
    "Spec",
    "SpecDocument",
    "axis_id",
    "cells_of",
    "explain_error",
    "override",
    "parse",
    "parse_assignment",
    "plain",
    "read_document",
    "refuse_secrets",
    "score_reference",
]
