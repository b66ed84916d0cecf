"""What is new in the sources, and how it is said."""

import pytest

from models.source_versions import News, SourceVersion, all_digest, changes, versions_in


def version(digest: str, num_rows: int) -> SourceVersion:
    return SourceVersion(digest=digest, num_rows=num_rows, num_usable=num_rows)


BEFORE = {"mine": version("a", 10), "theirs": version("b", 5)}


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (BEFORE, []),
        ({**BEFORE, "third": version("c", 7)}, ["third is new (7 rows)"]),
        ({**BEFORE, "mine": version("z", 14)}, ["mine has 4 rows more (14)"]),
        ({**BEFORE, "mine": version("z", 10)}, ["mine has other rows (10, before 10)"]),
        ({**BEFORE, "mine": version("z", 8)}, ["mine has other rows (8, before 10)"]),
        ({"mine": BEFORE["mine"]}, ["theirs is not among the sources any more (5 rows)"]),
    ],
)
def test_every_change_is_named(now: dict[str, SourceVersion], says: list[str]) -> None:
    assert [str(change) for change in changes(now, BEFORE)] == says


def test_nothing_new_names_the_version_and_the_digest() -> None:
    news = News(sources=BEFORE, version="4", changes=())
    assert not news.is_news
    assert str(news).startswith("Nothing new: version 4 was trained on exactly these sources (mine: 10 rows")
    assert all_digest(BEFORE)[:12] in str(news)


def test_the_first_time_everything_is_new() -> None:
    news = News.first(BEFORE)
    assert news.is_news
    assert str(news).startswith("New (nothing was trained on it so far): mine is new (10 rows); theirs")
    assert [change.kind for change in news.changes] == ["new", "new"]


def test_one_digest_of_all_does_not_depend_on_their_order() -> None:
    assert all_digest(BEFORE) == all_digest(dict(reversed(BEFORE.items())))
    assert all_digest(BEFORE) != all_digest({**BEFORE, "mine": version("z", 10)})
    # Which source has which rows counts, too.
    assert all_digest(BEFORE) != all_digest({"mine": version("b", 5), "theirs": version("a", 10)})
    assert all_digest({}) == ""


def test_they_are_read_from_the_manifest_of_a_set() -> None:
    found = {"digest": "a", "num_rows": 3, "num_usable": 2, "licence": "mine"}
    assert versions_in({"sources": {"mine": found}}) == {
        "mine": SourceVersion(digest="a", num_rows=3, num_usable=2)
    }
    assert versions_in({"sources": {}}) == {}
