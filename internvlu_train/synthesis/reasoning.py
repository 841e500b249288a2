"""The domain reasoning: from an abstract request to a picture, by way of words that take it apart.

The words name the objects, the layout, what is written, and the style, in this order, and end with what is to be drawn.
They are templates filled with the truth of the picture; rewrite.py lets a model say the same in other words. Truth:
that of the domain from which the picture is.
"""

import importlib
import importlib.util
import re
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from ..sample import Sample
from . import LanguageChoices, cartoons, humour, kinds, scenes, text, text_prompts
from .layout import Block
from .media import MEDIA, Piece
from .text_prompts import listed, quoted

# A word of the piece: requests that leave all else open. {title} and the like are words on it.
REQUESTS = {
    "poster": (
        (
            "People should come to {title}. Make something for the wall.",
            "How could I advertise {title}?",
            "We are organising {title} and nobody knows yet. Please help.",
            "Get the town excited about {title}.",
        ),
        (
            "大家都应该来参加{title}，做点能贴在墙上的东西吧。",
            "我想宣传{title}，该怎么办？",
            "我们要办{title}，可是没人知道，帮帮我。",
            "让全城都期待{title}。",
        ),
    ),
    "book cover": (
        (
            "My book {title} is finished. What should readers see first?",
            "{author} wrote {title}. Give it a face.",
            "{title} needs something that makes people pick it up.",
        ),
        (
            "我的书{title}写完了，读者第一眼应该看到什么？",
            "{author}写了{title}，给它一个门面。",
            "怎样才能让人想翻开{title}？",
        ),
    ),
    "business card": (
        ("I am {name} and I meet many new people. What can I hand to them?", "Help {name}, {job}, to be remembered."),
        ("我是{name}，常常认识新朋友，该递给他们什么？", "{name}是{job}，怎样让别人记住？"),
    ),
    "greeting card": (
        ("{name} wants to say {wish} in a nice way.", "How do I send {wish}, from {name}?"),
        ("{name}想好好地说一声{wish}。", "怎样把{wish}这句话送出去？署名是{name}。"),
    ),
    "road sign": (
        ("Drivers get lost here. Where can they read {first}?", "Show travellers the way: {all}."),
        ("司机总在这里迷路，让他们看到{first}。", "给旅客指路：{all}。"),
    ),
    "sign": (
        ("Visitors must not overlook this: {first}.", "Everybody should be able to read {first} from far away."),
        ("一定要让访客注意到{first}。", "要让大家从远处就能看清{first}。"),
    ),
    "shop sign": (
        ("I open {name} tomorrow, and nobody can find the door.", "Passers-by should notice {name}."),
        ("{name}明天开业，可是没人找得到门。", "让路过的人注意到{name}。"),
    ),
    "neon sign": (
        ("{name} is open at night. How will people see it?", "Make {name} shine in the dark."),
        ("{name}晚上营业，怎样让人看见？", "让{name}在黑夜里亮起来。"),
    ),
    "": (
        ("I keep forgetting things: {all}.", "Help me to remember {all}."),
        ("我总是忘事：{all}。", "帮我记住{all}。"),
    ),
}
ACROSS, DOWN = (
    (("left", "左侧"), ("", ""), ("right", "右侧")),
    (("top", "上方"), ("middle", "中间"), ("bottom", "下方")),
)

# Feelings and events: (English, Chinese), the moods of who is there, the scene behind.
CONCEPTS = (
    (("friendship", "友谊"), ("happy", "happy"), "sky"),
    (("loneliness", "孤独"), ("sad",), "lights"),
    (("a quarrel", "一场争吵"), ("angry", "angry"), "brick"),
    (("a late night at work", "加班到深夜"), ("tired",), "lights"),
    (("a surprise party", "惊喜派对"), ("surprised", "happy", "happy"), "plaster"),
    (("victory", "胜利"), ("smug", "sad"), "sky"),
    (("a perfect holiday", "完美的假期"), ("happy", "tired"), "sky"),
    (("envy", "嫉妒"), ("happy", "angry"), "plaster"),
    (("Monday morning", "星期一早晨"), ("tired", "tired"), "concrete"),
    (("unexpected news", "意外的消息"), ("surprised",), "plaster"),
    (("a farewell", "告别"), ("sad", "sad"), "sky"),
    (("a family photo", "全家福"), ("happy", "happy", "smug"), "wood"),
)

# Figures of the domains science and space: what a lesson is about.
TOPICS = {
    "bar chart": "柱状图",
    "line chart": "折线图",
    "pie chart": "饼图",
    "scatter plot": "散点图",
    "histogram": "直方图",
    "forces": "受力分析",
    "lens": "透镜成像",
    "refraction": "光的折射",
    "circuit": "电路",
    "molecule": "分子结构",
    "search tree": "二叉搜索树",
    "graph": "图",
    "automaton": "自动机",
    "cells": "数据结构",
    "sorting": "排序",
    "function": "函数图像",
    "triangle": "三角形",
    "formula": "公式",
    "solid": "立体图形",
    "three views": "三视图",
    "net": "展开图",
    "cubes": "堆叠的方块",
}


def place_of(block: Block, size: tuple[int, int], zh: bool) -> str:
    """Where a block stands on its surface."""
    across, down = ((block.box[i] + block.box[i + 2]) / 2 / size[i] for i in (0, 1))
    words = DOWN[min(2, int(3 * down))][zh], ACROSS[min(2, int(3 * across))][zh]
    return "".join(words) if zh else " ".join(word for word in words if word)


def where(piece: Piece, zh: bool) -> list[str]:
    """Where each block stands: below the one before if both are in the same part of the surface."""
    places = [place_of(block, piece.surface.size, zh) for block in piece.blocks]
    if zh:
        said = [f"在{place}" for place in places]
    else:
        said = [f"{'in' if place == 'middle' else 'at'} the {place}" for place in places]
    again = "在它下面" if zh else "below it"
    return [again if i and places[i - 1] == places[i] else said[i] for i in range(len(said))]


def thoughts(
    choices: LanguageChoices, wish: str, objects: str, layout: str, words: str, style: str, picture: str
) -> str:
    """The words before a picture. Each argument is a sentence without its full stop; empty ones are left out."""
    zh = choices.language == "zh"
    if zh:
        heads = choices.pick(
            (
                ("需求：", "物体：", "布局：", "文字：", "风格：", "因此要画的是："),
                ("", "画面中有", "布局上，", "需要写的文字：", "风格方面，", "总之，"),
            )
        )
    else:
        heads = choices.pick(
            (
                ("Request: ", "Objects: ", "Layout: ", "Words: ", "Style: ", "So the picture is: "),
                ("", "What is there: ", "How it is arranged: ", "What is written: ", "How it looks: ", "To draw: "),
            )
        )
    parts = zip(heads, (wish, objects, layout, words, style, picture), strict=True)
    stop = "。" if zh else "."
    said = ("" if zh else " ").join(f"{head}{part.rstrip('.。')}{stop}" for head, part in parts if part)
    return said[0].upper() + said[1:]


def wanted(choices: LanguageChoices, piece: Piece) -> str:
    """An abstract request for a piece."""
    forms = REQUESTS.get(piece.name[0], REQUESTS[""])[choices.language == "zh"]
    found = {block.role: quoted(choices, block.text) for block in piece.blocks}
    # A small surface may have no room for all that a form names.
    forms = [form for form in forms if set(re.findall(r"{(\w+)}", form)) <= {*found, "first", "all"}]
    texts = [quoted(choices, block.text) for block in piece.blocks]
    joined = "、".join(texts) if choices.language == "zh" else listed(texts, " and ")
    return choices.pick(forms).format(**found, first=texts[0], all=joined)


def written(choices: LanguageChoices) -> Sample:
    """A thing with words, see the domain text."""
    piece = MEDIA[choices.pick(sorted(MEDIA))](choices)
    picture, texts = text.render(piece, piece.blocks, choices.size, choices.number(0, 2**40))
    zh, request = choices.language == "zh", wanted(choices, piece)
    names = [text_prompts.role_name(choices, block.role) for block in piece.blocks]
    places = where(piece, zh)
    looks = {
        ("" if zh else " ").join(
            name(block, choices.language) for name in (text_prompts.ink_name, text_prompts.look_name)
        )
        for block in piece.blocks
    }
    scene, ground, thing = (
        text_prompts.SCENES[piece.scene][zh],
        text_prompts.called(piece.ground, choices.language),
        piece.name[zh],
    )
    quotes = [quoted(choices, block.text) for block in piece.blocks]
    if zh:
        words = thoughts(
            choices,
            f"用户需要一{text_prompts.counted(thing)}{thing}",
            f"一{text_prompts.counted(thing)}{thing}{'，' + scene if scene else ''}",
            "，".join(f"{name}{place}" for name, place in zip(names, places, strict=True)),
            "，".join(f"{name}{quote}" for name, quote in zip(names, quotes, strict=True)),
            f"底色是{ground}，文字是{'、'.join(sorted(looks))}字",
            text_prompts.requests(choices, piece)[0],
        )
    else:
        words = thoughts(
            choices,
            f"the user needs {text_prompts.article(thing)}",
            f"{text_prompts.article(thing)} {scene}".strip(),
            listed([f"the {name} {place}" for name, place in zip(names, places, strict=True)], " and "),
            listed([f"the {name} {quote}" for name, quote in zip(names, quotes, strict=True)], " and "),
            f"{text_prompts.article(ground)} background, {listed(sorted(looks), ' and ')} letters",
            text_prompts.requests(choices, piece)[0],
        )
    return Sample("reason", "reasoning", request, (), picture, words, {"texts": texts, "medium": piece.name[0]})


def joke(choices: LanguageChoices) -> Sample:
    """A meme for a situation, see the domain humour."""
    layout = choices.pick(sorted(humour.LAYOUTS))
    made = humour.LAYOUTS[layout](choices)
    piece, zh = made.piece(), choices.language == "zh"
    picture, texts = text.render(piece, piece.blocks, choices.size, choices.number(0, 2**40))
    one, two = (quoted(choices, block.text) for block in made.blocks)
    shown, form = humour.shown(choices, made), humour.FORMS[layout][zh]
    what = humour.kind_of_picture(made, choices.language)
    if zh:
        request = choices.pick(
            (f"把这件事变成笑话：{one}。", f"让朋友们笑一笑，话题是{one}。", f"怎样用一张图吐槽{one}？")
        )
        words = thoughts(
            choices,
            f"用户想要一张关于{one}的搞笑图片，转折是{two}",
            f"{shown}的{what}",
            form,
            f"先是{one}，然后是{two}",
            f"简单的{what}，粗体大字，对比清楚",
            humour.requests(choices, made, layout)[0],
        )
    else:
        request = choices.pick(
            (
                f"Make a joke of this: {one}.",
                f"My friends should laugh about {one}.",
                f"Turn {one} into something funny.",
            )
        )
        words = thoughts(
            choices,
            f"the user wants a joke about {one}; the turn is {two}",
            f"a {what} of {shown}",
            f"a meme {form}",
            f"first {one}, then {two}",
            f"a simple {what} with large, bold letters",
            humour.requests(choices, made, layout)[0],
        )
    return Sample("reason", "reasoning", request, (), picture, words, {"texts": texts, "picture": shown})


def feeling(choices: LanguageChoices) -> Sample:
    """Animals that show what cannot be drawn itself."""
    (name, chinese), moods, behind = choices.pick(CONCEPTS)
    zh, size = choices.language == "zh", choices.size
    seed, animals = choices.number(0, 2**40), choices.few(list(cartoons.ANIMALS), len(moods))
    furs = choices.few(cartoons.FURS, len(moods))
    canvas = scenes.lit(np.random.default_rng((seed, 2)), scenes.background(behind, seed, size))
    canvas = np.asarray(cast(Image.fromarray(canvas), animals, furs, moods))
    cast_en = listed(
        [f"{text_prompts.article(mood)} {animal}" for animal, mood in zip(animals, moods, strict=True)], " and "
    )
    cast_zh = "、".join(
        f"{cartoons.MOODS[mood]}的{cartoons.ANIMALS[animal]}" for animal, mood in zip(animals, moods, strict=True)
    )
    back = {
        "sky": ("hills under a bright sky", "晴空下的山丘"),
        "lights": ("blurred lights at night", "夜晚模糊的灯光"),
        "brick": ("a brick wall", "砖墙"),
        "plaster": ("a plain wall", "素色墙"),
        "concrete": ("a grey concrete wall", "灰色水泥墙"),
        "wood": ("a wooden wall", "木墙"),
    }[behind][zh]
    rows = (
        ("side by side, from left to right", "从左到右并排")[zh]
        if len(moods) > 1
        else ("in the middle", "在画面中间")[zh]
    )
    if zh:
        request = choices.pick((f"画出{chinese}。", f"用小动物表现{chinese}。", f"{chinese}看起来是什么样子？"))
        picture = f"一幅卡通画：{cast_zh}，{rows}，背景是{back}"
        words = thoughts(
            choices,
            f"{chinese}本身看不见，要用表情来表现",
            cast_zh,
            f"{rows}，背景是{back}",
            "",
            "简单的卡通，粗线条",
            picture,
        )
    else:
        request = choices.pick((f"Draw {name}.", f"Show {name} with animals.", f"What does {name} look like?"))
        picture = f"a cartoon of {cast_en}, {rows}, in front of {back}"
        words = thoughts(
            choices,
            f"{name} itself cannot be seen, but faces can show it",
            cast_en,
            f"{rows}, in front of {back}",
            "",
            "a simple cartoon with bold lines",
            picture,
        )
    truth = {"concept": name, "animals": animals, "moods": list(moods), "behind": behind}
    return Sample("reason", "reasoning", request, (), canvas, words, truth)


def cast(canvas: Image.Image, animals, furs, moods) -> Image.Image:
    """Animals beside each other on a picture."""
    large = canvas.resize((2 * canvas.width, 2 * canvas.height), Image.Resampling.BILINEAR)
    radius = min(0.27 * large.height, 0.36 * large.width / len(animals))
    for place, (animal, fur, mood) in enumerate(zip(animals, furs, moods, strict=True)):
        middle = large.width * (place + 0.5) / len(animals), large.height - 1.75 * radius
        cartoons.Face(ImageDraw.Draw(large), middle, radius, cartoons.Scene(animal, fur, (0, 0, 0), animal)).paint(mood)
    return large.resize(canvas.size, Image.Resampling.BOX)


def lesson(domain: str):
    """A figure of another domain for somebody who wants to understand a thing."""

    def sample(choices: LanguageChoices) -> Sample:
        found = kinds(domain)["draw"]
        kind = choices.pick(sorted(set(found) & set(TOPICS)))
        figure = found[kind](choices)
        if choices.language == "zh":
            topic = TOPICS[kind]
            request = choices.pick(
                (f"我想给学生讲{topic}，举个例子。", f"看不懂{topic}，能用图说明吗？", f"课件里要有一个{topic}的例子。")
            )
            words = thoughts(
                choices,
                f"用户想通过一个例子理解{topic}",
                f"一个{topic}，数值要具体",
                "图形居中，四周留白，标注靠近所指的部分",
                "",
                "线条清晰的示意图，背景干净",
                figure.prompt,
            )
        else:
            request = choices.pick(
                (
                    f"I have to teach a lesson on the topic {kind!r}. Show one example.",
                    f"I do not understand the topic {kind!r}. Can a picture help?",
                    f"My slides need an example for {kind!r}.",
                )
            )
            words = thoughts(
                choices,
                "the user wants to understand the topic by one example",
                f"one example of {kind!r} with definite values",
                "the figure in the middle with room around it, each label beside what it names",
                "",
                "a clean figure with clear lines",
                figure.prompt,
            )
        truth = figure.truth | {"figure kind": kind}
        return replace(figure, task="reason", domain="reasoning", prompt=request, words=words, truth=truth)

    return sample


def _there(domain: str) -> bool:
    return importlib.util.find_spec(f"{__package__}.{domain}") is not None


KINDS = {
    "reason": {"text": written, "humour": joke, "scene": feeling}
    | {domain: lesson(domain) for domain in ("science", "space") if _there(domain)}
}


def check(sample: Sample, picture: np.ndarray):
    """Judge a picture by the domain that it is from. Raises ValueError for a scene, which no program here can judge."""
    kind = sample.truth["kind"]
    if kind in ("text", "humour"):
        return text.check(sample, picture)
    if kind == "scene":
        raise ValueError("a scene of animals has no judge")
    figure = replace(
        sample, task="draw", domain=kind, words="", truth=sample.truth | {"kind": sample.truth["figure kind"]}
    )
    return importlib.import_module(f".{kind}", __package__).check(figure, picture)
