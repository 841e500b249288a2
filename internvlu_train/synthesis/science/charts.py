"""Charts: bars, lines, pies, points, histograms. The spec has the values."""

import itertools

import numpy as np

from ..drawing import COLOUR_NAMES, HEX, blend, some_style
from ..figures import bilingual, pieces, where
from ..wording import counted, in_language, listed, plain, puzzle, request, say, steps
from .base import science

# (title, axis of values, unit of the values in prose, categories)
TOPICS = (
    (
        ("Fruit Sold", "水果销量"),
        ("Kilograms", "千克"),
        (
            ("Apples", "苹果"),
            ("Pears", "梨"),
            ("Plums", "李子"),
            ("Grapes", "葡萄"),
            ("Figs", "无花果"),
            ("Lemons", "柠檬"),
            ("Cherries", "樱桃"),
            ("Kiwis", "猕猴桃"),
        ),
    ),
    (
        ("Rainfall by City", "各城市降雨量"),
        ("Millimetres", "毫米"),
        (
            ("Oslo", "奥斯陆"),
            ("Lima", "利马"),
            ("Rome", "罗马"),
            ("Cairo", "开罗"),
            ("Paris", "巴黎"),
            ("Delhi", "德里"),
            ("Tokyo", "东京"),
            ("Quito", "基多"),
        ),
    ),
    (
        ("Books Read", "阅读书籍数"),
        ("Books", "本"),
        (
            ("Anna", "安娜"),
            ("Ben", "小本"),
            ("Chen", "小陈"),
            ("Dana", "达娜"),
            ("Emil", "埃米尔"),
            ("Fay", "菲"),
            ("Gus", "格斯"),
            ("Hana", "花子"),
        ),
    ),
    (
        ("Energy by Source", "各类能源发电量"),
        ("Gigawatt hours", "吉瓦时"),
        (
            ("Wind", "风能"),
            ("Solar", "太阳能"),
            ("Hydro", "水能"),
            ("Coal", "煤"),
            ("Gas", "天然气"),
            ("Nuclear", "核能"),
            ("Biomass", "生物质"),
            ("Tidal", "潮汐能"),
        ),
    ),
    (
        ("Pets in a Class", "班里的宠物"),
        ("Pupils", "学生数"),
        (
            ("Dogs", "狗"),
            ("Cats", "猫"),
            ("Fish", "鱼"),
            ("Birds", "鸟"),
            ("Rabbits", "兔子"),
            ("Mice", "老鼠"),
            ("Snakes", "蛇"),
            ("None", "没有"),
        ),
    ),
    (
        ("Visitors per Day", "每日访客"),
        ("Visitors", "人数"),
        (
            ("Mon", "周一"),
            ("Tue", "周二"),
            ("Wed", "周三"),
            ("Thu", "周四"),
            ("Fri", "周五"),
            ("Sat", "周六"),
            ("Sun", "周日"),
        ),
    ),
    (
        ("Medals Won", "奖牌数"),
        ("Medals", "枚"),
        (
            ("Norway", "挪威"),
            ("Japan", "日本"),
            ("Kenya", "肯尼亚"),
            ("Brazil", "巴西"),
            ("China", "中国"),
            ("Italy", "意大利"),
            ("Cuba", "古巴"),
            ("Canada", "加拿大"),
        ),
    ),
)
MONTHS = (("Jan", "1月"), ("Feb", "2月"), ("Mar", "3月"), ("Apr", "4月"), ("May", "5月"), ("Jun", "6月"))
MONTHS += (("Jul", "7月"), ("Aug", "8月"), ("Sep", "9月"), ("Oct", "10月"), ("Nov", "11月"), ("Dec", "12月"))
SERIES = (
    (("Temperature", "气温"), ("°C", "°C"), (("North", "北部"), ("South", "南部"), ("Coast", "沿海"))),
    (("Sales", "销售额"), ("Units", "件"), (("Bikes", "自行车"), ("Skates", "溜冰鞋"), ("Tents", "帐篷"))),
    (("Water Level", "水位"), ("cm", "厘米"), (("River", "河流"), ("Lake", "湖泊"), ("Canal", "运河"))),
    (("Members", "会员数"), ("People", "人"), (("Chess", "象棋"), ("Choir", "合唱团"), ("Hiking", "徒步"))),
)
POINTS = (
    (
        ("Height and Weight", "身高与体重"),
        ("Height (cm)", "身高（厘米）"),
        ("Weight (kg)", "体重（千克）"),
        140,
        190,
        40,
        90,
    ),
    (("Study and Marks", "学习与成绩"), ("Hours", "小时"), ("Marks", "分数"), 0, 10, 30, 100),
    (("Age and Price", "车龄与价格"), ("Age (years)", "车龄（年）"), ("Price", "价格"), 0, 15, 0, 50),
    (("Light and Growth", "光照与生长"), ("Light (h)", "光照（小时）"), ("Growth (mm)", "生长（毫米）"), 2, 14, 0, 40),
)
SPREADS = (
    (("Heights of Plants", "植物高度"), ("Height (cm)", "高度（厘米）"), 10),
    (("Marks in a Test", "测验分数"), ("Marks", "分数"), 10),
    (("Ages of Visitors", "访客年龄"), ("Age (years)", "年龄（岁）"), 10),
    (("Times of a Run", "跑步用时"), ("Minutes", "分钟"), 5),
)
GROUPS = (("Group A", "甲组"), ("Group B", "乙组"), ("Group C", "丙组"))
COUNT = ("Count", "数量")
MARKS = ("o", "s", "^")
bilingual((TOPICS, MONTHS, SERIES, POINTS, SPREADS, GROUPS, COUNT))


def both(pair, language: str) -> str:
    return in_language(pair, language)


def chart_style(choices) -> dict:
    return some_style(choices) | {"grid": choices.flip(0.5), "frame": choices.flip(0.3), "lying": choices.flip(0.25)}


def some_bars(choices, fewest=3, most=6) -> dict:
    title, unit, names = choices.pick(TOPICS)
    count = choices.number(fewest, most)
    names = choices.few(names, count)
    step = choices.pick((1, 5, 10))
    values = [step * choices.number(2, 20) for _ in names]
    single, style = choices.flip(0.4), chart_style(choices)
    colours = choices.few(COLOUR_NAMES, count)
    colours = [colours[0] if single else colour for colour in colours]
    said = choices.language
    return {
        "figure": "bars",
        "style": style | {"written": choices.flip(0.5)},
        "title": both(title, said),
        "unit": both(unit, said),
        "names": [both(name, said) for name in names],
        "values": values,
        "colours": [colour[0] for colour in colours],
    }


def nice_step(highest: float, most: int = 6) -> float:
    """The smallest of 1, 2, 5, 10, … that reaches `highest` in so many steps."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if highest <= most * factor * step:
                return factor * step
        step *= 10


def axes_of(paper, spec, across, ticks, legend=()):
    """matplotlib axes within the free part, with a title, named positions and a scale of values.

    across: names along the horizontal axis, or positions and names. ticks: (positions, names) of the vertical axis.
    Returns the axes; their limits are the caller's.
    """
    style = spec["style"]
    paper.title(spec["title"])
    if legend:
        draw_legend(paper, legend)
    names, sides = across, [str(name) for name in ticks[1]]
    label = spec.get("unit", "")
    wide = max(paper.measure(name) for name in sides)
    left = paper.left + wide + 2.3 * paper.unit
    room = (paper.right - left) / max(1, len(names))
    size = min(1.0, *(paper.fit(name, 0.92 * room) for name in names))
    turned = size < 0.75
    below = 1.6 * paper.unit
    if turned:
        below = 0.9 * max(paper.measure(name, 0.85) for name in names) + paper.unit
    if spec.get("across"):
        below += 1.5 * paper.unit
    box = (left, paper.bottom + below, paper.right, paper.top)
    w, h = paper.width, paper.height
    axes = paper.figure.add_axes((box[0] / w, box[1] / h, (box[2] - box[0]) / w, (box[3] - box[1]) / h), zorder=2)
    axes.set_facecolor("none")
    for side in axes.spines.values():
        side.set(color=paper.ink, linewidth=paper.line)
    for side in ("top", "right"):
        axes.spines[side].set_visible(style["frame"])
    axes.tick_params(colors=paper.ink, width=paper.line, length=0.35 * paper.unit, pad=0.3 * paper.unit)
    axes.set_axisbelow(True)
    if spec.get("across"):
        paper.text((box[0] + box[2]) / 2, paper.bottom, spec["across"], va="bottom")
    middle = (box[1] + box[3]) / 2
    if label:
        paper.text(paper.left, middle, label, paper.fit(label, box[3] - box[1]), turn=90, ha="left")
    axes.house = (paper, size, turned)
    return axes


def put_ticks(axes, spec, xs, names, ys, values, grid=("y",)):
    """Ticks with the paper's font, which shrinks or turns where names are long."""
    paper, size, turned = axes.house
    axes.set_xticks(xs, names)
    axes.set_yticks(ys, values)
    for axis, factor in ((axes.xaxis, 0.85 if turned else size), (axes.yaxis, 1.0)):
        for tick in axis.get_ticklabels():
            tick.set_fontproperties(paper.font(tick.get_text(), factor))
            tick.set_color(paper.ink)
            if turned and axis is axes.xaxis:
                tick.set(rotation=60, ha="right", rotation_mode="anchor")
    if spec["style"]["grid"]:
        for axis in grid:
            axes.grid(True, axis=axis, color=blend(paper.ink, paper.back, 0.8), linewidth=0.7 * paper.line)


def draw_legend(paper, entries):
    """Coloured squares with names in a row, or in rows where they are too wide, at the top of the free part."""
    widths = [1.6 * paper.unit + paper.measure(name) for _, name in entries]
    rows, row = [], []
    for entry, width in zip(entries, widths, strict=True):
        if row and sum(w + 1.5 * paper.unit for _, w in row) + width > paper.right - paper.left:
            rows.append(row)
            row = []
        row.append((entry, width))
    for full in [*rows, row]:
        x = (paper.left + paper.right - sum(w for _, w in full) - 1.5 * paper.unit * (len(full) - 1)) / 2
        y = paper.top - 0.6 * paper.unit
        for (colour, name), width in full:
            paper.box(x, y - 0.45 * paper.unit, 0.9 * paper.unit, 0.9 * paper.unit, HEX[colour], HEX[colour], 0.5)
            paper.text(x + 1.4 * paper.unit, y, name, ha="left")
            x += width + 1.5 * paper.unit
        paper.top -= 1.7 * paper.unit


@science.figure("bars")
def draw_bars(paper, spec):
    values, style = spec["values"], spec["style"]
    step = nice_step(max(values))
    marks = [step * i for i in range(int(max(values) * 1.04 // step) + 2)]
    count = len(values)
    names, numbers = spec["names"], [plain(mark) for mark in marks]
    places, colours = np.arange(count), [HEX[colour] for colour in spec["colours"]]
    if style["lying"]:
        unit = spec["unit"]
        axes = axes_of(paper, spec | {"across": unit, "unit": ""}, numbers, (places, names))
        axes.barh(places, values, 0.62, color=colours)
        put_ticks(axes, spec, marks, numbers, places, names, grid=("x",))
        axes.set(xlim=(0, marks[-1]), ylim=(count - 0.4, -0.6))
    else:
        axes = axes_of(paper, spec, names, (marks, numbers))
        axes.bar(places, values, 0.62, color=colours)
        put_ticks(axes, spec, places, names, marks, numbers)
        axes.set(ylim=(0, marks[-1]), xlim=(-0.6, count - 0.4))
    if style["written"]:
        room = 0.8 * (paper.right - paper.left) / count
        for place, value in zip(places, values, strict=True):
            at = (value, place) if style["lying"] else (place, value)
            offset = (0.3 * paper.unit, 0) if style["lying"] else (0, 0.25 * paper.unit)
            text = axes.annotate(plain(value), at, offset, textcoords="offset points", color=paper.ink)
            size = 0.9 if style["lying"] else paper.fit(plain(value), 0.7 * room, 0.9)
            text.set_fontproperties(paper.font(plain(value), size))
            text.set(ha="left" if style["lying"] else "center", va="center" if style["lying"] else "bottom")


@science.reader("bars")
def read_bars(spec, picture):
    """Whether there is a bar of each colour, of a length in proportion to its value (within 4% of the longest).

    Bars of one colour are told apart by their places, in their order.
    """
    bars = []
    for colour in dict.fromkeys(spec["colours"]):
        found = [piece for piece in pieces(without_lines(where(picture, HEX[colour], 60)), 50) if is_block(piece)]
        wanted = [value for value, name in zip(spec["values"], spec["colours"], strict=True) if name == colour]
        if len(found) != len(wanted):
            return {"bars": False, "values": False}
        bars.append((found, wanted))
    spans = [
        (np.ptp(piece, axis=0) + 1, value) for found, wanted in bars for piece, value in zip(found, wanted, strict=True)
    ]
    if len(bars) < len(spans) and len(bars) > 1:
        return {"bars": True}
    thick = [np.std([span[axis] for span, _ in spans]) for axis in (0, 1)]
    axis = int(np.argmax(thick))  # bars are of equal thickness
    order = 1 - axis
    if len(bars) == 1:
        found, wanted = bars[0]
        found = sorted(found, key=lambda piece: piece[:, order].min())
        spans = [(np.ptp(piece, axis=0) + 1, value) for piece, value in zip(found, wanted, strict=True)]
    lengths, values = np.array([span[axis] for span, _ in spans]), np.array([value for _, value in spans])
    scale = (lengths * values).sum() / (values * values).sum()
    return {"bars": True, "values": bool((np.abs(lengths - scale * values) <= 0.04 * lengths.max()).all())}


def without_lines(mask: np.ndarray) -> np.ndarray:
    """The mask without what is thinner than 4 pixels: in a JPEG, lines beside a bar may come near its colour."""
    from scipy import ndimage

    return ndimage.binary_opening(mask, np.ones((4, 4)))


def is_block(piece) -> bool:
    """Whether a spot is a full rectangle, not a line or a letter."""
    sides = np.ptp(piece, axis=0) + 1
    return min(sides) >= 6 and len(piece) > 0.8 * sides.prod()


def told_bars(choices, spec) -> list[str]:
    """Each bar with its value, and its colour where colours differ."""
    names = {colour[0]: colour for colour in COLOUR_NAMES}
    many = len(set(spec["colours"])) > 1
    told = []
    for name, value, colour in zip(spec["names"], spec["values"], spec["colours"], strict=True):
        en = f"{name} {value} ({colour})" if many else f"{name} {value}"
        zh = f"{name}{value}（{names[colour][1]}）" if many else f"{name}{value}"
        told.append((en, zh))
    return told


def lying(spec) -> tuple[str, str]:
    return ("horizontal bar chart", "横向条形图") if spec["style"]["lying"] else ("bar chart", "柱状图")


def draw_a_bar_chart(choices):
    spec = some_bars(choices)
    one = {colour[0]: colour for colour in COLOUR_NAMES}[spec["colours"][0]]
    alike = len(set(spec["colours"])) == 1
    prompt = request(
        choices,
        (
            "a {kind} titled “{title}” with [the values|bars for|]: {bars}{tail}",
            "a {kind} of {bars}, titled “{title}”{tail}",
        ),
        ("一[张|幅]{kind}，标题为“{title}”，[数据为|各项为]：{bars}{tail}", "标题是“{title}”的{kind}，{bars}{tail}"),
        kind=lying(spec),
        title=spec["title"],
        bars=listed(told_bars(choices, spec), choices.language),
        tail=(f", all bars {one[0]}", f"，全部用{one[1]}") if alike else "",
    )
    return science.to_draw(choices, spec, prompt)


def new_value(choices, spec, i) -> int:
    """Another value of a bar, clearly different."""
    while True:
        value = choices.number(1, 20) * (10 if max(spec["values"]) > 100 else 5 if max(spec["values"]) > 20 else 1)
        if abs(value - spec["values"][i]) > 0.1 * max(spec["values"]):
            return value


def changed(items, i, item) -> list:
    return [*items[:i], item, *items[i + 1 :]]


def change_a_value(choices):
    spec = some_bars(choices)
    i = choices.number(0, len(spec["values"]) - 1)
    value = new_value(choices, spec, i)
    prompt = say(
        choices,
        (
            "[Change|Set|Correct] the [value of|bar for|bar of] {name} to {value}.",
            "[Make|Please make] the bar for {name} show {value}.",
            "{name} should be {value}[ instead of|, not] {old}.",
            "The value of {name} is wrong: it is {value}. Correct the chart.",
        ),
        (
            "把{name}的[值|数值]改[为|成]{value}。",
            "请将{name}[的柱子|那一项][改成|调整到]{value}。",
            "{name}应该是{value}，而不是{old}，请修改。",
        ),
        name=spec["names"][i],
        value=value,
        old=spec["values"][i],
    )
    return science.to_edit(choices, spec, spec | {"values": changed(spec["values"], i, value)}, prompt)


def recolour_a_bar(choices):
    spec = some_bars(choices)
    i = choices.number(0, len(spec["values"]) - 1)
    colour = choices.pick([colour for colour in COLOUR_NAMES if colour[0] not in spec["colours"]])
    prompt = say(
        choices,
        (
            "[Colour|Paint|Make|Turn] the bar [for|of] {name} {colour}.",
            "[Change|Set] the colour of {name} to {colour}.",
        ),
        ("把{name}的[柱子|条形][改成|涂成|变成]{colour}。", "请将{name}[的颜色|]改为{colour}。"),
        name=spec["names"][i],
        colour=colour,
    )
    return science.to_edit(choices, spec, spec | {"colours": changed(spec["colours"], i, colour[0])}, prompt)


def remove_a_bar(choices):
    spec = some_bars(choices, 4, 6)
    i = choices.number(0, len(spec["values"]) - 1)
    after = spec | {key: spec[key][:i] + spec[key][i + 1 :] for key in ("names", "values", "colours")}
    before, after = (after, spec) if choices.flip(0.5) else (spec, after)
    adding = len(after["names"]) > len(before["names"])
    names = {colour[0]: colour for colour in COLOUR_NAMES}
    if adding:
        i = len(spec["names"]) - 1
        before = spec | {key: spec[key][:i] for key in ("names", "values", "colours")}
    forms = (
        (
            "[Add|Insert|Append] a {colour} bar [for|called] {name} with the value {value} at the end.",
            "[Extend|Complete] the chart by {name}: {value}, in {colour}, after the others.",
        ),
        (
            "在最后[添加|增加|加上]一个{colour}的{name}，[值|数值]为{value}。",
            "请在末尾补上{name}：{value}，用{colour}。",
        ),
    )
    if not adding:
        forms = (
            (
                "[Remove|Delete|Take out|Drop] [the bar for |]{name}.",
                "Please leave out {name}.",
                "I do not need {name}[ any more|].",
            ),
            ("[删除|去掉|移除]{name}。", "请把{name}[的柱子|]从图中[去掉|删除]。"),
        )
    prompt = say(choices, *forms, name=spec["names"][i], value=spec["values"][i], colour=names[spec["colours"][i]])
    return science.to_edit(choices, before, after, prompt)


def retitle(choices):
    spec = some_bars(choices)
    title = both(
        choices.pick([topic[0] for topic in TOPICS if both(topic[0], choices.language) != spec["title"]]),
        choices.language,
    )
    prompt = say(
        choices,
        ("[Change|Set] the title to “{title}”.", "The [title|heading] should [read|be|say] “{title}”."),
        ("把标题[改为|改成|换成]“{title}”。", "标题应[为|是]“{title}”，请修改。"),
        title=title,
    )
    return science.to_edit(choices, spec, spec | {"title": title}, prompt)


def toggle(choices):
    """One property of the style of a chart."""
    spec = some_bars(choices)
    key, on, off = choices.pick(
        (
            (
                "grid",
                ("[Add|Show|Draw] [a grid|grid lines].", "[加上|显示|添加]网格线。"),
                ("[Remove|Hide] the grid[ lines|].", "[去掉|隐藏]网格线。"),
            ),
            (
                "written",
                ("[Write|Show|Add] the value [at|beside] each bar.", "在每个[柱子|条形]旁[标出|写上|显示]数值。"),
                ("[Remove|Hide|Delete] the numbers at the bars.", "[去掉|隐藏]柱子旁的数值。"),
            ),
            (
                "lying",
                ("[Turn this into|Make it|Redraw it as] a horizontal bar chart.", "[改成|变成|重画为]横向条形图。"),
                ("[Turn this into|Make it|Redraw it as] a vertical bar chart.", "[改成|变成|重画为]竖向柱状图。"),
            ),
        )
    )
    prompt = say(choices, *(off if spec["style"][key] else on))
    after = spec | {"style": spec["style"] | {key: not spec["style"][key]}}
    return science.to_edit(choices, spec, after, prompt)


def sort_bars(choices):
    spec = some_bars(choices, 4, 6)
    down = choices.flip(0.5)
    order = sorted(range(len(spec["values"])), key=lambda i: spec["values"][i], reverse=down)
    if order == list(range(len(order))) or len(set(spec["values"])) < len(order):
        return sort_bars(choices)
    after = spec | {key: [spec[key][i] for i in order] for key in ("names", "values", "colours")}
    way = ("descending", "从大到小") if down else ("ascending", "从小到大")
    prompt = say(
        choices,
        ("[Sort|Order|Arrange] the bars in {way} order[ of value|].", "[Please put|Put] the bars into {way} order."),
        ("[把各项|请将柱子][按数值|]{way}[排列|排序]。",),
        way=way,
    )
    return science.to_edit(choices, spec, after, prompt)


def ask_a_value(choices):
    spec = some_bars(choices)
    i = choices.number(0, len(spec["values"]) - 1)
    prompt = say(
        choices,
        (
            "What is the value of {name}?",
            "[How much|What value] does the chart show for {name}?",
            "Read the value of {name}[ from the chart|].",
        ),
        ("{name}的[值|数值]是多少？", "图中{name}[是|为]多少？"),
        name=spec["names"][i],
    )
    spec = spec | {
        "style": spec["style"] | {"grid": True, "written": spec["style"]["written"] or spec["values"][i] % 10 != 0}
    }
    return science.to_ask(choices, spec, prompt, plain(spec["values"][i]))


def ask_an_extreme(choices):
    spec = some_bars(choices)
    largest = choices.flip(0.5)
    extreme = (max if largest else min)(spec["values"])
    if spec["values"].count(extreme) > 1:
        return ask_an_extreme(choices)
    word = ("largest", "最大") if largest else ("smallest", "最小")
    prompt = say(
        choices,
        (
            "Which [item|category|bar] has the {word} value?",
            "What is the {word} [one|item|bar]?",
            "Name the {word} [bar|item].",
        ),
        ("哪一项的[值|数值]{word}？", "图中{word}的是哪一项？"),
        word=word,
    )
    return science.to_ask(choices, spec, prompt, spec["names"][spec["values"].index(extreme)])


def ask_a_sum(choices):
    """The sum or the difference of two bars, whose values are written."""
    spec = some_bars(choices)
    spec["style"]["written"] = True
    i, j = choices.few(range(len(spec["values"])), 2)
    one, other = spec["values"][i], spec["values"][j]
    if one <= other or choices.flip(0.5):
        forms = (
            ("What is the [sum|total] of {a} and {b}?", "How much are {a} and {b} together?"),
            ("{a}和{b}[的和|一共]是多少？", "{a}与{b}加起来是多少？"),
        )
        answer = one + other
    else:
        forms = (
            ("How much [more|larger] is {a} than {b}?", "What is the difference between {a} and {b}?"),
            ("{a}比{b}多多少？", "{a}与{b}相差多少？"),
        )
        answer = one - other
    prompt = say(choices, *forms, a=spec["names"][i], b=spec["names"][j])
    return science.to_ask(choices, spec, prompt, plain(answer))


def work_out_bars(choices):
    """Values that are described by each other, worked out, then drawn."""
    spec = some_bars(choices, 3, 3)
    spec["style"]["written"] = True
    a, factor, less = choices.number(4, 20), choices.number(2, 3), choices.number(1, 3)
    values = [a, factor * a, factor * a - less]
    one, two, three = spec["names"]
    times = {2: ("twice", "两"), 3: ("three times", "三")}[factor]
    spec = spec | {"values": values}
    title, said = spec["title"], choices.language
    prompt = puzzle(
        choices,
        (
            "a bar chart titled “{title}”: {a} for {one}, {times} as much for {two}, "
            "and for {three} {less} less than for {two}.",
            "{one}: {a}. {two}: {times} as much as {one}. {three}: {less} less than {two}. "
            "A bar chart of this, titled “{title}”.",
        ),
        ("标题为“{title}”的柱状图：{one}是{a}，{two}是{one}的{times}倍，{three}比{two}少{less}。",),
        title=title,
        one=one,
        two=two,
        three=three,
        a=a,
        times=times,
        less=less,
    )
    colours = listed(told_bars(choices, spec), said)
    words = steps(
        choices,
        (f"The value of {one} is given: {a}.", f"{one}已知：{a}。"),
        (f"{two}: {factor} × {a} = {values[1]}.", f"{two}：{factor} × {a} = {values[1]}。"),
        (f"{three}: {values[1]} − {less} = {values[2]}.", f"{three}：{values[1]} − {less} = {values[2]}。"),
        (
            f"The picture is a {lying(spec)[0]} titled “{title}” with {colours}, and the value at each bar.",
            f"图为{lying(spec)[1]}，标题为“{title}”，各项为{colours}，每项旁标出数值。",
        ),
    )
    return science.to_draw(choices, spec, prompt, words)


# Lines


def some_lines(choices, fewest=1, most=3) -> dict:
    title, unit, names = choices.pick(SERIES)
    count, said = choices.number(fewest, most), choices.language
    first, length = choices.number(0, 6), choices.number(5, 6)
    series = []
    for _ in range(count):
        value, walk = choices.number(8, 30), []
        for _ in range(length):
            walk.append(value)
            value = min(40, max(1, value + choices.number(-8, 8)))
        series.append(walk)
    return {
        "figure": "lines",
        "style": chart_style(choices) | {"marks": choices.flip(0.6), "dashed": choices.flip(0.2)},
        "title": both(title, said),
        "unit": both(unit, said),
        "across": "",
        "names": [both(month, said) for month in MONTHS[first : first + length]],
        "labels": [both(name, said) for name in names[:count]],
        "series": series,
        "colours": [colour[0] for colour in choices.few(COLOUR_NAMES, count)],
    }


@science.figure("lines")
def draw_lines(paper, spec):
    style = spec["style"]
    highest = max(max(walk) for walk in spec["series"])
    step = nice_step(highest)
    marks = [step * i for i in range(int(highest // step) + 2)]
    numbers = [plain(mark) for mark in marks]
    legend = list(zip(spec["colours"], spec["labels"], strict=True))
    axes = axes_of(paper, spec, spec["names"], (marks, numbers), legend)
    for i, (walk, colour) in enumerate(zip(spec["series"], spec["colours"], strict=True)):
        axes.plot(
            range(len(walk)),
            walk,
            color=HEX[colour],
            linewidth=2.2 * paper.line,
            linestyle="--" if style["dashed"] else "-",
            marker=MARKS[i] if style["marks"] else None,
            markersize=0.5 * paper.unit,
        )
    put_ticks(axes, spec, range(len(spec["names"])), spec["names"], marks, numbers)
    axes.set(ylim=(0, marks[-1]), xlim=(-0.4, len(spec["names"]) - 0.6))


def told_lines(spec, language) -> str:
    names = {colour[0]: colour for colour in COLOUR_NAMES}
    parts = []
    for label, walk, colour in zip(spec["labels"], spec["series"], spec["colours"], strict=True):
        numbers = ", ".join(map(str, walk))
        parts.append((f"{label} ({colour}) {numbers}", f"{label}（{names[colour][1]}）{numbers.replace(', ', '、')}"))
    return ("; " if language == "en" else "；").join(in_language(part, language) for part in parts)


def draw_a_line_chart(choices):
    spec = some_lines(choices)
    prompt = request(
        choices,
        (
            "a line chart titled “{title}” from {first} to {last}: {lines}",
            "a chart with {count}, titled “{title}”, from {first} to {last}: {lines}",
        ),
        (
            "一[张|幅]折线图，标题“{title}”，{first}到{last}：{lines}",
            "标题为“{title}”的折线图，[横轴从|从]{first}到{last}，{lines}",
        ),
        title=spec["title"],
        first=spec["names"][0],
        last=spec["names"][-1],
        count=counted(len(spec["series"]), "line"),
        lines=told_lines(spec, choices.language),
    )
    return science.to_draw(choices, spec, prompt)


def change_a_point(choices):
    spec = some_lines(choices)
    i, j = choices.number(0, len(spec["series"]) - 1), choices.number(0, len(spec["names"]) - 1)
    value = (spec["series"][i][j] + choices.number(6, 25)) % 40 + 1
    after = spec | {"series": changed(spec["series"], i, changed(spec["series"][i], j, value))}
    prompt = say(
        choices,
        (
            "[Change|Set|Correct] {label} in {month} to {value}.",
            "{label} should be {value} in {month}[; correct the line|].",
            "{label} is {value} in {month}; correct the line.",
        ),
        ("把{label}{month}的[值|数值]改[为|成]{value}。", "{month}的{label}应为{value}，请修改[折线|图]。"),
        label=spec["labels"][i],
        month=spec["names"][j],
        value=value,
    )
    return science.to_edit(choices, spec, after, prompt)


def remove_a_line(choices):
    spec = some_lines(choices, 2, 3)
    i = choices.number(0, len(spec["series"]) - 1)
    after = spec | {key: spec[key][:i] + spec[key][i + 1 :] for key in ("labels", "series", "colours")}
    prompt = say(
        choices,
        (
            "[Remove|Delete|Drop|Take away] the line [for|of] {label}.",
            "[Please leave out|Show the chart without] {label}.",
        ),
        ("[删除|去掉|移除]{label}[的折线|这条线]。", "请不要显示{label}。"),
        label=spec["labels"][i],
    )
    return science.to_edit(choices, spec, after, prompt)


def ask_a_peak(choices):
    spec = some_lines(choices)
    i, highest = choices.number(0, len(spec["series"]) - 1), choices.flip(0.5)
    extreme = (max if highest else min)(spec["series"][i])
    if spec["series"][i].count(extreme) > 1:
        return ask_a_peak(choices)
    prompt = say(
        choices,
        (
            "In which month is the line of {label} {word}?",
            "When does the line of {label} [reach|have] its {word} value?",
        ),
        ("{label}在哪个月{word}？", "哪个月{label}的[值|数值]{word}？"),
        label=spec["labels"][i],
        word=("highest", "最高") if highest else ("lowest", "最低"),
    )
    return science.to_ask(choices, spec, prompt, spec["names"][spec["series"][i].index(extreme)])


# Pies


def some_pie(choices) -> dict:
    title, _, names = choices.pick(TOPICS)
    count, said = choices.number(3, 5), choices.language
    cuts = sorted(choices.few(range(2, 19), count - 1))
    shares = [5 * (b - a) for a, b in zip([0, *cuts], [*cuts, 20], strict=True)]
    return {
        "figure": "pie",
        "style": some_style(choices) | {"ring": choices.flip(0.25), "start": choices.pick((90, 0, 45))},
        "title": both(title, said),
        "names": [both(name, said) for name in choices.few(names, count)],
        "values": shares,
        "colours": [colour[0] for colour in choices.few(COLOUR_NAMES, count)],
    }


@science.figure("pie")
def draw_pie(paper, spec):
    paper.title(spec["title"])
    draw_legend(paper, list(zip(spec["colours"], spec["names"], strict=True)))
    w, h = paper.width, paper.height
    side = min(paper.right - paper.left, paper.top - paper.bottom)
    x, y = (paper.left + paper.right - side) / 2, (paper.top + paper.bottom - side) / 2
    axes = paper.figure.add_axes((x / w, y / h, side / w, side / h), zorder=2)
    ring = 0.45 if spec["style"]["ring"] else 0.0
    _wedges, _, texts = axes.pie(
        spec["values"],
        colors=[HEX[colour] for colour in spec["colours"]],
        autopct=lambda share: f"{share:.0f}%",
        pctdistance=0.77 if ring else 0.68,
        startangle=spec["style"]["start"],
        counterclock=False,
        radius=1.24,
        wedgeprops={
            "width": 1.24 * (1 - ring) if ring else None,
            "edgecolor": paper.back,
            "linewidth": 1.5 * paper.line,
        },
    )
    for text in texts:
        text.set(color="white")
        text.set_fontproperties(paper.font("%", 0.95, True))


@science.reader("pie")
def read_pie(spec, picture):
    """Whether the colours' areas have the shares, within 4% of the whole. The squares of a legend are too small to
    matter.
    """
    areas = np.array([where(picture, HEX[colour]).sum() for colour in spec["colours"]], float)
    if areas.sum() < 0.02 * picture.shape[0] * picture.shape[1]:
        return {"values": False}
    shares = 100 * areas / areas.sum()
    return {"values": bool((np.abs(shares - np.array(spec["values"])) <= 4).all())}


def told_shares(spec) -> list[tuple[str, str]]:
    names = {colour[0]: colour for colour in COLOUR_NAMES}
    parts = zip(spec["names"], spec["values"], spec["colours"], strict=True)
    return [(f"{name} {value}% ({colour})", f"{name}{value}%（{names[colour][1]}）") for name, value, colour in parts]


def pie_word(spec):
    return ("doughnut chart", "环形图") if spec["style"]["ring"] else ("pie chart", "饼图")


def draw_a_pie(choices):
    spec = some_pie(choices)
    prompt = request(
        choices,
        ("a {kind} titled “{title}” with {shares}", "a {kind} of {shares}, titled “{title}”[, with a legend|]"),
        ("一[张|幅]{kind}，标题“{title}”，{shares}", "标题为“{title}”的{kind}：{shares}"),
        kind=pie_word(spec),
        title=spec["title"],
        shares=listed(told_shares(spec), choices.language),
    )
    return science.to_draw(choices, spec, prompt)


def move_a_share(choices):
    spec = some_pie(choices)
    i, j = choices.few(range(len(spec["values"])), 2)
    if spec["values"][i] < 15:
        return move_a_share(choices)
    moved = 5 * choices.number(1, spec["values"][i] // 5 - 2)
    values = changed(spec["values"], i, spec["values"][i] - moved)
    values[j] += moved
    prompt = say(
        choices,
        (
            "[Set|Change] {a} to {x}% and {b} to {y}%.",
            "Move {moved} percentage points from {a} to {b}.",
            "{a} is now {x}%, {b} {y}%. [Update|Correct] the chart.",
        ),
        ("把{a}改为{x}%，{b}改为{y}%。", "从{a}中[移出|拿出]{moved}个百分点给{b}。"),
        a=spec["names"][i],
        b=spec["names"][j],
        x=values[i],
        y=values[j],
        moved=moved,
    )
    return science.to_edit(choices, spec, spec | {"values": values}, prompt)


def as_bars(choices):
    """The same data as another chart."""
    spec = some_pie(choices)
    style = spec["style"] | {"grid": True, "frame": False, "lying": False, "written": True}
    bars = spec | {"figure": "bars", "style": style, "unit": "%"}
    back = choices.flip(0.5)
    before, after = (bars, spec) if back else (spec, bars)
    kind = pie_word(spec) if back else ("bar chart", "柱状图")
    prompt = say(
        choices,
        (
            "[Show|Draw|Redraw] [the same|these] [data|values] as a {kind}.",
            "[Turn|Convert|Change] [this|the] chart into a {kind}.",
        ),
        ("[把这张图|请将此图][改成|转换成|变成]{kind}[，数据不变|]。", "用{kind}[表示|显示][同样的|这些]数据。"),
        kind=kind,
    )
    return science.to_edit(choices, before, after, prompt)


def ask_a_share(choices):
    spec = some_pie(choices)
    i, j = choices.few(range(len(spec["values"])), 2)
    prompt = say(
        choices,
        (
            "What [share|percentage] do {a} and {b} have together?",
            "How many per cent are {a} and {b} [in total|together]?",
        ),
        ("{a}和{b}[一共|合计]占百分之几？", "{a}与{b}的[比例|百分比]之和是多少？"),
        a=spec["names"][i],
        b=spec["names"][j],
    )
    total = spec["values"][i] + spec["values"][j]
    return science.to_ask(choices, spec, prompt, f"{total}%", (str(total),))


def work_out_shares(choices):
    spec = some_pie(choices)
    whole = choices.pick((20, 40, 60, 80, 200))
    counts = [share * whole // 100 for share in spec["values"]]
    told = listed([f"{name} {count}" for name, count in zip(spec["names"], counts, strict=True)], choices.language)
    prompt = puzzle(
        choices,
        (
            "a {kind} titled “{title}” of these counts, in per cent: {told}.",
            "{told}. Show the shares as a {kind} titled “{title}”.",
        ),
        ("用{kind}表示下列数量所占的百分比，标题“{title}”：{told}。",),
        kind=pie_word(spec),
        title=spec["title"],
        told=told,
    )
    sums = " + ".join(map(str, counts))
    lines = [(f"The total is {sums} = {whole}.", f"总数：{sums} = {whole}。")]
    for name, count, share in zip(spec["names"], counts, spec["values"], strict=True):
        lines.append((f"{name}: {count} / {whole} = {share}%.", f"{name}：{count} / {whole} = {share}%。"))
    told = listed(told_shares(spec), choices.language)
    lines.append((f"The picture is a {pie_word(spec)[0]} with {told}.", f"图为{pie_word(spec)[1]}：{told}。"))
    return science.to_draw(choices, spec, prompt, steps(choices, *lines))


# Points


def some_points(choices, fewest=1) -> dict:
    title, across, unit, x0, x1, y0, y1 = choices.pick(POINTS)
    count, said = choices.number(fewest, 3), choices.language
    groups = []
    for _ in range(count):
        points, tries = [], 0
        wanted = choices.number(4, 12)
        while len(points) < wanted and tries < 200:
            tries += 1
            new = (round(choices.uniform(0.06, 0.94), 3), round(choices.uniform(0.06, 0.94), 3))
            every = [p for group in (*groups, points) for p in group]
            if all(abs(new[0] - x) + abs(new[1] - y) > 0.1 for x, y in every):
                points.append(new)
        groups.append(points)
    return {
        "figure": "points",
        "style": chart_style(choices) | {"mark": choices.pick(MARKS)},
        "title": both(title, said),
        "unit": both(unit, said),
        "across": both(across, said),
        "limits": [x0, x1, y0, y1],
        "labels": [both(name, said) for name in GROUPS[:count]],
        "groups": [[list(point) for point in group] for group in groups],
        "colours": [colour[0] for colour in choices.few(COLOUR_NAMES, count)],
    }


def marks_between(low, high) -> list:
    step = nice_step(high - low)
    first = -(-low // step) * step
    return [first + step * i for i in range(int((high - first) // step) + 1)]


@science.figure("points")
def draw_points(paper, spec):
    x0, x1, y0, y1 = spec["limits"]
    xs, ys = marks_between(x0, x1), marks_between(y0, y1)
    names, numbers = [plain(x) for x in xs], [plain(y) for y in ys]
    legend = list(zip(spec["colours"], spec["labels"], strict=True)) if len(spec["groups"]) > 1 else ()
    axes = axes_of(paper, spec, names, (ys, numbers), legend)
    for group, colour in zip(spec["groups"], spec["colours"], strict=True):
        places = np.array(group)
        axes.scatter(
            x0 + (x1 - x0) * places[:, 0],
            y0 + (y1 - y0) * places[:, 1],
            s=(0.62 * paper.unit) ** 2,
            c=HEX[colour],
            marker=spec["style"]["mark"],
            linewidths=0,
        )
    put_ticks(axes, spec, xs, names, ys, numbers, grid=("x", "y"))
    axes.set(xlim=(x0, x1), ylim=(y0, y1))


@science.reader("points")
def read_points(spec, picture):
    """Whether there are as many spots of each colour as points; squares of a legend may add one.

    The points of a small picture do not outlive JPEG.
    """
    counts = [len(pieces(where(picture, HEX[colour], 60), 24)) for colour in spec["colours"]]
    legend = len(spec["groups"]) > 1
    wanted = [len(group) for group in spec["groups"]]
    return {"count": all(n in ((k, k + 1) if legend else (k,)) for n, k in zip(counts, wanted, strict=True))}


MARK_NAMES = {"o": ("dots", "圆点"), "s": ("squares", "方块"), "^": ("triangles", "三角形")}


def draw_a_scatter_plot(choices):
    spec = some_points(choices)
    names = {colour[0]: colour for colour in COLOUR_NAMES}
    mark = MARK_NAMES[spec["style"]["mark"]]
    told = [
        (f"{len(group)} {colour} {mark[0]} for {label}", f"{label}{len(group)}个{names[colour][1]}{mark[1]}")
        for group, colour, label in zip(spec["groups"], spec["colours"], spec["labels"], strict=True)
    ]
    prompt = request(
        choices,
        (
            "a scatter plot titled “{title}”, {unit} against {across}, with {told}",
            "a scatter plot of {unit} over {across} [called|titled] “{title}”: {told}",
        ),
        ("一[张|幅]散点图，标题“{title}”，横轴{across}，纵轴{unit}，{told}",),
        title=spec["title"],
        across=spec["across"],
        unit=spec["unit"],
        told=listed(told, choices.language),
    )
    return science.to_draw(choices, spec, prompt)


def remove_a_group(choices):
    spec = some_points(choices, 2)
    i = choices.number(0, len(spec["groups"]) - 1)
    names = {colour[0]: colour for colour in COLOUR_NAMES}
    if choices.flip(0.5):
        if len(spec["groups"]) == 2:
            return remove_a_group(choices)
        after = spec | {key: spec[key][:i] + spec[key][i + 1 :] for key in ("groups", "labels", "colours")}
        forms = (
            ("[Remove|Delete|Drop] [the points of |]{label}.", "[Please show|Show] the plot without {label}."),
            ("[删除|去掉]{label}[的点|]。",),
        )
        colour = ""
    else:
        colour = choices.pick([colour for colour in COLOUR_NAMES if colour[0] not in spec["colours"]])
        after = spec | {"colours": changed(spec["colours"], i, colour[0])}
        forms = (
            (
                "[Make|Colour|Paint] the points of {label} {colour}.",
                "[Change|Set] the colour of {label} from {old} to {colour}.",
            ),
            ("把{label}的点[改成|变成]{colour}。",),
        )
    prompt = say(choices, *forms, label=spec["labels"][i], colour=colour, old=names[spec["colours"][i]])
    return science.to_edit(choices, spec, after, prompt)


def ask_how_many_points(choices):
    spec = some_points(choices)
    i = choices.number(0, len(spec["groups"]) - 1)
    names = {colour[0]: colour for colour in COLOUR_NAMES}
    prompt = say(
        choices,
        (
            "How many {colour} points are [there|in the plot]?",
            "[Count|Give the number of] the {colour} points.",
            "How many points are {colour}?",
        ),
        ("图中有[多少|几]个{colour}的点？", "[数一数|请数出]{colour}的点有几个。"),
        colour=names[spec["colours"][i]],
    )
    return science.to_ask(choices, spec, prompt, len(spec["groups"][i]))


# Histograms


def some_histogram(choices) -> dict:
    title, across, width = choices.pick(SPREADS)
    first, said = width * choices.number(1, 4), choices.language
    return {
        "figure": "histogram",
        "style": chart_style(choices) | {"lying": False},
        "title": both(title, said),
        "across": both(across, said),
        "unit": both(COUNT, said),
        "first": first,
        "width": width,
        "counts": [choices.number(1, 12) for _ in range(choices.number(5, 7))],
        "colours": [choices.pick(COLOUR_NAMES)[0]],
    }


@science.figure("histogram")
def draw_histogram(paper, spec):
    counts = spec["counts"]
    step = nice_step(max(counts))
    marks = [step * i for i in range(max(counts) // step + 2)]
    edges = [spec["first"] + spec["width"] * i for i in range(len(counts) + 1)]
    names, numbers = [plain(edge) for edge in edges], [plain(mark) for mark in marks]
    axes = axes_of(paper, spec, names, (marks, numbers))
    middles = [edge + spec["width"] / 2 for edge in edges[:-1]]
    axes.hist(middles, edges, weights=counts, color=HEX[spec["colours"][0]], edgecolor=paper.back, linewidth=paper.line)
    put_ticks(axes, spec, edges, names, marks, numbers)
    axes.set(ylim=(0, marks[-1]), xlim=(edges[0] - spec["width"] / 2, edges[-1] + spec["width"] / 2))


@science.reader("histogram")
def read_histogram(spec, picture):
    """Whether the columns' heights are in proportion to the counts, within 4% of the highest."""
    mask = where(picture, HEX[spec["colours"][0]])
    columns = np.flatnonzero(mask.any(axis=0))
    if len(columns) < len(spec["counts"]):
        return {"values": False}
    edges = np.linspace(columns[0], columns[-1] + 1, len(spec["counts"]) + 1)
    heights = np.array([mask[:, int((a + b) / 2)].sum() for a, b in itertools.pairwise(edges)], float)
    counts = np.array(spec["counts"], float)
    scale = (heights * counts).sum() / (counts * counts).sum()
    return {"values": bool((np.abs(heights - scale * counts) <= 0.04 * heights.max()).all())}


def span(spec, i) -> tuple[int, int]:
    return spec["first"] + i * spec["width"], spec["first"] + (i + 1) * spec["width"]


def draw_a_histogram(choices):
    spec = some_histogram(choices)
    names = {colour[0]: colour for colour in COLOUR_NAMES}
    prompt = request(
        choices,
        (
            "a {colour} histogram titled “{title}” with bins of {width} from {first} to {last} and the counts {counts}",
            "a histogram [called|titled] “{title}” of {across}, from {first} "
            "in steps of {width}, counts {counts}, in {colour}",
        ),
        ("一[张|幅]{colour}的直方图，标题“{title}”，从{first}到{last}，组距{width}，各组频数为{counts}",),
        title=spec["title"],
        across=spec["across"],
        width=spec["width"],
        first=spec["first"],
        last=span(spec, len(spec["counts"]) - 1)[1],
        counts=listed([str(count) for count in spec["counts"]], choices.language),
        colour=names[spec["colours"][0]],
    )
    return science.to_draw(choices, spec, prompt)


def change_a_bin(choices):
    spec = some_histogram(choices)
    i = choices.number(0, len(spec["counts"]) - 1)
    count = choices.pick([n for n in range(1, 13) if abs(n - spec["counts"][i]) > 1])
    a, b = span(spec, i)
    prompt = say(
        choices,
        (
            "[Set|Change] the count of the bin from {a} to {b} to {count}.",
            "Let the bar between {a} and {b} be {count} high.",
        ),
        ("把{a}到{b}这一组的频数改[为|成]{count}。",),
        a=a,
        b=b,
        count=count,
    )
    return science.to_edit(choices, spec, spec | {"counts": changed(spec["counts"], i, count)}, prompt)


def ask_a_range(choices):
    spec = some_histogram(choices)
    spec["style"]["grid"] = True
    i = choices.number(0, len(spec["counts"]) - 2)
    j = choices.number(i + 1, min(i + 2, len(spec["counts"]) - 1))
    prompt = say(
        choices,
        ("How many are between {a} and {b}?", "What is the total count from {a} to {b}?"),
        ("{a}到{b}之间一共有多少？", "从{a}到{b}的频数之和是多少？"),
        a=span(spec, i)[0],
        b=span(spec, j)[1],
    )
    return science.to_ask(choices, spec, prompt, sum(spec["counts"][i : j + 1]))


KINDS = {
    "draw": {
        "bar chart": draw_a_bar_chart,
        "line chart": draw_a_line_chart,
        "pie chart": draw_a_pie,
        "scatter plot": draw_a_scatter_plot,
        "histogram": draw_a_histogram,
    },
    "edit": {
        "value of a bar": change_a_value,
        "colour of a bar": recolour_a_bar,
        "bars more or fewer": remove_a_bar,
        "title of a chart": retitle,
        "style of a chart": toggle,
        "order of bars": sort_bars,
        "point of a line": change_a_point,
        "line removed": remove_a_line,
        "share of a pie": move_a_share,
        "another chart": as_bars,
        "group of points": remove_a_group,
        "bin of a histogram": change_a_bin,
    },
    "ask": {
        "value of a bar": ask_a_value,
        "extreme bar": ask_an_extreme,
        "sum of bars": ask_a_sum,
        "peak of a line": ask_a_peak,
        "share of a pie": ask_a_share,
        "number of points": ask_how_many_points,
        "range of a histogram": ask_a_range,
    },
    "reason": {"bars worked out": work_out_bars, "shares worked out": work_out_shares},
}
