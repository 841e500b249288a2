"""Prompts, questions and answers in English and Chinese, in many forms.

A bilingual word is a pair (English, Chinese). A form is a text with alternatives in brackets and values in braces:
"[Draw|Please draw] a {colour} bar". One form and one of each group of alternatives are chosen at random, each on its
own: alternatives that go only with some words elsewhere are forms of their own.
"""

import random
import re

Word = tuple[str, str]

DRAW = (
    (
        "[Draw|Create|Make|Generate|Render|Produce] {what}.",
        "[Please draw|Please make|Please create|I need|I would like|Show me] {what}.",
        "Could you draw {what}?",
        "{What}.",
        "{What}[, please|, clearly labelled|, on a plain background|, as in a textbook].",
        "[A picture of|An illustration of|A clean picture of|An image with] {what}.",
    ),
    (
        "[画|绘制|生成|请画|请绘制|帮我画|给我画|制作][|一张图：|出]{what}。",
        "{what}。",
        "[我需要|我想要|请给我][一张图，内容是|一张图：]{what}。",
        "[请用教科书的风格画|请清晰地画出|请在纯色背景上绘制]{what}。",
    ),
)
EIGHTS = r"8|1[18]\b"  # 8, 80, 800 …, 11 and 18, which begin with a vowel when they are spoken
REASONED = (
    ("[First work it out, then draw:|Think step by step, then draw:|Solve this and draw the result:|] {what}",),
    ("[先推理，再画图：|请一步步思考，然后画出来：|先解题，再画出结果：|]{what}",),
)


def in_language(value, language: str) -> str:
    """A bilingual word in one language; anything else as it is written."""
    return str(value[language == "zh"] if isinstance(value, tuple) else value)


def say(choices, en, zh, **values) -> str:
    """One of the forms of choices.language, with its values and a capital. en, zh: a form, or several."""
    text = filled(choices, en, zh, **values)
    return text if choices.language == "zh" else with_articles(capital(text))


def filled(choices, en, zh, **values) -> str:
    """say() as it stands within a sentence: a name keeps its capital, and no other letter becomes one.

    Takes one random number whatever the language and the form, so that the rest of a sample is the same in both.
    """
    chance = random.Random(choices.random.random())
    forms = zh if choices.language == "zh" else en
    form = forms if isinstance(forms, str) else chance.choice(forms)
    form = re.sub(r"\[([^\[\]]*)\]", lambda found: chance.choice(found[1].split("|")), form)
    said = {name: in_language(value, choices.language) for name, value in values.items()}
    said |= {name[0].upper() + name[1:]: capital(text) for name, text in said.items()}
    return form.format(**said).strip()


def capital(text: str) -> str:
    """A text with a capital first letter, unless it begins with a symbol: "q0", "x = 2", "y"."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]{2}|a ", text) else text


def with_articles(text: str) -> str:
    """English with "an" before vowels and before numbers that are spoken with one, and single spaces."""
    text = re.sub(rf"\ba (?=[aeio]|{EIGHTS})", "an ", " ".join(text.split()))
    return re.sub(rf"^A (?=[aeio][a-z]{{2}}|{EIGHTS})(?!and )", "An ", text)


def request(choices, en, zh, **values) -> str:
    """A prompt that asks for a picture of what the forms describe, in one of many sentences."""
    return say(choices, *DRAW, what=filled(choices, en, zh, **values))


def puzzle(choices, en, zh, **values) -> str:
    """A prompt that asks for a picture of what must be worked out before."""
    return say(choices, *REASONED, what=filled(choices, en, zh, **values))


def listed(parts, language: str) -> str:
    """ "a, b and c" of words, bilingual or not."""
    parts = [in_language(part, language) for part in parts]
    if language == "zh":
        return "、".join(parts)
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def steps(choices, *sentences) -> str:
    """Sentences of reasoning, one a line. Each is (English, Chinese)."""
    lines = [in_language(sentence, choices.language) for sentence in sentences]
    return "\n".join(map(with_articles, lines) if choices.language == "en" else lines)


def counted(number: int, noun: str) -> str:
    """ "1 atom", "2 atoms"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def plain(number: float, digits: int = 2) -> str:
    """A number without trailing zeros."""
    text = f"{number:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def signed(number: float) -> str:
    """A term of a sum: " + 3", " − 3"."""
    return f" {'+' if number >= 0 else '-'} {plain(abs(number))}"
