"""What follows from a history of promotions and rollbacks."""

from datetime import UTC, datetime

from models.history import Action, Author, Record, champions, line, next_record, withdrawn

WHO = Author(user="ada", flow_run="f-1")
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def history(*steps: tuple[Action, str]) -> list[Record]:
    records: list[Record] = []
    for action, version in steps:
        last = records[-1] if records else None
        records.append(next_record(last, action, version, who=WHO, when=WHEN, reason="because", checks=()))
    return records


def test_each_record_says_who_is_champion_and_who_was() -> None:
    records = history(("promoted", "1"), ("refused", "2"), ("promoted", "3"), ("rolled-back", "1"))
    assert [(found.champion, found.previous) for found in records] == [
        ("1", ""),
        ("1", ""),
        ("3", "1"),
        ("1", "3"),
    ]
    assert [found.number for found in records] == [1, 2, 3, 4]
    assert len({found.id for found in records}) == 4
    assert champions(records) == {"1", "3"}


def test_what_was_rolled_back_from_is_withdrawn_until_somebody_rolls_back_to_it() -> None:
    steps: list[tuple[Action, str]] = [("promoted", "1"), ("promoted", "2"), ("rolled-back", "1")]
    assert withdrawn(history(*steps)) == {"2"}
    assert withdrawn(history(*steps, ("promoted", "3"))) == {"2"}
    assert withdrawn(history(*steps, ("rolled-back", "2"))) == {"1"}


def test_a_line_says_when_who_what_and_why() -> None:
    promoted, refused = history(("promoted", "7"), ("refused", "8"))
    assert line(promoted) == (
        "   1  2026-01-02 03:04:05Z  promoted     version 7     champion none -> 7  "
        "by ada (flow run f-1): because"
    )
    assert "champion 7  by ada" in line(refused)
    assert Record.model_validate_json(promoted.model_dump_json()) == promoted
