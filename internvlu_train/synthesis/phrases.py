"""Words to be written: titles, dates, names and lines of posters, signs, cards, covers and notes, in both languages.

The lists are in words.en.json and words.zh.json. Signs and notes with the same place in both say the same.
"""

import json
from collections.abc import Callable
from pathlib import Path

from . import LANGUAGES, LanguageChoices

WORDS: dict[str, dict[str, list[str]]] = {
    language: json.loads(Path(__file__).with_name(f"words.{language}.json").read_text(encoding="utf-8"))
    for language in LANGUAGES
}


def pick(choices: LanguageChoices, script: str, kind: str) -> str:
    """A word or a line of this kind."""
    return choices.pick(WORDS[script][kind])


def name(choices: LanguageChoices, script: str) -> str:
    """Of a place, a book or a shop: "The Silent Garden"."""
    adjective, noun = pick(choices, script, "adjective"), pick(choices, script, "noun")
    if script == "zh":
        return adjective + noun
    return choices.pick(("", "", "The ")) + f"{adjective} {noun}"


def event(choices: LanguageChoices, script: str) -> str:
    """The title of an event."""
    found = pick(choices, script, "event")
    if choices.flip(0.3):
        return found
    before = pick(choices, script, choices.pick(("adjective", "noun")))
    return f"{before.removesuffix('的')}{found}" if script == "zh" else f"{before} {found}"


def date(choices: LanguageChoices, script: str) -> str:
    """A day, with or without a time."""
    month, day, hour = choices.number(1, 12), choices.number(1, 28), choices.number(8, 22)
    timed, twelve = choices.flip(0.5), (hour - 1) % 12 + 1
    if script == "zh":
        part = "上午" if hour < 12 else "中午" if hour == 12 else "下午" if hour < 18 else "晚上"
        return f"{month}月{day}日" + (f" {part}{twelve}点" if timed else "")
    time = f", {twelve} {'am' if hour < 12 else 'pm'}" if timed else ""
    return f"{WORDS['en']['month'][month - 1]} {day}{time}"


def person(choices: LanguageChoices, script: str) -> str:
    """A full name."""
    first, last = pick(choices, script, "first"), pick(choices, script, "last")
    return last + first if script == "zh" else f"{first} {last}"


def phone(choices: LanguageChoices, script: str) -> str:
    """A telephone number that nobody has: 555 numbers are for fiction."""
    return f"555-{choices.number(100, 999)}-{choices.number(1000, 9999)}"


def price(choices: LanguageChoices, script: str) -> str:
    """What an entry or a thing costs."""
    amount = choices.number(3, 99)
    return f"门票{amount}元" if script == "zh" else f"Tickets ${amount}"


def shop(choices: LanguageChoices, script: str) -> str:
    """The name of a shop."""
    kind = pick(choices, script, "shop")
    noun = pick(choices, script, "noun")
    return f"{noun}{kind}" if script == "zh" else f"{noun} {kind}"


def direction(choices: LanguageChoices, script: str) -> str:
    """A place and how far it is."""
    # A place that ends in a number would run into the distance.
    named = [place for place in range(len(WORDS["en"]["place"])) if not WORDS["en"]["place"][place][-1].isdigit()]
    place, far = WORDS[script]["place"][choices.pick(named)], choices.number(2, 90)
    return f"{place} {far}公里" if script == "zh" else f"{place} {far} km"


Make = Callable[[LanguageChoices, str], str]


def of(kind: str) -> Make:
    """The function that picks from a list."""
    return lambda choices, script: pick(choices, script, kind)


# The lists from which words of a phrase are: one of them may stand for another. Of all else, words of "alike" may.
LISTS = {
    name: ("adjective", "noun"),
    event: ("adjective", "noun"),
    shop: ("noun", "shop"),
    person: ("first", "last"),
    date: ("month",),
}


def swaps(make: Make | None, word: str) -> list[str]:
    """English words that can stand in the place of one in a phrase that make() made, written as it is."""
    known, words = word.casefold(), WORDS["en"]
    if make is event and known in " ".join(words["event"]).casefold().split():
        return []  # "Market" in "Food Market" is no noun beside an event
    groups = [words[kind] for kind in LISTS[make]] if make in LISTS else words["alike"]
    found = [one for group in groups if known in map(str.casefold, group) for one in group]
    found = [one for one in found if one.isalpha() and one.casefold() != known]
    if word.isupper() and len(word) > 1:
        return [one.upper() for one in found]
    return [one[0].upper() + one[1:] for one in found] if word[0].isupper() else found
