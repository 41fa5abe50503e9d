"""The nightly run of mutants tells a module that is sound from one that is not."""

from __future__ import annotations

from root import ROOT


def test_every_module_that_is_mutated_has_mutants_and_tests(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.mutants import TESTS, mutants

    for module, tests in TESTS.items():
        assert next(mutants(module), None) is not None
        assert all((ROOT / test).exists() for test in tests)


def test_tests_kill_a_mutant_and_not_the_module_as_it_is(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.mutants import killed, mutants, unmutated

    module = "saeval._compare.natural"
    assert not killed(unmutated(module))
    assert killed(next(mutant for mutant in mutants(module) if " to Or in " in mutant.name or "Mult" in mutant.name))
