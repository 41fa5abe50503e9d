"""Human ratings are read strictly, count for the latent and explanation they were given to, and correlate in a run."""

from __future__ import annotations

import asyncio
import csv
import re
from collections import Counter

import pytest
from fake_server import fake_server
from hypothesis import given, strategies as st
from planted_run import spec, truthful
from saeval_plugins.scorers.human import Human

import saeval
from saeval import InputError
from saeval.plugin import Explanation, LatentId
from saeval.testing.contracts import check_scorer
from saeval.testing.planted import planted_explanation
from saeval.testing.toys import PLANTED, context, make_examples


@pytest.fixture
def table(tmp_path):
    def write(*lines: str, encoding: str = "utf-8") -> Human:
        path = tmp_path / "ratings.csv"
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
        return Human(path=path)

    return write


def score(human, latent=0, explanation="a harbor", hookpoint="toy"):
    lent = context(latent=LatentId(hookpoint, latent))
    return asyncio.run(human.score(Explanation(text=explanation), make_examples(), lent))


def test_human_satisfies_the_contract(table):
    human = table("latent,rating", "0,3", "0,4")
    human.check()
    check_scorer(human)
    assert human.metrics[0].name == "rating" and (human.metrics[0].low, human.metrics[0].high) == (1, 4)


def test_score_is_the_mean_of_the_latents_ratings(table):
    human = table("latent,rating,rater", "3,4,ann", "7,1,ann", "3,2.5,bob", "3,1,bob")
    found = score(human, 3)
    assert found.values == {"rating": 2.5} and found.notes == {"ratings": 3, "raters": 2}
    assert score(human, 7).values == {"rating": 1.0}


def test_a_latent_without_ratings_is_skipped_with_the_reason(table):
    found = score(table("latent,rating", "3,4"), 5)
    assert found.status == "skipped" and "ratings.csv has no rating of latent toy/5" in found.reason


def test_ratings_of_another_hookpoint_do_not_count(table):
    human = table("latent,rating,hookpoint", "3,4,layers.0", "3,1,layers.1", "3,2,")
    assert score(human, 3, hookpoint="layers.0").values == {"rating": 3.0}
    assert score(human, 3, hookpoint="layers.1").values == {"rating": 1.5}


def test_ratings_of_another_explanation_do_not_count(table):
    human = table("latent,rating,explanation", "3,4,A Harbor ", '3,1,"ships, and more"', "5,2,")
    assert score(human, 3, " a harbor").values == {"rating": 4.0}
    assert score(human, 3, "Ships, and more").values == {"rating": 1.0}
    assert score(human, 3, "ships").status == "skipped"
    assert score(human, 5, "whatever").values == {"rating": 2.0}


def test_a_table_that_names_no_explanation_says_nothing_of_baselines(table):
    assert not table("latent,rating", "3,4").reads_explanation
    assert not table("latent,rating,explanation", "3,4,").reads_explanation
    assert table("latent,rating,explanation", "3,4,x").reads_explanation


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ((), "has no ratings"),
        (("latent,rating",), "has no ratings"),
        (("latent,score", "1,2"), "line 1: no column 'rating'"),
        (("a,b",), "no column 'latent' and no column 'rating'"),
        (("latent;rating", "1;2"), "no column 'latent'"),
        (("latent,rating,mood", "1,2,x"), "the column 'mood' is unknown"),
        (("latent,rating,latent", "1,2,3"), "twice"),
        (("latent,rating", "1,4", "1,5"), "line 3: the rating '5' is not a number from 1 to 4"),
        (("latent,rating", "1,0.9"), "line 2: the rating '0.9'"),
        (("latent,rating", "1,good"), "line 2: the rating 'good'"),
        (("latent,rating", "1,nan"), "line 2: the rating 'nan'"),
        (("latent,rating", "1,"), "line 2: the rating ''"),
        (("latent,rating", "x,1"), "line 2: the latent 'x'"),
        (("latent,rating", "-1,1"), "line 2: the latent '-1'"),
        (("latent,rating", "1.0,1"), "line 2: the latent '1.0'"),
        (("latent,rating", "1"), "line 2: 1 values for 2 columns"),
        (("latent,rating", "1,2,3"), "line 2: 3 values for 2 columns"),
        (("latent,rating", '1,"2'), "line 2: not CSV"),
        (("latent,rating,explanation", '1,2,"two', 'lines"', "1,9,x"), "line 4: the rating '9'"),
    ],
)
def test_malformed_tables_are_refused_with_the_line(table, lines, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        table(*lines).check()


def test_missing_and_foreign_files_are_refused(tmp_path, table):
    with pytest.raises(InputError, match="cannot be read"):
        Human(path=tmp_path / "nothing.csv").check()
    with pytest.raises(InputError, match="cannot be read"):
        Human(path=tmp_path).check()
    with pytest.raises(InputError, match="UTF-8"):
        table("latent,rating", "1,2é", encoding="latin-1").check()


def test_byte_order_mark_spaces_and_empty_lines_are_no_matter(table):
    human = table(" Latent, Rating", "", "3, 4 ", ",", encoding="utf-8-sig")
    assert score(human, 3).values == {"rating": 4.0}


def test_another_table_is_another_fingerprint(table):
    before = table("latent,rating", "3,4").fingerprint()
    assert table("latent,rating", "3,4").fingerprint() == before != table("latent,rating", "3,3").fingerprint()


@given(
    st.lists(st.lists(st.text(max_size=6) | st.sampled_from(["1", "2", "3", "4", "0", "5"]), max_size=4), max_size=5)
)
def test_whatever_a_table_holds_it_is_refused_or_its_ratings_are_in_range(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "ratings.csv"
    with path.open("w", encoding="utf-8", newline="", errors="replace") as file:
        csv.writer(file).writerows([["latent", "rating"], *rows])
    try:
        found = Human(path=path).ratings
    except InputError:
        return
    assert found and all(1 <= r.rating <= 4 and r.latent >= 0 for r in found)


def answer(messages: list[dict[str, str]]) -> str:
    """Explain, judge, and find intruders, truthfully."""
    windows = re.findall(r"^Window \d+: (.*)$", messages[-1]["content"], re.MULTILINE)
    if "intruder" not in messages[-1]["content"]:
        return truthful(messages)
    words = [set(re.findall(r"\w+", " ".join(re.findall("<<(.*?)>>", w)))) & set(PLANTED) for w in windows]
    common, _ = Counter(w for found in words for w in found).most_common(1)[0]
    return str(1 + next(i for i, found in enumerate(words) if common not in found))


@pytest.mark.slow
def test_run_shows_ratings_beside_the_other_scorers(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    lines = [f'{i},{1 + i % 4},"{planted_explanation(i)}"' for i in range(8) if i != 2]
    (tmp_path / "ratings.csv").write_text("latent,rating,explanation\n" + "\n".join(lines))
    (tmp_path / "plain.csv").write_text("latent,rating\n0,1\n1,4\n")
    scorers = {
        "detection": {},
        "fuzzing": {"with": {"negatives": "active"}},
        "intruder": {},
        "human": {"with": {"path": str(tmp_path / "ratings.csv")}},
        "plain": {"use": "human", "with": {"path": str(tmp_path / "plain.csv")}},
    }
    with fake_server(answer) as server:
        made = spec(server, scorers=scorers, latents={"n": 8, "min_windows": 20}, run={"max_failed": 0.05})
        result = saeval.run(made, out=tmp_path / "run")
    assert saeval.read(tmp_path / "run") == result
    (cell,) = result.cells
    rows = {(r.scorer, r.variant): r for r in reversed(cell.scores)}
    own = {scorer: rows[scorer, "explanation"] for scorer in scorers}
    assert [own[s].value for s in ("detection", "fuzzing", "intruder")] == [1.0, 1.0, 1.0]
    assert {v for s, v in rows if s in ("intruder", "plain")} == {"explanation"}, "they do not read the explanation"
    assert own["intruder"].floor == {"chance": 0.2} and own["intruder"].lift is None
    assert rows["fuzzing", "shuffled_explanation"].value == pytest.approx(0.5, abs=0.1)

    human = own["human"]
    assert (human.n, human.tried, human.failed, human.skipped, human.coverage) == (7, 8, 0, 1, 7 / 8)
    assert human.value == pytest.approx(sum(1 + i % 4 for i in range(8) if i != 2) / 7)
    assert (own["plain"].n, own["plain"].skipped) == (2, 6)
    assert not [w for w in result.warnings if "human" in w or "plain" in w], "skipped is not failed"
    random = rows["human", "random_explanation"]
    assert (random.n, random.failed, random.skipped, random.value) == (0, 0, 8, None)

    assert own["detection"].explanation_words == 3.0  # the word 'harbor'
    assert random.explanation_words is None and rows["detection", "top_tokens"].explanation_words is not None
    deciles = {d.scorer: d for d in cell.deciles}
    assert deciles.keys() == {"detection", "fuzzing", "intruder"}
    assert deciles["detection"].n == (16,) * 10 and deciles["detection"].right == (1.0,) * 10
    assert (deciles["detection"].negatives_n, deciles["detection"].negatives_right) == (160, 1.0)
    assert sum(deciles["fuzzing"].n) == deciles["fuzzing"].negatives_n
    assert sum(deciles["intruder"].n) == 32 and deciles["intruder"].negatives_n == 0
    correlations = {c.scorers: c for c in cell.correlations}
    assert len(correlations) == 10 and result.correlations == cell.correlations
    assert correlations["detection", "human"].n == 7 and correlations["detection", "human"].pearson is None
    assert correlations["human", "plain"].n == 2 and correlations["human", "plain"].spearman is None
    report = (tmp_path / "run" / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Judged correctly, by decile" in report and "1.000 (16)" in report and "– (7)" in report
