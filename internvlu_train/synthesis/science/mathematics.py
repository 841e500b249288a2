"""Mathematics: plots of functions, triangles with marked angles, circles, and formulas."""

import math
from fractions import Fraction

import numpy as np

from ..drawing import COLOUR_NAMES, HEX, blend, some_style
from ..figures import held_out
from ..wording import in_language, listed, plain, puzzle, request, say, steps
from .base import science

NAMED = {colour[0]: colour for colour in COLOUR_NAMES}

# Functions


def term(factor, letter: str, first: bool = False) -> str:
    """A term of a sum in mathtext: "3x", " - x^2"; empty for zero."""
    if not factor:
        return ""
    sign = ("-" if factor < 0 else "") if first else (" - " if factor < 0 else " + ")
    size = abs(factor)
    number = plain(size) if size != 1 or not letter else ""
    return sign + number + letter


def polynomial(factors) -> str:
    """Mathtext of a polynomial from its factors, the highest power first."""
    text = ""
    for i, factor in enumerate(factors):
        power = len(factors) - 1 - i
        letter = "" if not power else "x" if power == 1 else f"x^{power}"
        text += term(factor, letter, not text)
    return text or "0"


FAMILIES = ("line", "parabola", "cubic", "sine", "absolute", "root", "exponential", "hyperbola")


def some_function(choices, family=None) -> dict:
    family = family or choices.pick(FAMILIES)
    a = choices.pick((-2, -1, 1, 2))
    h, k = choices.number(-3, 3), choices.number(-3, 3)
    factors = {
        "line": [choices.pick((-3, -2, -1, -0.5, 0.5, 1, 2, 3)), k],
        "parabola": [a if abs(a) == 1 else a / 4 if choices.flip(0.5) else a, h, k],
        "cubic": [choices.pick((-1, 1)), choices.number(-3, 3), choices.number(-2, 2)],
        "sine": [choices.number(1, 4), choices.pick((0.5, 1, 2)), choices.number(-2, 2)],
        "absolute": [a, h, k],
        "root": [a, h, k],
        "exponential": [choices.pick((2, 3, 0.5)), k],
        "hyperbola": [choices.pick((-4, -2, -1, 1, 2, 4)), choices.number(-2, 2)],
    }[family]
    return {"family": family, "factors": factors}


def values_of(function, x):
    """The function at the points x; nan where it is not defined."""
    f, a = function["family"], function["factors"]
    x = np.asarray(x, float)
    if f == "line":
        return a[0] * x + a[1]
    if f == "parabola":
        return a[0] * (x - a[1]) ** 2 + a[2]
    if f == "cubic":
        return a[0] * x**3 - a[0] * a[1] * x + a[2]
    if f == "sine":
        return a[0] * np.sin(a[1] * x) + a[2]
    if f == "absolute":
        return a[0] * np.abs(x - a[1]) + a[2]
    if f == "root":
        return np.where(x >= a[1], a[0] * np.sqrt(np.maximum(x - a[1], 0)) + a[2], np.nan)
    if f == "exponential":
        return np.power(float(a[0]), x) + a[1]
    return np.where(np.abs(x) < 1e-9, np.nan, a[0] / np.where(np.abs(x) < 1e-9, 1, x) + a[1])


def shifted(letter: str, by: float) -> str:
    return letter if not by else f"({letter}{' - ' if by > 0 else ' + '}{plain(abs(by))})"


def formula_of(function) -> str:
    """The right side in mathtext."""
    f, a = function["family"], function["factors"]
    if f == "line":
        return polynomial(a)
    if f == "parabola":
        return term(a[0], shifted("x", a[1]) + "^2", True) + term(a[2], "")
    if f == "cubic":
        return polynomial([a[0], 0, -a[0] * a[1], a[2]])
    if f == "sine":
        inner = {0.5: "0.5x", 1: "x", 2: "2x"}[a[1]]
        return term(a[0], rf"\sin({inner})", True) + term(a[2], "")
    if f == "absolute":
        inner = "x" + term(-a[1], "")
        return term(a[0], f"|{inner}|", True) + term(a[2], "")
    if f == "root":
        return term(a[0], rf"\sqrt{{x{term(-a[1], '')}}}", True) + term(a[2], "")
    if f == "exponential":
        return f"{plain(a[0])}^x" + term(a[1], "")
    return (r"-" if a[0] < 0 else "") + rf"\frac{{{abs(a[0])}}}{{x}}" + term(a[1], "")


def spoken(function) -> str:
    """The formula as it is typed in a prompt."""
    text = (
        formula_of(function).replace("\\sin", "sin").replace("\\sqrt{", "sqrt(").replace("^2", "²").replace("^3", "³")
    )
    if function["family"] == "root":
        text = text.replace("}", ")")
    if function["family"] == "hyperbola":
        text = text.replace("\\frac{", "").replace("}{x}", "/x")
    return text.replace(" - ", " − ")


def some_plot(choices, family=None, count=None) -> dict:
    count = count or choices.pick((1, 1, 2))
    functions = [some_function(choices, family if not i else None) for i in range(count)]
    while count == 2 and formula_of(functions[0]) == formula_of(functions[1]):
        functions[1] = some_function(choices)
    return {
        "figure": "plot",
        "style": some_style(choices) | {"grid": choices.flip(0.6), "dashed": False, "wide": choices.number(5, 6)},
        "functions": functions,
        "colours": [colour[0] for colour in choices.few(COLOUR_NAMES, count)],
        "points": [],
    }


@science.figure("plot")
def draw_plot(paper, spec):
    """Both axes with the same scale, through the origin."""
    for colour, function in zip(spec["colours"], spec["functions"], strict=True):
        text = f"$y = {displayed(formula_of(function))}$"
        paper.box(
            paper.left, paper.top - paper.unit, 1.4 * paper.unit, 0.25 * paper.unit, HEX[colour], HEX[colour], 0.5
        )
        paper.text(paper.left + 2 * paper.unit, paper.top - 0.85 * paper.unit, text, 1.15, ha="left")
        paper.top -= 2.5 * paper.unit
    wide = spec["style"]["wide"]
    w, h = paper.right - paper.left, paper.top - paper.bottom
    scale = min(w, h) / (2 * wide)
    half_x, half_y = int(w / scale / 2), int(h / scale / 2)
    plane = paper.plane(-w / scale / 2, w / scale / 2, -h / scale / 2, h / scale / 2)
    at, pale = plane.at, blend(paper.ink, paper.back, 0.82)
    if spec["style"]["grid"]:
        for i in range(-half_x, half_x + 1):
            paper.path([at(i, -h / scale / 2), at(i, h / scale / 2)], pale, 0.6)
        for i in range(-half_y, half_y + 1):
            paper.path([at(-w / scale / 2, i), at(w / scale / 2, i)], pale, 0.6)
    paper.arrow(at(-w / scale / 2, 0), at(w / scale / 2, 0), width=1.1)
    paper.arrow(at(0, -h / scale / 2), at(0, h / scale / 2), width=1.1)
    step = 1 if scale > 2.2 * paper.unit else 2
    tick = 0.25 * paper.unit
    faint = blend(paper.ink, paper.back, 0.25)
    numbers = []  # (x, y, text, ha)
    for i in range(-half_x, half_x + 1):
        if i and i % step == 0 and abs(i) * scale < w / 2 - 0.8 * paper.unit:
            x, y = at(i, 0)
            paper.path([(x, y - tick), (x, y + tick)], width=0.9)
            numbers.append((x, y - 1.05 * paper.unit, str(i).replace("-", "−"), "center"))
    for i in range(-half_y, half_y + 1):
        if i and i % step == 0 and abs(i) * scale < h / 2 - 0.8 * paper.unit:
            x, y = at(0, i)
            paper.path([(x - tick, y), (x + tick, y)], width=0.9)
            numbers.append((x - 0.55 * paper.unit, y, str(i).replace("-", "−"), "right"))
    xs = np.linspace(-w / scale / 2, w / scale / 2, 801)
    for colour, function in zip(spec["colours"], spec["functions"], strict=True):
        draw_curve(paper, plane, xs, values_of(function, xs), h / scale / 2, HEX[colour])
    taken = []  # (left, bottom, right, top) of the points and their labels
    for x, y, label, up in spec["points"]:
        px, py = at(x, y)
        paper.disc(px, py, 0.28 * paper.unit, paper.ink)
        taken.append(around(paper, px, py, 0.7 * paper.unit))
        if label:
            long = paper.measure(label, 0.9)
            side = 1 if px < paper.width - long - 2 * paper.unit else -1
            px, py = px + side * 0.5 * paper.unit, py + up * 0.9 * paper.unit
            paper.text(px, py, label, 0.9, ha="left" if side > 0 else "right", halo=True)
            taken.append(around(paper, px + side * long / 2, py, long))
    for x, y, text, ha in numbers:  # on the curves, and where no point is, which says as much
        long = paper.measure(text, 0.8)
        left, bottom, right, top = around(paper, x - long / 2 if ha == "right" else x, y, long)
        if not any(left < box[2] and box[0] < right and bottom < box[3] and box[1] < top for box in taken):
            paper.text(x, y, text, 0.8, colour=faint, ha=ha)


def around(paper, x, y, long) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of a text of a line, or a disc, of this width around (x, y), and a little more."""
    wide, high = long / 2 + 0.15 * paper.unit, 0.6 * paper.unit
    return x - wide, y - high, x + wide, y + high


def draw_curve(paper, plane, xs, ys, limit, colour):
    """A curve, cut where it leaves the picture or is not defined."""
    run = []
    for x, y, before in zip(xs, ys, [np.nan, *ys[:-1]], strict=True):
        jump = abs(y - before) > limit
        if np.isnan(y) or abs(y) > limit or jump:
            if len(run) > 1:
                paper.path(run, paper.bright(colour), 2.2)
            run = []
        if not np.isnan(y) and abs(y) <= limit:
            run.append(plane.at(x, y))
    if len(run) > 1:
        paper.path(run, paper.bright(colour), 2.2)


def told_functions(choices, spec) -> str:
    parts = [
        (f"y = {spoken(function)} in {colour}", f"{NAMED[colour][1]}的y = {spoken(function)}")
        for function, colour in zip(spec["functions"], spec["colours"], strict=True)
    ]
    return listed(parts, choices.language)


def draw_a_plot(choices):
    spec = some_plot(choices)
    prompt = request(
        choices,
        ("the graph of {functions}{grid}", "a coordinate system with [the graph of|the plot of] {functions}{grid}"),
        ("函数图像：{functions}{grid}", "坐标系中{functions}的图像{grid}"),
        functions=told_functions(choices, spec),
        grid=(" on a grid", "，带网格") if spec["style"]["grid"] else ("", ""),
    )
    return science.to_draw(choices, spec, prompt)


def change_a_plot(choices):
    spec = some_plot(choices, count=1)
    function = spec["functions"][0]
    what = choices.pick(("up", "mirror", "other", "colour", "grid", "add"))
    values = {}
    if what == "up" and function["family"] not in ("exponential",):
        by = choices.pick((-3, -2, -1, 1, 2, 3))
        after = spec | {
            "functions": [{**function, "factors": [*function["factors"][:-1], function["factors"][-1] + by]}]
        }
        values = {"by": abs(by), "way": ("up", "上") if by > 0 else ("down", "下")}
        forms = ("[Shift|Move|Translate] the [graph|curve] {way} by {by}.",), ("把[图像|曲线]向{way}平移{by}个单位。",)
    elif what == "mirror" and function["family"] in ("line", "parabola", "cubic", "absolute", "root", "sine"):
        f = function["factors"]
        flipped = [-f[0], f[1], -f[2]] if len(f) == 3 else [-f[0], -f[1]]
        after = spec | {"functions": [{**function, "factors": flipped}]}
        forms = ("[Reflect|Mirror] the [graph|curve] in the x-axis.",), ("把[图像|曲线]关于x轴对称翻转。",)
    elif what == "colour":
        colour = choices.pick([colour for colour in COLOUR_NAMES if colour[0] not in spec["colours"]])
        after, values = spec | {"colours": [colour[0]]}, {"colour": colour}
        forms = ("[Make|Colour|Draw] the curve [in |]{colour}.",), ("把曲线[改成|画成]{colour}。",)
    elif what == "grid":
        after = spec | {"style": spec["style"] | {"grid": not spec["style"]["grid"]}}
        forms = (
            (("[Remove|Hide] the grid.",), ("去掉网格。",))
            if spec["style"]["grid"]
            else (("[Add|Show|Draw] a grid.",), ("[加上|显示]网格。",))
        )
    elif what == "add" and function["family"] in ("line", "parabola", "absolute", "cubic"):
        x = choices.number(-2, 2)
        y = float(values_of(function, [x])[0])
        if abs(y) > 4:
            return change_a_plot(choices)
        label = f"({plain(x)}, {plain(y)})".replace("-", "−")
        after, values = spec | {"points": [[x, y, label, 1]]}, {"x": plain(x)}
        forms = (
            ("[Mark|Add|Show] the point of the curve at x = {x} with its coordinates.",),
            ("标出曲线上x = {x}的点及其坐标。",),
        )
    else:
        other = some_function(choices, function["family"])
        if formula_of(other) == formula_of(function):
            return change_a_plot(choices)
        after, values = spec | {"functions": [other]}, {"formula": spoken(other)}
        forms = (
            ("[Show|Plot|Draw] y = {formula} instead.", "[Change|Set] the function to y = {formula}."),
            ("[换成|改画]y = {formula}。", "把函数改为y = {formula}。"),
        )
    return science.to_edit(choices, spec, after, say(choices, *forms, **values))


def roots_of(a, h, k) -> list[float]:
    """The zeros of a (x − h)² + k."""
    square = -k / a
    return [] if square < 0 else [h] if not square else [h - math.sqrt(square), h + math.sqrt(square)]


def ask_about_a_plot(choices):
    family = choices.pick(("line", "parabola"))
    spec = some_plot(choices, family, 1)
    spec["style"]["grid"] = True
    a = spec["functions"][0]["factors"]
    if family == "line":
        what = choices.pick(("slope", "intercept"))
        forms, answer = {
            "slope": ((("What is the slope of the line?",), ("直线的斜率是多少？",)), plain(a[0])),
            "intercept": (
                (("Where does the line cross the y-axis?",), ("直线与y轴交于何处？",)),
                f"(0, {plain(a[1])})",
            ),
        }[what]
    else:
        what = choices.pick(("vertex", "zeros", "way"))
        forms, answer = {
            "vertex": (
                (("[Where is|What is] the vertex of the parabola?",), ("抛物线的顶点在哪里？",)),
                f"({plain(a[1])}, {plain(a[2])})",
            ),
            "zeros": ((("How many zeros does the function have?",), ("该函数有几个零点？",)), str(len(roots_of(*a)))),
            "way": (
                (("Does the parabola open upwards or downwards?",), ("抛物线开口向上还是向下？",)),
                in_language(("upwards", "向上") if a[0] > 0 else ("downwards", "向下"), choices.language),
            ),
        }[what]
    return science.to_ask(choices, spec, say(choices, *forms), answer)


def work_out_a_parabola(choices):
    spec = some_plot(choices, "parabola", 1)
    a = choices.pick((-1, 1))
    one, two = sorted(choices.few(range(-4, 5), 2))
    if (one + two) % 2:
        return work_out_a_parabola(choices)
    h = (one + two) // 2
    k = a * (h - one) * (h - two)
    if abs(k) > 5:
        return work_out_a_parabola(choices)
    spec["functions"] = [{"family": "parabola", "factors": [a, h, k]}]
    spec["points"] = [[one, 0, "", 1], [two, 0, "", 1], [h, k, f"({h}, {k})".replace("-", "−"), -a]]
    b, c = -a * (one + two), a * one * two
    typed = polynomial([a, b, c]).replace("^2", "²").replace(" - ", " − ")
    prompt = puzzle(
        choices,
        (
            "the parabola y = {typed} in {colour}, with its zeros and its vertex marked.",
            "find the zeros and the vertex of y = {typed}, and plot it in {colour} with these points.",
        ),
        ("画出{colour}的抛物线y = {typed}，标出零点和顶点。",),
        typed=typed,
        colour=NAMED[spec["colours"][0]],
    )
    words = steps(
        choices,
        (
            f"x² − ({plain(one + two)})x + ({plain(one * two)}) = 0 has the zeros x = {one} and x = {two}.",
            f"x² − ({plain(one + two)})x + ({plain(one * two)}) = 0的根为x = {one}和x = {two}。",
        ),
        (
            f"The vertex lies in the middle, at x = ({one} + {two}) / 2 = {h}.",
            f"顶点在两根中间：x = ({one} + {two}) / 2 = {h}。",
        ),
        (
            f"There y = {k}, so the vertex is ({h}, {k}), and y = {spoken(spec['functions'][0])}.",
            f"此处y = {k}，顶点为({h}, {k})，即y = {spoken(spec['functions'][0])}。",
        ),
        (
            f"It opens {'upwards' if a > 0 else 'downwards'}. The picture "
            f"shows it in {spec['colours'][0]} with three points.",
            f"开口{'向上' if a > 0 else '向下'}。图中用{NAMED[spec['colours'][0]][1]}画出曲线和三个点。",
        ),
    )
    return science.to_draw(choices, spec, prompt, words)


# Triangles


def some_triangle(choices, right=False) -> dict:
    if right:
        first = 5 * choices.number(5, 13)
        angles = [90, first, 90 - first]
    else:
        while True:
            a, b = 5 * choices.number(6, 22), 5 * choices.number(6, 22)
            if 30 <= 180 - a - b <= 120 and 90 not in (a, b, 180 - a - b):
                break
        angles = [a, b, 180 - a - b]
    return {
        "figure": "triangle",
        "style": some_style(choices)
        | {"fill": choices.pick(COLOUR_NAMES)[0], "turn": choices.number(-25, 25), "filled": choices.flip(0.5)},
        "angles": angles,
        "names": choices.pick(("ABC", "PQR", "XYZ", "KLM")),
        "marked": [0, 1, 2] if choices.flip(0.5) else sorted(choices.few(range(3), choices.number(1, 2))),
        "line": None,
        "asked": None,
    }


LINES = {
    "altitude": ("altitude", "高"),
    "median": ("median", "中线"),
    "bisector": ("angle bisector", "角平分线"),
    "incircle": ("inscribed circle", "内切圆"),
    "circumcircle": ("circumscribed circle", "外接圆"),
}


def triangle_points(spec) -> np.ndarray:
    """The corners [3, 2] with a circumscribed circle of radius 1 about the origin."""
    a, _b, c = (math.radians(angle) for angle in spec["angles"])
    first = math.radians(spec["style"]["turn"] - 90) - 2 * c - a  # so that the side opposite to it lies below
    ways = [first, first + 2 * c, first + 2 * c + 2 * a]  # an inscribed angle is half of that at the centre
    return np.array([(math.cos(way), math.sin(way)) for way in ways])


@science.figure("triangle")
def draw_triangle(paper, spec):
    points = triangle_points(spec)
    low, high = points.min(axis=0), points.max(axis=0)
    if spec["line"] == "circumcircle" or spec["room"]:
        low, high = np.array([-1.0, -1.0]), np.array([1.0, 1.0])
    plane = paper.plane(low[0] - 0.22, high[0] + 0.22, low[1] - 0.22, high[1] + 0.22)
    corners = plane.all(points)
    hue = HEX[spec["style"]["fill"]]
    paper.path(corners, fill=blend(hue, paper.back, 0.75) if spec["style"]["filled"] else None, closed=True, width=1.7)
    middle = np.mean(corners, axis=0)
    for i in range(3):
        corner = np.array(corners[i])
        ways = [math.degrees(math.atan2(*(np.array(corners[j]) - corner)[::-1])) for j in ((i + 1) % 3, (i + 2) % 3)]
        start, end = sorted(ways)
        if end - start > 180:
            start, end = end, start + 360
        if i in spec["marked"] or i == spec["asked"]:
            mark_angle(
                paper,
                corner,
                start,
                end,
                spec["angles"][i],
                "?" if i == spec["asked"] else f"{spec['angles'][i]}°",
                hue,
                toward(points, corners, spec, plane) if i == 0 else None,
            )
        out = corner - middle
        x, y = corner + out / np.hypot(*out) * 1.1 * paper.unit
        paper.text(x, y, spec["names"][i], 1.2, bold=True)
    if spec["line"]:
        draw_special_line(paper, plane, points, spec)


def toward(points, corners, spec, plane) -> float | None:
    """The direction, in degrees, of a line through the first corner."""
    if spec["line"] not in ("altitude", "median", "bisector"):
        return None
    foot = np.array(plane.at(*foot_of(points, spec["line"])))
    return math.degrees(math.atan2(*(foot - corners[0])[::-1]))


def mark_angle(paper, corner, start, end, angle, label, hue, line=None):
    """An arc with a label; two strokes for a right angle. line: the direction of a line through it, which the label
    does not touch.
    """
    radius = 1.9 * paper.unit if angle > 40 else 2.6 * paper.unit
    way = math.radians((start + end) / 2)
    if angle == 90:
        side = 1.2 * paper.unit
        a, b = math.radians(start), math.radians(end)
        one = corner + side * np.array([math.cos(a), math.sin(a)])
        two = corner + side * np.array([math.cos(b), math.sin(b)])
        paper.path([one, one + two - corner, two], width=1.2)
        reach = 2.6 * paper.unit
    else:
        paper.arc(*corner, radius, start, end, hue, 1.4, fill=hue)
        reach = radius + 0.9 * paper.unit + 0.012 * paper.unit * max(0, 60 - angle) * 2
    if line is not None:
        line = start + (line - start) % 360
        low, high = max((start, line), (line, end), key=lambda part: part[1] - part[0])
        way, half = math.radians((low + high) / 2), math.radians((high - low) / 2)
        reach = max(reach, 1.2 * paper.unit / math.sin(half))
    paper.text(corner[0] + reach * math.cos(way), corner[1] + reach * math.sin(way), label, 0.9)


def draw_special_line(paper, plane, points, spec):
    """A line from the first corner, or a circle."""
    a, b, c = points
    colour, dash = paper.ink, (5, 3)
    if spec["line"] == "circumcircle":
        paper.disc(*plane.at(0, 0), plane.scale, None, colour, 1.2)
        return
    lengths = [np.hypot(*(b - c)), np.hypot(*(c - a)), np.hypot(*(a - b))]
    if spec["line"] == "incircle":
        centre = (lengths[0] * a + lengths[1] * b + lengths[2] * c) / sum(lengths)
        area = abs((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]) / 2
        paper.disc(*plane.at(*centre), plane.scale * 2 * area / sum(lengths), None, colour, 1.2)
        return
    foot = foot_of(points, spec["line"])
    paper.path(plane.all([a, foot]), colour, 1.3, dash=dash)
    paper.disc(*plane.at(*foot), 0.22 * paper.unit, colour)


def foot_of(points, line: str) -> np.ndarray:
    """Where a line from the first corner meets the opposite side."""
    a, b, c = points
    along, beside, opposite = c - b, np.hypot(*(c - a)), np.hypot(*(a - b))
    share = {
        "altitude": float((a - b) @ along / (along @ along)),
        "median": 0.5,
        "bisector": opposite / (beside + opposite),
    }[line]
    return b + share * along


def told_angles(choices, spec) -> str:
    names = spec["names"]
    return listed([f"∠{names[i]} = {spec['angles'][i]}°" for i in range(3)], choices.language)


def triangle(choices, **changes) -> dict:
    return {"room": False} | some_triangle(choices, changes.pop("right", choices.flip(0.3))) | changes


def draw_a_triangle(choices):
    spec = triangle(choices)
    if choices.flip(0.4):
        acute = max(spec["angles"]) < 90
        spec["line"] = choices.pick([line for line in LINES if acute or line != "altitude"])
    extra = ("", "")
    if spec["line"] in ("incircle", "circumcircle"):
        extra = (f", with its {LINES[spec['line']][0]}", f"，画出{LINES[spec['line']][1]}")
    elif spec["line"]:
        extra = (
            f", with the {LINES[spec['line']][0]} from {spec['names'][0]}",
            f"，画出从{spec['names'][0]}出发的{LINES[spec['line']][1]}",
        )
    filled = (f"{spec['style']['fill']} ", NAMED[spec["style"]["fill"]][1]) if spec["style"]["filled"] else ("", "")
    prompt = request(
        choices,
        (
            "a {filled}triangle {names} with {angles}; [mark|label] the angle(s) at {marked}{extra}",
            "the {filled}triangle {names} ({angles}) with the angle(s) at {marked} marked{extra}",
        ),
        ("一个{filled}三角形{names}，{angles}，标出{marked}处的角{extra}",),
        filled=filled,
        names=spec["names"],
        angles=told_angles(choices, spec),
        marked=listed([spec["names"][i] for i in spec["marked"]], choices.language),
        extra=extra,
    )
    return science.to_draw(choices, spec, prompt.replace("(s)", "s" if len(spec["marked"]) > 1 else ""))


def change_a_triangle(choices):
    spec = triangle(choices, room=True)
    names = spec["names"]
    what = choices.pick(("line", "mark", "colour", "names", "unmark"))
    values = {"a": names[0]}
    if what == "line":
        acute = max(spec["angles"]) < 90
        line = choices.pick([line for line in LINES if acute or line != "altitude"])
        after, values["line"] = spec | {"line": line}, LINES[line]
        if line.endswith("circle"):
            forms = ("[Add|Draw|Construct] the {line}.",), ("[画出|作出|加上]{line}。",)
        else:
            forms = ("[Add|Draw|Construct] the {line} from {a}.",), ("[画出|作出]从{a}出发的{line}。",)
        if choices.flip(0.25):
            spec, after = after, spec
            forms = ("[Remove|Erase] the {line}.",), ("[去掉|擦去]{line}。",)
    elif what in ("mark", "unmark"):
        i = choices.number(0, 2)
        rest = [j for j in range(3) if j != i]
        less, more = spec | {"marked": rest}, spec | {"marked": [0, 1, 2]}
        values["b"] = names[i]
        spec, after = (less, more) if what == "mark" else (more, less)
        forms = (
            (
                ("[Mark|Label] the angle at {b} too.", "The angle at {b} is not marked[. Mark it|; mark it]."),
                ("标出{b}处的角。",),
            )
            if what == "mark"
            else (("[Remove|Erase] the mark of the angle at {b}.",), ("去掉{b}处角的标记。",))
        )
    elif what == "colour":
        colour = choices.pick([colour for colour in COLOUR_NAMES if colour[0] != spec["style"]["fill"]])
        spec = spec | {"style": spec["style"] | {"filled": True}, "marked": []}
        after, values["colour"] = spec | {"style": spec["style"] | {"fill": colour[0]}}, colour
        forms = ("[Make|Fill|Colour] the triangle [in |]{colour}.",), ("把三角形[涂成|改成]{colour}。",)
    else:
        new = choices.pick([n for n in ("ABC", "PQR", "XYZ", "KLM", "DEF") if n != names])
        after, values["new"], values["old"] = spec | {"names": new}, ", ".join(new), ", ".join(names)
        forms = ("[Rename|Relabel] the corners {old} to {new}.",), ("把顶点{old}改名为{new}。",)
    return science.to_edit(choices, spec, after, say(choices, *forms, **values))


def ask_an_angle(choices):
    i = choices.number(0, 2)
    spec = triangle(choices)
    spec["marked"], spec["asked"] = [j for j in range(3) if j != i], i
    if choices.flip(0.3):
        kinds = (
            ("right", "直角")
            if 90 in spec["angles"]
            else ("obtuse", "钝角")
            if max(spec["angles"]) > 90
            else ("acute", "锐角")
        )
        spec["marked"], spec["asked"] = [0, 1, 2], None
        forms = ("Is the triangle acute, right or obtuse?",), ("这是锐角、直角还是钝角三角形？",)
        return science.to_ask(choices, spec, say(choices, *forms), in_language(kinds, choices.language))
    forms = (
        ("How large is the angle at {b}?", "[Find|Work out] the angle marked with “?”."),
        ("{b}处的角是多少度？", "求标有“?”的角。"),
    )
    answer = spec["angles"][i]
    return science.to_ask(
        choices, spec, say(choices, *forms, b=spec["names"][i]), f"{answer}°", (str(answer), f"{answer}度")
    )


def work_out_a_triangle(choices):
    spec = triangle(choices)
    spec["marked"], names = [0, 1, 2], spec["names"]
    a, b, c = spec["angles"]
    spec["style"]["filled"] = True
    colour = NAMED[spec["style"]["fill"]]
    ratio = Fraction(b, c)
    given = choices.pick(("two", "ratio"))
    told = (
        f"the angles at {names[0]} and {names[1]} are {a}° and {b}°",
        f"{names[0]}和{names[1]}处的角分别为{a}°和{b}°",
    )
    lines = [("The angles of a triangle add up to 180°.", "三角形内角和为180°。")]
    if given == "ratio" and ratio.numerator < 20:
        p, q = ratio.numerator, ratio.denominator
        told = (
            f"the angle at {names[0]} is {a}°, and those at {names[1]} and {names[2]} are as {p} to {q}",
            f"{names[0]}处的角为{a}°，{names[1]}与{names[2]}处的角之比为{p}:{q}",
        )
        lines.append(
            (
                f"For {names[1]} and {names[2]}, {180 - a}° are left, in "
                f"{p + q} parts of {plain((180 - a) / (p + q))}°.",
                f"其余两角共{180 - a}°，分成{p + q}份，每份{plain((180 - a) / (p + q))}°。",
            )
        )
        lines.append((f"So {names[1]} has {b}° and {names[2]} has {c}°.", f"所以{names[1]}为{b}°，{names[2]}为{c}°。"))
    else:
        lines.append(
            (f"The angle at {names[2]} is 180° − {a}° − {b}° = {c}°.", f"{names[2]}处的角为180° − {a}° − {b}° = {c}°。")
        )
    lines.append(
        (
            f"The picture: a {colour[0]} triangle {names} with all three angles marked.",
            f"图中：{colour[1]}三角形{names}，标出三个角。",
        )
    )
    prompt = puzzle(
        choices,
        ("in a triangle {names}, {told}. The triangle in {colour} with all angles marked.",),
        ("三角形{names}中，{told}。画出{colour}的三角形并标出所有角。",),
        names=names,
        told=told,
        colour=colour,
    )
    return science.to_draw(choices, spec, prompt, steps(choices, *lines))


# Formulas

# (name, mathtext)
FORMULAS = (
    (("quadratic formula", "二次方程求根公式"), r"x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}"),
    (("Pythagorean theorem", "勾股定理"), r"a^2 + b^2 = c^2"),
    (("law of cosines", "余弦定理"), r"c^2 = a^2 + b^2 - 2ab\cos\gamma"),
    (("law of sines", "正弦定理"), r"\frac{a}{\sin\alpha} = \frac{b}{\sin\beta} = \frac{c}{\sin\gamma}"),
    (("Euler's identity", "欧拉恒等式"), r"e^{i\pi} + 1 = 0"),
    (("binomial theorem", "二项式定理"), r"(a+b)^n = \sum_{k=0}^{n} \binom{n}{k} a^{n-k} b^k"),
    (("geometric series", "等比级数"), r"\sum_{k=0}^{\infty} q^k = \frac{1}{1-q}"),
    (("sum of the first n numbers", "前n个自然数之和"), r"\sum_{k=1}^{n} k = \frac{n(n+1)}{2}"),
    (("definition of the derivative", "导数的定义"), r"f'(x) = \lim_{h \to 0} \frac{f(x+h) - f(x)}{h}"),
    (("fundamental theorem of calculus", "微积分基本定理"), r"\int_a^b f'(x)\,dx = f(b) - f(a)"),
    (("normal distribution", "正态分布"), r"f(x) = \frac{1}{\sigma\sqrt{2\pi}} e^{-\frac{(x-\mu)^2}{2\sigma^2}}"),
    (("Bayes' theorem", "贝叶斯定理"), r"P(A \mid B) = \frac{P(B \mid A)\,P(A)}{P(B)}"),
    (("Gaussian integral", "高斯积分"), r"\int_{-\infty}^{\infty} e^{-x^2} dx = \sqrt{\pi}"),
    (("Basel problem", "巴塞尔问题"), r"\sum_{n=1}^{\infty} \frac{1}{n^2} = \frac{\pi^2}{6}"),
    (("Newton's second law", "牛顿第二定律"), r"\vec{F} = m\,\vec{a}"),
    (("law of gravitation", "万有引力定律"), r"F = G\,\frac{m_1 m_2}{r^2}"),
    (("mass-energy equivalence", "质能方程"), r"E = mc^2"),
    (("ideal gas law", "理想气体状态方程"), r"pV = nRT"),
    (("Taylor series of the exponential", "指数函数的泰勒级数"), r"e^x = \sum_{n=0}^{\infty} \frac{x^n}{n!}"),
    (("area of a circle", "圆的面积"), r"A = \pi r^2"),
    (("volume of a sphere", "球的体积"), r"V = \frac{4}{3}\pi r^3"),
    (("Schrödinger equation", "薛定谔方程"), r"i\hbar\,\frac{\partial}{\partial t}\Psi = \hat{H}\Psi"),
    (("Coulomb's law", "库仑定律"), r"F = \frac{1}{4\pi\varepsilon_0} \frac{q_1 q_2}{r^2}"),
    (("product rule", "乘积法则"), r"(fg)' = f'g + fg'"),
    (("chain rule", "链式法则"), r"(f \circ g)'(x) = f'(g(x))\,g'(x)"),
)


def formula_spec(choices, lines) -> dict:
    return {
        "figure": "formula",
        "style": some_style(choices) | {"boxed": choices.flip(0.25), "large": round(choices.uniform(2.0, 3.4), 2)},
        "lines": lines,
        "hue": None,
    }


@science.figure("formula")
def draw_formula(paper, spec):
    lines, style = spec["lines"], spec["style"]
    measured = [formula_size(paper, line) for line in lines]
    pitch = max(high for _, high in measured) + 0.9
    size = min(
        style["large"],
        (paper.right - paper.left) / (1.12 * paper.unit * max(wide for wide, _ in measured)),
        (paper.top - paper.bottom) / (paper.unit * pitch * len(lines)),
    )
    colour = paper.bright(HEX[spec["hue"]]) if spec["hue"] else paper.ink
    y = paper.height / 2 + size * paper.unit * pitch * (len(lines) - 1) / 2
    for line in lines:
        paper.text(paper.width / 2, y, f"${displayed(line)}$", size, colour=colour, va="center")
        y -= size * paper.unit * pitch
    if style["boxed"]:
        wide = max(w for w, _ in measured) * size * paper.unit + 1.6 * paper.unit
        high = size * paper.unit * pitch * len(lines)
        wide = min(wide, paper.width - paper.unit)
        paper.box(
            paper.width / 2 - wide / 2,
            paper.height / 2 - high / 2,
            wide,
            high,
            None,
            blend(colour, paper.back, 0.3),
            1.2,
        )


def formula_size(paper, line) -> tuple[float, float]:
    """Width and height of mathtext at the size 1, in units."""
    from matplotlib.mathtext import MathTextParser

    parsed = MathTextParser("path").parse(f"${displayed(line)}$", 72, paper.font("x", 100 / paper.unit))
    return parsed.width / 100, (parsed.height + parsed.depth) / 100


def displayed(line: str) -> str:
    """Mathtext with fractions of full size, but for those in exponents."""
    return line.replace(r"\frac", r"\dfrac").replace(r"^{-\dfrac", r"^{-\frac")


def typed(line: str) -> str:
    return f"${line}$"


def some_equation(choices) -> tuple[str, str]:
    """A random equation, and the same with another number, which stands in it once and is no power."""
    kind = choices.pick(("polynomial", "fraction", "root", "integral", "system"))
    a, b, c, other = choices.few(range(3, 10), 4)
    shape = {
        "polynomial": f"{{}}x^2 - {b}x + {c} = 0",
        "fraction": rf"\frac{{x + {{}}}}{{{b}}} = \frac{{{c}}}{{x}}",
        "root": rf"\sqrt{{{{}}x + {b}}} = {c}",
        "integral": rf"\int_0^{{{b}}} \left({{}}x + {c}\right) dx",
        "system": rf"{{}}x + {b}y = {c}",
    }[kind]
    return shape.replace("{}", str(a), 1).replace("{{", "{").replace("}}", "}"), shape.replace(
        "{}", str(other), 1
    ).replace("{{", "{").replace("}}", "}")


def with_article(name) -> tuple[str, str]:
    """ "the law of sines", but "Euler's identity"."""
    en, zh = name
    return en if "'" in en else f"the {en}", zh


def draw_a_formula(choices):
    colour = choices.pick(COLOUR_NAMES) if choices.flip(0.4) else None
    extra = (f" in {colour[0]}", f"，用{colour[1]}") if colour else ("", "")
    if choices.flip(0.5):
        (name, line) = choices.pick(held_out(choices, FORMULAS))
        forms = (
            ("{name}, typeset[ large|]{extra}: {line}", "the formula [of|for] {name}{extra}"),
            ("{name}的公式{extra}", "排印出{name}{extra}：{line}"),
        )
    else:
        name, (line, _) = ("", ""), some_equation(choices)
        forms = (
            ("the formula {line}, typeset{extra}", "{line} as a [typeset|printed] formula{extra}"),
            ("排印公式{line}{extra}",),
        )
    spec = formula_spec(choices, [line]) | {"hue": colour[0] if colour else None}
    return science.to_draw(
        choices, spec, request(choices, *forms, name=with_article(name), line=typed(line), extra=extra)
    )


def change_a_formula(choices):
    line, other = some_equation(choices)
    old, new = next((x, y) for x, y in zip(line, other, strict=True) if x != y)
    spec = formula_spec(choices, [line])
    if choices.flip(0.3):
        colour = choices.pick(COLOUR_NAMES)
        prompt = say(
            choices, ("[Write|Set|Print] the formula in {colour}.",), ("把公式[改成|变成]{colour}。",), colour=colour
        )
        return science.to_edit(choices, spec, spec | {"hue": colour[0]}, prompt)
    prompt = say(
        choices,
        (
            "Replace the number {old} [by|with] {new}.",
            "Change the number {old} to {new}.",
            "It should [be|read] {line}.",
        ),
        ("把公式改为{line}。", "把数字{old}改成{new}。"),
        old=old,
        new=new,
        line=typed(other),
    )
    return science.to_edit(choices, spec, spec | {"lines": [other]}, prompt)


def linear(choices) -> tuple[int, int, int, int]:
    a, x, b = choices.number(2, 9), choices.number(-6, 9), choices.number(1, 20)
    return a, b, a * x + b, x


def ask_a_formula(choices):
    if choices.flip(0.4):
        name, line = choices.pick(held_out(choices, FORMULAS))
        forms = ("What is this formula called?", "[Which|What] law or theorem is this?"), ("这个公式叫什么？",)
        return science.to_ask(
            choices, formula_spec(choices, [line]), say(choices, *forms), in_language(name, choices.language)
        )
    a, b, c, x = linear(choices)
    forms = ("Solve the equation[ for x|].", "What is x?"), ("解这个方程。", "x等于多少？")
    spec = formula_spec(choices, [f"{a}x + {b} = {c}"])
    return science.to_ask(choices, spec, say(choices, *forms), f"x = {x}", (str(x), f"x={x}"))


def work_out_an_equation(choices):
    """An equation solved line by line."""
    a, b, c, x = linear(choices)
    lines = [f"{a}x + {b} = {c}", f"{a}x = {c} - {b}", f"{a}x = {c - b}", f"x = {x}"]
    prompt = puzzle(
        choices,
        (
            "solve {a}x + {b} = {c} and show the solution line by line.",
            "the solution of {a}x + {b} = {c}, [one step a line|step by step].",
        ),
        ("解方程{a}x + {b} = {c}，逐行写出过程。",),
        a=a,
        b=b,
        c=c,
    )
    words = steps(
        choices,
        (f"Subtract {b} on both sides: {a}x = {c} − {b} = {c - b}.", f"两边减去{b}：{a}x = {c} − {b} = {c - b}。"),
        (f"Divide by {a}: x = {c - b} / {a} = {x}.", f"两边除以{a}：x = {c - b} / {a} = {x}。"),
        (f"The picture has four lines: {'; '.join(lines)}.", f"图中共四行：{'；'.join(lines)}。"),
    )
    return science.to_draw(choices, formula_spec(choices, lines), prompt, words)


def work_out_a_derivative(choices):
    factors = [
        choices.number(1, 6),
        choices.pick((-5, -4, -3, -2, 2, 3, 4, 5)),
        choices.pick((-6, -3, 2, 4, 7)),
        choices.number(1, 9),
    ]
    factors = factors[choices.number(0, 1) :]
    powers = len(factors) - 1
    derived = [factor * (powers - i) for i, factor in enumerate(factors[:-1])]
    before, after = polynomial(factors), polynomial(derived)
    prompt = puzzle(
        choices,
        ("the derivative of f(x) = {before}; show f and f′ as formulas.",),
        ("求f(x) = {before}的导数，写出f和f′的公式。",),
        before=before.replace("^2", "²").replace("^3", "³").replace(" - ", " − "),
    )
    lines = []
    for i, factor in enumerate(factors):
        power = powers - i
        if power:
            lines.append(
                (
                    f"The term with x^{power} becomes {factor} · {power} = {factor * power} times x^{power - 1}.",
                    f"x^{power}项变为{factor} · {power} = {factor * power}乘x^{power - 1}。",
                )
            )
    lines.append((f"Constants vanish, so f'(x) = {after}.", f"常数项为0，所以f'(x) = {after}。"))
    spec = formula_spec(choices, [f"f(x) = {before}", f"f'(x) = {after}"])
    return science.to_draw(choices, spec, prompt, steps(choices, *lines))


KINDS = {
    "draw": {"function": draw_a_plot, "triangle": draw_a_triangle, "formula": draw_a_formula},
    "edit": {"function": change_a_plot, "triangle": change_a_triangle, "formula": change_a_formula},
    "ask": {"function": ask_about_a_plot, "angle": ask_an_angle, "equation": ask_a_formula},
    "reason": {
        "parabola": work_out_a_parabola,
        "triangle": work_out_a_triangle,
        "equation": work_out_an_equation,
        "derivative": work_out_a_derivative,
    },
}
