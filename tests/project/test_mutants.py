"""The nightly run of mutants names modules and tests that are there."""

from __future__ import annotations

from root import ROOT


def test_every_module_that_is_mutated_has_mutants_and_tests(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.mutants import TESTS, mutants

    for module, tests in TESTS.items():
        assert next(mutants(module), None) is not None
        assert all((ROOT / test).exists() for test in tests)
