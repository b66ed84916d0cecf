import pytest

from models.errors import ConfigError
from models.vlir.texts import check_languages, foreign_language, script_share

ENGLISH = [
    "what brand liquor is on the right?",
    "is this denny's?",
    "who wrote le petit prince?",
    "coca cola or pepsi?",
    "nokia or samsung?",
    "what is the price of a cappuccino grande?",
    "what does 'liberté, égalité, fraternité' mean on the wall?",
    "what is the name of the restaurant la taqueria el farolito?",
    "Which Bundesliga team is FC Bayern playing?",
    "How many Instagram posts does Cristiano Ronaldo have?",
    "What is the dividend payout in 2012?",
    "Is the bowl to the right of the mug?",
]
FOREIGN = {
    "La question demande le montant total de la facture en bas à droite.": "fr",
    "Ich sehe mir die Karte genauer an, darauf steht der Code.": "de",
    "La pregunta pide el importe total de la factura del mes pasado.": "es",
    "Вопрос касается общей суммы счёта за прошлый месяц.": "ru",
}


@pytest.mark.parametrize("text", ENGLISH)
def test_names_and_quotations_do_not_make_a_question_foreign(text):
    assert foreign_language(text, ["en"]) == ""


@pytest.mark.parametrize(("text", "language"), FOREIGN.items())
def test_another_language_is_named_unless_it_is_wanted(text, language):
    assert foreign_language(text, ["en"]) == language
    assert foreign_language(text, ["en", language]) == ""


def test_too_few_letters_say_nothing():
    assert foreign_language("La réponse est 17", ["en"]) == ""


@pytest.mark.parametrize(
    ("text", "scripts", "share"),
    [
        ("What is 17 + 4?", ["LATIN"], 1.0),
        ("ABCД", ["LATIN"], 0.75),
        ("ABCД", ["LATIN", "CYRILLIC"], 1.0),
        ("号码是什么", ["LATIN"], 0.0),
        ("号码是什么", ["CJK"], 1.0),
        ("\uff21\uff22", ["LATIN"], 1.0),  # full width
        ("17 + 4 = 21", ["LATIN"], 1.0),
        ("", ["LATIN"], 1.0),
    ],
)
def test_the_script_of_every_letter_counts(text, scripts, share):
    assert script_share(text, scripts) == share


def test_a_language_that_cannot_be_told_is_refused_with_the_known_ones():
    check_languages(["en", "de"])
    with pytest.raises(ConfigError, match=r"\['english'\].*\ben\b"):
        check_languages(["en", "english"])
