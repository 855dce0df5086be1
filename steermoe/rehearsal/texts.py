"""Sentences to speak and questions to ask, drawn by a seed: enough words that no two utterances are the same."""

import random
from collections.abc import Iterator

WORDS = {  # by espeak-ng's name of the language: who, does what, what
    "en-us": (
        ("the old sailor", "my sister", "a young doctor", "the farmer", "our teacher", "the king"),
        ("found", "carried", "painted", "forgot", "sold", "wanted"),
        ("three red apples", "a wooden chair", "the last letter", "two black horses", "a silver ring"),
    ),
    "cmn": (
        ("老师", "我的朋友", "医生", "司机", "他的妹妹", "农民"),
        ("找到了", "买了", "忘记了", "看见了", "画了", "想要"),
        ("三个红苹果", "一本新书", "两匹黑马", "最后一封信", "一把木椅"),
    ),
    "de": (
        ("der alte Seemann", "meine Schwester", "ein junger Arzt", "der Bauer", "unser Lehrer"),
        ("fand", "trug", "malte", "vergaß", "verkaufte"),
        ("drei rote Äpfel", "einen Stuhl aus Holz", "den letzten Brief", "zwei schwarze Pferde"),
    ),
    "fr": (
        ("le vieux marin", "ma sœur", "un jeune médecin", "le fermier", "notre professeur"),
        ("trouva", "porta", "peignit", "oublia", "vendit"),
        ("trois pommes rouges", "une chaise en bois", "la dernière lettre", "deux chevaux noirs"),
    ),
    "es": (
        ("el viejo marinero", "mi hermana", "un médico joven", "el granjero", "nuestra maestra"),
        ("encontró", "llevó", "pintó", "olvidó", "vendió"),
        ("tres manzanas rojas", "una silla de madera", "la última carta", "dos caballos negros"),
    ),
}
QUESTIONS = (  # and what three people answer, who do not always agree
    ("Is somebody speaking?", ("yes", "Yes", "yes")),
    ("Is there music?", ("no", "no", "No")),
    ("How many people are talking?", ("one", "one", "two")),
    ("What is heard?", ("speech", "voice", "talking")),
    ("Is it raining?", ("no", "maybe", "no")),
)


def sentences(language: str, seed: int) -> Iterator[str]:
    """Sentences of a language without end."""
    draw, parts = random.Random(f"{seed} {language}"), WORDS[language]
    between = "" if language == "cmn" else " "
    while True:
        yield between.join(draw.choice(part) for part in parts)


def every_word() -> list[str]:
    """All texts that occur, for a tokenizer to learn from."""
    said = [text for parts in WORDS.values() for part in parts for text in part]
    return [*said, *(text for question, answers in QUESTIONS for text in (question, *answers))]
