"""Samples of space: solids to draw, turn, cut, unfold and to ask about. All truths come from the kernel."""

import itertools
import math

import numpy as np

from ..drawing import COLOUR_NAMES, some_style
from ..wording import in_language, plain, puzzle, request, say, steps
from . import kernel
from .pictures import NAMED, VIEW_NAMES, space

# Families of solids: each returns the parts and a description (English, Chinese)


def a_box(choices):
    w, d, h = (choices.number(2, 6) for _ in range(3))
    if len({w, d, h}) < 2:
        return a_box(choices)
    return [["+", "box", 0, 0, 0, w, d, h]], (
        f"a box {w} wide, {d} deep and {h} high",
        f"宽{w}、深{d}、高{h}的长方体",
    )


def a_cylinder(choices):
    r, h = choices.number(1, 3), choices.number(2, 6)
    return [["+", "cylinder", 0, 0, 0, "z", r, h]], (
        f"an upright cylinder of radius {r} and height {h}",
        f"直立的圆柱，半径{r}，高{h}",
    )


def a_cone(choices):
    r, h = choices.number(1, 3), choices.number(2, 6)
    return [["+", "cone", 0, 0, 0, r, h]], (f"a cone of radius {r} and height {h}", f"圆锥，底面半径{r}，高{h}")


SIDES = {3: ("triangular", "三"), 4: ("square", "四"), 5: ("pentagonal", "五"), 6: ("hexagonal", "六")}


def a_prism(choices):
    n, r, h = choices.pick((3, 5, 6)), choices.number(2, 3), choices.number(2, 6)
    return [["+", "prism", n, r, h]], (
        f"an upright regular {SIDES[n][0]} prism with a base of circumradius {r} and the height {h}",
        f"直立的正{SIDES[n][1]}棱柱，底面外接圆半径{r}，高{h}",
    )


def a_pyramid(choices):
    n, r, h = choices.number(3, 6), choices.number(2, 3), choices.number(2, 5)
    return [["+", "pyramid", n, r, h]], (
        f"a regular {SIDES[n][0]} pyramid with a base of circumradius {r} and the height {h}",
        f"正{SIDES[n][1]}棱锥，底面外接圆半径{r}，高{h}",
    )


def an_l_block(choices):
    w, d, h = choices.number(4, 6), choices.number(2, 4), choices.number(3, 5)
    a, b = choices.number(1, w - 2), choices.number(1, h - 1)
    return [["+", "box", 0, 0, 0, w, d, h], ["-", "box", a, -1, b, 20, 20, 20]], (
        f"an L-shaped block {w} wide, {d} deep and {h} high, which is only {b} high to the right of the first {a}",
        f"L形块：宽{w}、深{d}、高{h}，从左起{a}以右的部分高度只有{b}",
    )


def a_slotted_block(choices):
    w, d, h = choices.number(4, 6), choices.number(3, 5), choices.number(2, 4)
    a = choices.number(1, w - 3)
    b = choices.number(1, w - a - 1)
    s = choices.number(1, h - 1)
    return [["+", "box", 0, 0, 0, w, d, h], ["-", "box", a, -1, h - s, b, 20, 20]], (
        f"a block {w} wide, {d} deep and {h} high with a slot from front to back "
        f"in its top, {b} wide, {s} deep, beginning {a} from the left",
        f"宽{w}、深{d}、高{h}的块，顶面有一条前后贯通的槽，槽宽{b}、深{s}，距左侧{a}",
    )


def a_lopsided_block(choices):
    """With a slot that is not in the middle, so that half a turn shows."""
    block, slot = (found := a_slotted_block(choices))[0]
    return a_lopsided_block(choices) if 2 * slot[2] + slot[5] == block[5] else found


def a_drilled_block(choices):
    w, d, h = choices.number(4, 6), choices.number(3, 5), choices.number(2, 5)
    upright = choices.flip(0.5)
    room = min(w, d) if upright else min(w, h)
    r = choices.pick([r for r in (0.5, 1, 1.5) if 2 * r + 0.9 < room])
    hole = (
        ["-", "cylinder", w / 2, d / 2, -1, "z", r, 20] if upright else ["-", "cylinder", w / 2, -1, h / 2, "y", r, 20]
    )
    way = ("from top to bottom", "上下") if upright else ("from front to back", "前后")
    return [["+", "box", 0, 0, 0, w, d, h], hole], (
        f"a block {w} wide, {d} deep and {h} high with a round hole of "
        f"diameter {plain(2 * r)} through its middle {way[0]}",
        f"宽{w}、深{d}、高{h}的块，中央有一个{way[1]}贯通、直径{plain(2 * r)}的圆孔",
    )


def a_boss(choices):
    w, d, h = choices.number(4, 6), choices.number(4, 6), choices.number(1, 2)
    r, t = choices.pick((1, 1.5)), choices.number(1, 3)
    return [["+", "box", 0, 0, 0, w, d, h], ["+", "cylinder", w / 2, d / 2, h, "z", r, t]], (
        f"a plate {w} wide, {d} deep and {h} high with an upright cylinder of "
        f"diameter {plain(2 * r)} and height {t} in the middle of its top",
        f"宽{w}、深{d}、高{h}的底板，顶面中央立着直径{plain(2 * r)}、高{t}的圆柱",
    )


def some_stairs(choices):
    n, d = choices.number(3, 4), choices.number(2, 4)
    left = choices.flip(0.5)
    parts = []
    for i in range(n):
        x = i if left else n - 1 - i
        parts.append(["+", "box", x, 0, 0, 1, d, n - i])
    way = ("left", "左") if left else ("right", "右")
    return parts, (
        f"stairs of {n} steps, each 1 wide and 1 high, {d} deep, highest on the {way[0]}",
        f"{n}级台阶，每级宽1、高1，深{d}，{way[1]}边最高",
    )


def a_wedge(choices):
    w, d, h, t = choices.number(3, 6), choices.number(2, 4), choices.number(3, 5), 1
    cut = ["-", "half", 0, 0, h, h - t, 0, w]
    return [["+", "box", 0, 0, 0, w, d, h], cut], (
        f"a block {w} wide and {d} deep whose top slopes from {h} high on the left to {t} high on the right",
        f"宽{w}、深{d}的块，顶面从左侧高{h}倾斜到右侧高{t}",
    )


PLAIN = (a_box, a_cylinder, a_cone, a_prism, a_pyramid)
BLOCKS = (an_l_block, a_slotted_block, a_drilled_block, a_boss, some_stairs, a_wedge)
TURNING = (an_l_block, a_lopsided_block, some_stairs, a_wedge)  # another look from each side
FLAT = (a_box, a_prism, a_pyramid)


def some_solid(choices, families=PLAIN + BLOCKS) -> tuple[dict, tuple[str, str]]:
    """A solid from an angle, and its description."""
    parts, words = choices.pick(families)(choices)
    shaded = choices.flip(0.75)
    return {
        "figure": "solid",
        "style": some_style(choices, 0.0),
        "parts": parts,
        "unified": True,
        "colour": choices.pick(COLOUR_NAMES)[0],
        "pale": choices.flip(0.6),
        "shaded": shaded,
        "hidden": not shaded or choices.flip(0.15),
        "azimuth": choices.pick((20, 25, 30, 35, 40, 50, 55, 60)),
        "elevation": choices.pick((20, 25, 30, 35)),
    }, words


def flat(spec, figure: str, language: str, **more) -> dict:
    """Views or a view of the solid of a spec, on the same paper."""
    return {
        "figure": figure,
        "style": spec["style"],
        "parts": spec["parts"],
        "language": language,
        "hidden": True,
        "named": True,
    } | more


def measured(parts) -> dict:
    """What the kernel knows about a solid."""
    return {"volume": round(kernel.volume(parts), 4), **kernel.counts(parts)}


def shown(spec) -> tuple[str, str]:
    """How a solid is drawn: its colour or its lines."""
    colour = NAMED[spec["colour"]]
    if not spec["shaded"]:
        return "as a line drawing with hidden edges dashed", "画成线框图，被遮住的棱用虚线"
    if spec["hidden"]:
        return f"in {colour[0]}, with hidden edges dashed", f"{colour[1]}，被遮住的棱用虚线"
    return f"in {colour[0]}", colour[1]


# Drawing


def draw_a_solid(choices):
    spec, words = some_solid(choices)
    prompt = request(
        choices,
        (
            "{words}, {shown}, seen from the front right and above",
            "a [parallel projection|three-dimensional view] of {words}, {shown}",
            "{words}, {shown}, from an angle of {elevation}° above and {azimuth}° to the right of its front",
        ),
        ("{words}，{shown}，从右前上方看", "从正面向右{azimuth}°、向上{elevation}°的方向看{words}，{shown}"),
        words=words,
        shown=shown(spec),
        azimuth=spec["azimuth"],
        elevation=spec["elevation"],
    )
    return space.to_draw(choices, spec, prompt, **measured(spec["parts"]))


def line_counts(parts, names) -> dict:
    """{view: {"visible": number of lines, "hidden": number of lines}}."""
    found = {name: kernel.lines(parts, kernel.VIEWS[name]) for name in names}
    return {name: {kind: len(curves) for kind, curves in one.items()} for name, one in found.items()}


ARRANGED = {
    "first": (
        "front, top (below) and left view (at the right), in first-angle projection",
        "主视图、俯视图（下方）和左视图（右侧）",
    ),
    "third": (
        "front, top (above) and right view (at the right), in third-angle projection",
        "主视图、俯视图（上方）和右视图（右侧），第三角投影",
    ),
}


def some_views(choices, families=PLAIN + BLOCKS) -> tuple[dict, dict, tuple[str, str]]:
    """A solid from an angle, its three views, and its description."""
    solid, words = some_solid(choices, families)
    views = flat(
        solid, "views", choices.language, arrangement=choices.pick(("first", "third")), named=choices.flip(0.8)
    )
    return solid, views, words


def views_truth(views) -> dict:
    names = ("front", "top", "left" if views["arrangement"] == "first" else "right")
    return {"lines": line_counts(views["parts"], names)} | measured(views["parts"])


def draw_three_views(choices):
    _, spec, words = some_views(choices)
    prompt = request(
        choices,
        (
            "the three [orthographic |]views of {words}: {arranged}, hidden edges dashed{named}",
            "an orthographic drawing of {words}, with {arranged} and dashed hidden lines{named}",
        ),
        ("{words}的三视图：{arranged}，不可见的棱用虚线{named}",),
        words=words,
        arranged=ARRANGED[spec["arrangement"]],
        named=(", each with its name", "，并写出各视图名称") if spec["named"] else ("", ""),
    )
    return space.to_draw(choices, spec, prompt, **views_truth(spec))


def some_net(choices, families=FLAT) -> tuple[dict, dict, tuple[str, str]]:
    """A solid whose faces have colours, its net, and its description."""
    solid, words = some_solid(choices, families)
    count = kernel.counts(solid["parts"])["faces"]
    colours = [colour[0] for colour in choices.few(COLOUR_NAMES, min(count, len(COLOUR_NAMES)))]
    solid = solid | {"shaded": True, "hidden": False}
    if choices.flip(0.6) and count <= 6:
        solid["faces"] = colours
    net = {
        "figure": "net",
        "style": solid["style"],
        "parts": solid["parts"],
        "unified": True,
        "colour": solid["colour"],
        "faces": solid.get("faces"),
        "pale": solid["pale"],
        "quarters": choices.number(0, 3),
        "labels": None,
    }
    return solid, net, words


def draw_a_net(choices):
    _, spec, words = some_net(choices)
    spec["faces"] = None
    prompt = request(
        choices,
        (
            "the net of {words}, with {count} {colour} faces",
            "{words}, unfolded: its net in {colour}[ with all {count} faces|]",
        ),
        ("{words}的展开图，共{count}个{colour}的面",),
        words=words,
        colour=NAMED[spec["colour"]],
        count=kernel.counts(spec["parts"])["faces"],
    )
    return space.to_draw(choices, spec, prompt, **measured(spec["parts"]))


# Stacks of unit cubes


def cubes(heights) -> list:
    """Parts of a stack: heights[y][x] cubes, y from the front to the back."""
    return [
        ["+", "box", x, y, z, 1, 1, 1]
        for y, row in enumerate(heights)
        for x, height in enumerate(row)
        for z in range(height)
    ]


def some_cubes(choices) -> dict:
    """A stack that grows from the front to the back, so that no column hides behind a higher one.

    The viewer is at the front right, so that heights fall from left to right too.
    """
    across, back = choices.number(2, 3), choices.number(2, 3)
    while True:
        heights = [[choices.number(0, 3) for _ in range(across)] for _ in range(back)]
        rows = all(a >= b for row in heights for a, b in itertools.pairwise(row))
        columns = all(b >= a for one, other in itertools.pairwise(heights) for a, b in zip(one, other, strict=True))
        if (
            rows
            and columns
            and sum(map(sum, heights)) >= 4
            and heights[0][0]
            and heights[-1][-1]
            and max(map(max, heights)) > 1
        ):
            break
    spec, _ = some_solid(choices, (a_box,))
    return spec | {
        "parts": cubes(heights),
        "whole": [["+", "box", 0, 0, 0, across, back, 3]],
        "unified": False,
        "shaded": True,
        "hidden": False,
        "heights": heights,
        "azimuth": choices.pick((30, 35, 40)),
        "elevation": choices.pick((30, 35)),
    }


def row_words(choices, heights) -> str:
    parts = []
    for i, row in enumerate(heights):
        en = "front row" if not i else "back row" if i == len(heights) - 1 else "middle row"
        zh = "前排" if not i else "后排" if i == len(heights) - 1 else "中排"
        parts.append((f"{en} {', '.join(map(str, row))}", f"{zh}{'、'.join(map(str, row))}"))
    return ("; " if choices.language == "en" else "；").join(in_language(part, choices.language) for part in parts)


def total(spec) -> int:
    return sum(map(sum, spec["heights"]))


def draw_cubes(choices):
    spec = some_cubes(choices)
    prompt = request(
        choices,
        (
            "a stack of {count} {colour} unit cubes, columns from left to "
            "right: {rows}, seen from the front right and above",
        ),
        ("{count}个{colour}单位正方体的堆叠，从左到右各列高度：{rows}，从右前上方看",),
        count=total(spec),
        colour=NAMED[spec["colour"]],
        rows=row_words(choices, spec["heights"]),
    )
    return space.to_draw(choices, spec, prompt, cubes=total(spec))


def silhouette(spec, view: str) -> dict:
    """A view of a stack of cubes."""
    return {
        "figure": "stack view",
        "style": spec["style"],
        "heights": spec["heights"],
        "view": view,
        "colour": spec["colour"],
    }


def profile(heights, view: str) -> list[int]:
    """The highest column behind each place of the front or right view."""
    grid = np.array(heights)
    return [int(n) for n in (grid.max(axis=0) if view == "front" else grid.max(axis=1))]


@space.figure("stack view")
def draw_stack_view(paper, spec):
    from ..drawing import HEX, blend

    columns = profile(spec["heights"], spec["view"])
    plane = paper.plane(-0.4, max(3, len(columns)) + 0.4, -0.4, 3.4)
    for x, height in enumerate(columns):
        for z in range(height):
            paper.path(
                plane.all([(x, z), (x + 1, z), (x + 1, z + 1), (x, z + 1)]),
                fill=blend(HEX[spec["colour"]], "#ffffff", 0.5),
                closed=True,
                width=1.7,
            )


def view_of_cubes(choices):
    spec, view = some_cubes(choices), choices.pick(("front", "right"))
    columns = profile(spec["heights"], view)
    name = VIEW_NAMES[view]
    prompt = say(
        choices,
        (
            "[Draw|Show] the {view} of this stack.",
            "[What does the stack look like|How does it look] from the {side}? Draw [it|that view].",
        ),
        ("[画出|给出]这堆正方体的{view}。",),
        view=name,
        side=(view, view),
    )
    lines = []
    for i, height in enumerate(columns):
        who = ("column", "列") if view == "front" else ("row", "排")
        lines.append(
            (
                f"The highest stack in {who[0]} {i + 1} has {height} cube{'s' * (height != 1)}.",
                f"第{i + 1}{who[1]}最高处有{height}个正方体。",
            )
        )
    lines.append(
        (
            f"So the {name[0]} shows columns of {', '.join(map(str, columns))} squares in {spec['colour']}.",
            f"所以{name[1]}各列有{'、'.join(map(str, columns))}个{NAMED[spec['colour']][1]}正方形。",
        )
    )
    return space.to_edit(choices, spec, silhouette(spec, view), prompt, steps(choices, *lines), profile=columns)


def change_the_cubes(choices):
    spec = some_cubes(choices)
    heights = [list(row) for row in spec["heights"]]
    places = [(y, x) for y in range(len(heights)) for x in range(len(heights[0]))]
    add = choices.flip(0.5)
    by = 1 if add else -1
    able = []
    for y, x in places:
        new = [list(row) for row in heights]
        new[y][x] += by
        fits = 0 <= new[y][x] <= 3
        rows = all(a >= b for row in new for a, b in itertools.pairwise(row))
        columns = all(b >= a for one, other in itertools.pairwise(new) for a, b in zip(one, other, strict=True))
        if fits and rows and columns and sum(map(sum, new)) >= 3:
            able.append((y, x, new))
    if not able:
        return change_the_cubes(choices)
    y, x, new = choices.pick(able)
    rows = [("front", "前"), ("middle", "中"), ("back", "后")]
    row = rows[0] if not y else rows[2] if y == len(heights) - 1 else rows[1]
    values = {"column": x + 1, "row": row}
    if add:
        forms = (
            ("[Put|Place|Add] one more cube on column {column} (from the left) of the {row} row.",),
            ("在{row}排从左数第{column}列上再[放|加]一个正方体。",),
        )
    else:
        forms = (
            ("[Take|Remove] the top cube from column {column} (from the left) of the {row} row.",),
            ("[拿走|去掉]{row}排从左数第{column}列最上面的正方体。",),
        )
    after = spec | {"heights": new, "parts": cubes(new)}
    return space.to_edit(choices, spec, after, say(choices, *forms, **values), cubes=total(after))


def ask_about_cubes(choices):
    spec = some_cubes(choices)
    if choices.flip(0.6):
        forms = (
            (
                "How many cubes [are there|does the stack have]? No column hides a gap.",
                "[Count|Give the number of] the cubes, where every cube stands on the floor or on another.",
            ),
            ("这堆一共有多少个正方体（没有悬空）？",),
        )
        answer = total(spec)
    else:
        forms = (
            ("How many columns [are|stand] on the floor?", "How many squares would the top view show?"),
            ("俯视图中有几个正方形？",),
        )
        answer = sum(height > 0 for row in spec["heights"] for height in row)
    return space.to_ask(choices, spec, say(choices, *forms), answer)


# Edits


def turned(spec, by: float) -> dict:
    """by: degrees anticlockwise, seen from above. The viewer goes the other way about the solid."""
    return spec | {"azimuth": spec["azimuth"] - by}


WAYS = (("clockwise", "顺时针"), ("anticlockwise", "逆时针"))


def some_turn(choices):
    spec, words = some_solid(choices, TURNING)
    degrees, way = choices.pick((15, 30, 45, 60, 90, 120, 135, 150, 180)), choices.number(0, 1)
    by = degrees if way else -degrees
    return spec, turned(spec, by), degrees, WAYS[way], words


def turn_a_solid(choices):
    spec, after, degrees, way, _ = some_turn(choices)
    prompt = say(
        choices,
        (
            "[Turn|Rotate] the [solid|object|body] by {degrees}° {way} "
            "[about|around] its vertical axis[, seen from above|].",
            "[Show|Draw] [it|the object] after a turn of {degrees}° {way} as seen from above.",
        ),
        ("把[物体|立体|它]绕竖直轴{way}[旋转|转动]{degrees}°（从上方看）。",),
        degrees=degrees,
        way=way,
    )
    return space.to_edit(choices, spec, after, prompt, angle=degrees, **measured(spec["parts"]))


def tilt_the_view(choices):
    """From a higher or lower place."""
    spec, _ = some_solid(choices, BLOCKS)
    new = choices.pick([angle for angle in (10, 20, 30, 45, 60, 75) if abs(angle - spec["elevation"]) > 8])
    way = ("higher", "高") if new > spec["elevation"] else ("lower", "低")
    prompt = say(
        choices,
        (
            "[Show|Draw] it from {by}° {way}.",
            "Move the [viewpoint|camera] {by}° {way}[ and keep the direction|].",
        ),
        ("把视点[移|调]{way}{by}°。",),
        by=abs(new - spec["elevation"]),
        way=way,
    )
    return space.to_edit(choices, spec, spec | {"elevation": new}, prompt)


def show_a_view(choices):
    spec, _ = some_solid(choices, (*BLOCKS, a_prism, a_pyramid))
    view = choices.pick(("front", "top", "right", "left"))
    after = flat(spec, "view", choices.language, view=view, named=choices.flip(0.5))
    spec = spec | {"hidden": True}
    prompt = say(
        choices,
        (
            "[Draw|Show|Give] the {view} of this solid[, hidden edges dashed| with dashed hidden edges]{named}.",
            "[Turn|Change] this into its {view} with dashed hidden lines{named}.",
        ),
        ("[画出|给出]该物体的{view}，不可见的棱用虚线{named}。",),
        view=VIEW_NAMES[view],
        named=(", with its name above", "，上方写名称") if after["named"] else ("", ""),
    )
    return space.to_edit(choices, spec, after, prompt, lines=line_counts(spec["parts"], [view]))


def to_three_views(choices):
    solid, views, words = some_views(choices, BLOCKS)
    prompt = say(
        choices,
        (
            "[Draw|Make|Give] the three [orthographic |]views of this "
            "solid, {words}: {arranged}[, hidden edges dashed|].",
        ),
        ("图中物体为{words}，画出它的三视图：{arranged}，不可见的棱用虚线。",),
        words=words,
        arranged=ARRANGED[views["arrangement"]],
    )
    views["named"] = True
    return space.to_edit(choices, solid | {"hidden": True}, views, prompt, **views_truth(views))


def show_hidden_lines(choices):
    if choices.flip(0.5):
        spec, _ = some_solid(choices, (*BLOCKS, a_box, a_prism, a_pyramid))
    else:
        _, spec, _ = some_views(choices, (a_slotted_block, a_drilled_block, an_l_block))
    before, after = spec | {"hidden": False}, spec | {"hidden": True}
    forms = (
        (
            "[Add|Draw|Show] the hidden edges as dashed lines.",
            "[Dash in|Add as dashed lines] the edges that cannot be seen.",
        ),
        ("用虚线[画出|补上]被遮住的棱。",),
    )
    if choices.flip(0.3):
        before, after = after, before
        forms = ("[Remove|Hide|Erase] the dashed [hidden |]lines.",), ("去掉虚线。",)
    if np.array_equal(space.picture(before, (128, 128)), space.picture(after, (128, 128))):
        return show_hidden_lines(choices)
    return space.to_edit(choices, before, after, say(choices, *forms))


def recolour_a_solid(choices):
    spec, _ = some_solid(choices)
    spec["shaded"] = True
    colour = choices.pick([colour for colour in COLOUR_NAMES if colour[0] != spec["colour"]])
    prompt = say(
        choices,
        ("[Make|Paint|Colour] the [solid|object|body] {colour}.",),
        ("把[物体|立体]的颜色[改成|变成]{colour}。",),
        colour=colour,
    )
    return space.to_edit(choices, spec, spec | {"colour": colour[0]}, prompt)


def drill_a_hole(choices):
    spec, _ = some_solid(choices, (a_drilled_block,))
    spec["shaded"], spec["hidden"] = True, choices.flip(0.5)
    hole = spec["parts"][1]
    less = spec | {"parts": spec["parts"][:1]}
    way = ("from top to bottom", "上下") if hole[5] == "z" else ("from front to back", "前后")
    before, after = less, spec
    forms = (
        ("[Drill|Make|Cut] a round hole of diameter {size} through the middle {way}, where the block is {wide} wide.",),
        ("物块宽{wide}，在中央打一个{way}贯通、直径{size}的圆孔。",),
    )
    if choices.flip(0.4):
        before, after = after, before
        forms = ("[Close|Fill|Remove] the hole.",), ("[填上|去掉]圆孔。",)
    prompt = say(choices, *forms, size=plain(2 * hole[6]), way=way, wide=plain(spec["parts"][0][5]))
    return space.to_edit(choices, before, after, prompt, **measured(after["parts"]))


def resize_a_box(choices):
    spec, _ = some_solid(choices, (a_box,))
    size = spec["parts"][0][5:]
    i = choices.number(0, 2)
    new = choices.pick([n for n in range(2, 7) if n != size[i]])
    wanted = [*size[:i], new, *size[i + 1 :]]
    larger = [max(a, b) for a, b in zip(size, wanted, strict=True)]
    spec = spec | {"sizes": True, "whole": [["+", "box", 0, 0, 0, *larger]]}
    after = spec | {"parts": [["+", "box", 0, 0, 0, *wanted]]}
    name = (("width", "宽"), ("depth", "深"), ("height", "高"))[i]
    prompt = say(
        choices,
        (
            "[Change|Set] the {name} to {new}[ and the number with it|].",
            "Make the {name} {new} instead of {old}.",
            "Let the {name} be {new} instead of {old}.",
        ),
        ("把{name}度从{old}改[为|成]{new}。",),
        name=name,
        new=new,
        old=size[i],
    )
    return space.to_edit(choices, spec, after, prompt, **measured(after["parts"]))


# Cuts

SECTIONS = {
    3: ("triangle", "三角形"),
    4: ("quadrilateral", "四边形"),
    5: ("pentagon", "五边形"),
    6: ("hexagon", "六边形"),
}


UPPER, FRONT = ("upper", "上部"), ("front", "前部")


def some_cut(choices):
    """A solid, the same with a part cut away toward the viewer, how it was cut, which part, and the solid's words."""
    spec, words = some_solid(choices, (a_box, a_cylinder, a_cone, a_prism, a_pyramid, a_drilled_block))
    low, high = kernel.bounds(spec["parts"])
    middle = (low + high) / 2
    how = choices.pick(("level", "upright", "slanting"))
    if how == "level":
        share = choices.pick((0.35, 0.5, 0.65))
        plane = [float(middle[0]), float(middle[1]), round(float(low[2] + share * (high[2] - low[2])), 3), 0, 0, 1]
        told = f"horizontally at {plain(100 * share)}% of its height", f"在高度的{plain(100 * share)}%处水平切开"
    elif how == "upright":
        plane = [*map(float, middle), 0, -1, 0]
        told = "vertically through the middle from left to right", "沿左右方向过中心竖直切开"
    else:
        tilt = choices.pick((20, 30))
        plane = [
            *map(float, middle),
            0,
            -round(math.sin(math.radians(tilt)), 6),
            round(math.cos(math.radians(tilt)), 6),
        ]
        told = (
            f"through the middle by a plane that rises {tilt}° from the front to the back",
            f"过中心用一个向后上方倾斜{tilt}°的平面切开",
        )
    spec = spec | {"whole": spec["parts"], "shaded": True, "hidden": False, "elevation": 35}
    colour = choices.pick([colour[0] for colour in COLOUR_NAMES if colour[0] != spec["colour"]])
    after = spec | {"parts": [*spec["parts"], ["-", "half", *plane]], "cut": colour}
    if not kernel.cut_faces(after["parts"]):
        return some_cut(choices)
    return spec, after, told, FRONT if how == "upright" else UPPER, words


def section_words(parts) -> tuple[str, str]:
    """What a section is: "a triangle", "two quadrilaterals", "a quadrilateral with a hole"."""
    found = kernel.section(parts)
    if not found.curved:
        sides = found.edges
        en, zh = SECTIONS.get(sides, (f"polygon of {sides} sides", f"{sides}边形"))
    elif found.edges == 1:
        flat_cut = abs(parts[-1][-1]) > 0.999  # level cuts of round solids are circles
        en, zh = ("circle", "圆") if flat_cut else ("ellipse", "椭圆")
    else:
        en, zh = "shape with a curved edge", "带曲边的图形"
    if found.faces == 2:
        return f"two {en.replace('shape', 'shapes') if found.curved else f'{en}s'}", f"两个{zh}"
    return (f"a {en} with a hole", f"带孔的{zh}") if found.holes else (f"a {en}", zh)


def section_truth(after) -> dict:
    found = kernel.section(after["parts"])
    return {"section": found._asdict() | {"area": round(found.area, 4)}, **measured(after["parts"])}


def cut_a_solid(choices):
    spec, after, told, part, _ = some_cut(choices)
    prompt = say(
        choices,
        (
            "Cut the solid {told}, and take the {part} part away. [Colour|Paint] the cut {colour}.",
            "[Show|Draw] the solid cut {told}, without its {part} part and with the section in {colour}.",
        ),
        ("把物体{told}，拿走{part}，切面涂成{colour}。",),
        told=told,
        part=part,
        colour=NAMED[after["cut"]],
    )
    return space.to_edit(choices, spec, after, prompt, **section_truth(after))


def ask_a_section(choices):
    spec, after, told, _, _ = some_cut(choices)
    words, found = section_words(after["parts"]), kernel.section(after["parts"])
    if found.faces > 1 or found.holes or (found.curved and found.edges > 1):  # which have no name of one word
        return ask_a_section(choices)
    words = words[0].removeprefix("a "), words[1]
    prompt = say(
        choices,
        ("If this solid is cut {told}, what shape is the section?",),
        ("将该物体{told}，截面是什么形状？",),
        told=told,
    )
    return space.to_ask(choices, spec, prompt, in_language(words, choices.language))


def work_out_a_cut(choices):
    spec, after, told, part, words = some_cut(choices)
    section, colour = section_words(after["parts"]), NAMED[after["cut"]]
    whole, rest = kernel.volume(spec["parts"]), kernel.volume(after["parts"])
    found = kernel.section(after["parts"])
    area, many = plain(found.area), found.faces > 1
    prompt = say(
        choices,
        (
            "[This is|Here is] {words}. Cut it {told}, and take the {part} part away. "
            "Which section appears? Show what remains, the section in {colour}.",
        ),
        ("这是{words}。把它{told}，拿走{part}，会得到什么截面？画出剩余部分，切面为{colour}。",),
        words=words,
        told=told,
        part=part,
        colour=colour,
    )
    lines = steps(
        choices,
        (f"The solid is {words[0]}, with a volume of {plain(whole)}.", f"物体是{words[1]}，体积为{plain(whole)}。"),
        (
            f"The section is {section[0]}. Its area is {area}{' in all' * many}.",
            f"截面是{section[1]}，{'总' * many}面积为{area}。",
        ),
        (
            f"A volume of {plain(rest)} remains, that is {plain(100 * rest / whole, 0)}%.",
            f"剩余体积为{plain(rest)}，占{plain(100 * rest / whole, 0)}%。",
        ),
        (
            f"The picture shows the rest in {spec['colour']} from the same side, with the section in {colour[0]}.",
            f"图中从同一方向画出剩余的{NAMED[spec['colour']][1]}部分，切面为{colour[1]}。",
        ),
    )
    return space.to_edit(choices, spec, after, prompt, lines, **section_truth(after))


# Nets


def unfold_a_solid(choices):
    solid, net, words = some_net(choices)
    if net["faces"]:  # which colour lies where must be seen or said
        net["faces"] = solid["faces"] = None
    prompt = say(
        choices,
        (
            "[Unfold|Flatten] this solid, {words}, into its net[ and keep the colour|].",
            "[Draw|Show] the net of this solid ({words}).",
        ),
        ("把该物体（{words}）展开成平面展开图。", "画出该物体（{words}）的展开图。"),
        words=words,
    )
    return space.to_edit(choices, solid, net, prompt, **measured(net["parts"]))


def some_cube_net(choices) -> dict:
    _, net, _ = some_net(choices, (a_box,))
    letters = choices.few("ABCDEFGHKLMNPRST", 6)
    colours = [colour[0] for colour in choices.few(COLOUR_NAMES, 6)]
    return net | {"parts": [["+", "box", 0, 0, 0, 2, 2, 2]], "faces": colours, "labels": letters, "pale": True}


def opposite(parts) -> list[int]:
    """For each face of a box the index of the face on the other side."""
    normals = [kernel.normal(face) for face in kernel.polygons(parts)]
    return [min(range(6), key=lambda j, n=normal: round(float(n @ normals[j]), 6)) for normal in normals]


def ask_an_opposite_face(choices):
    spec = some_cube_net(choices)
    i = choices.number(0, 5)
    prompt = say(
        choices,
        (
            "This net is folded into a cube. Which face is opposite [to |]{a}?",
            "If you fold the net to a cube, which letter lies opposite {a}?",
        ),
        ("把展开图折成正方体后，与{a}相对的面是哪个？",),
        a=spec["labels"][i],
    )
    return space.to_ask(choices, spec, prompt, spec["labels"][opposite(spec["parts"])[i]])


def recolour_an_opposite_face(choices):
    spec = some_cube_net(choices)
    i = choices.number(0, 5)
    j = opposite(spec["parts"])[i]
    colour = choices.pick([colour for colour in COLOUR_NAMES if colour[0] not in spec["faces"]])
    after = spec | {"faces": [*spec["faces"][:j], colour[0], *spec["faces"][j + 1 :]]}
    a, b = spec["labels"][i], spec["labels"][j]
    pairs = [(x, opposite(spec["parts"])[x]) for x in range(6)]
    others = [f"{spec['labels'][x]}–{spec['labels'][y]}" for x, y in pairs if x < y]
    prompt = say(
        choices,
        ("[Colour|Paint] the face [that lies opposite to|opposite] {a} on the folded cube {colour}.",),
        ("把折成正方体后与{a}相对的面涂成{colour}。",),
        a=a,
        colour=colour,
    )
    lines = steps(
        choices,
        ("In a straight row of three faces, the first and the third are opposite.", "同一行中相隔一个面的两个面相对。"),
        (f"The pairs of opposite faces are {', '.join(others)}.", f"相对的面为：{'、'.join(others)}。"),
        (f"So {b} lies opposite {a}. The face {b} becomes {colour[0]}.", f"所以{b}与{a}相对，把{b}涂成{colour[1]}。"),
    )
    return space.to_edit(choices, spec, after, prompt, lines)


# Questions about solids


def ask_a_count(choices):
    spec, _ = some_solid(choices, (a_box, a_prism, a_pyramid, an_l_block, a_slotted_block, some_stairs, a_wedge))
    spec["hidden"] = True
    what = choices.pick(("faces", "edges", "vertices"))
    word = {"faces": ("faces", "面"), "edges": ("edges", "条棱"), "vertices": ("vertices", "顶点")}[what]
    prompt = say(
        choices,
        ("How many {word} does the solid have?", "[Count|Give the number of] the {word} of this solid."),
        ("该物体有几{word}？", "[数一数|请数出]该物体的{word}数。"),
        word=(word[0], word[1] if what == "edges" else f"个{word[1]}"),
    )
    return space.to_ask(
        choices, spec, prompt.replace("的条棱数", "的棱数").replace("的个", "的"), kernel.counts(spec["parts"])[what]
    )


def ask_a_volume(choices):
    spec, words = some_solid(choices, (a_box, an_l_block, a_slotted_block, some_stairs, a_wedge))
    answer = plain(kernel.volume(spec["parts"]))
    prompt = say(
        choices,
        ("The picture shows {words}. What is its volume?", "[Find|Compute] the volume of this solid: {words}."),
        ("图中是{words}。它的体积是多少？",),
        words=words,
    )
    return space.to_ask(choices, spec, prompt, answer)


def ask_an_angle(choices):
    spec, after, degrees, _, _ = some_turn(choices)
    degrees = min(degrees, 180)
    prompt = say(
        choices,
        (
            "By how many degrees was the solid turned about its vertical axis "
            "between the first and the second picture (at most 180)?",
        ),
        ("从第一张图到第二张图，物体绕竖直轴转了多少度（不超过180°）？",),
    )
    return space.to_ask(choices, [spec, after], prompt, f"{degrees}°", (str(degrees), f"{degrees}度"))


def ask_which_view(choices):
    spec, _ = some_solid(choices, (an_l_block, a_slotted_block, some_stairs, a_wedge))
    names = ["front", "top", "right"]
    pictures = [space.picture(flat(spec, "view", "en", view=name, named=False), (96, 96)).tobytes() for name in names]
    if len(set(pictures)) < 3:
        return ask_which_view(choices)
    view = choices.pick(names)
    prompt = say(
        choices,
        (
            "The second picture is a view of the solid in the first. Is it the "
            "front, top or right view? The front is at the lower left.",
        ),
        ("第二张图是第一张图中物体的哪个视图：主视图、俯视图还是右视图？（主视方向为左前方）",),
    )
    one = flat(spec, "view", choices.language, view=view, named=False)
    word = VIEW_NAMES[view]
    return space.to_ask(choices, [spec, one], prompt, in_language(word, choices.language), (view,))


def ask_hidden_lines(choices):
    spec, words = some_solid(choices, (a_slotted_block, a_drilled_block, an_l_block, a_prism))
    view = choices.pick(("front", "top", "right"))
    if any(len(curve) > 2 for curve in kernel.lines(spec["parts"], kernel.VIEWS[view])["hidden"]):
        return ask_hidden_lines(choices)
    count = line_counts(spec["parts"], [view])[view]["hidden"]
    spec["hidden"] = True
    prompt = say(
        choices,
        (
            "The picture shows {words}. How many dashed lines does its {view} need?",
            "How many hidden [lines|edges] are in the {view} of this solid, "
            "{words}? Lines behind visible ones do not count.",
        ),
        ("图中是{words}。它的{view}中有几条虚线？",),
        words=words,
        view=VIEW_NAMES[view],
    )
    return space.to_ask(choices, spec, prompt, count)


# Reasoning


def work_out_views(choices):
    """The sizes and the dashed lines of each view, then the views."""
    _, spec, words = some_views(
        choices, (a_box, an_l_block, a_slotted_block, a_drilled_block, some_stairs, a_wedge, a_prism)
    )
    names = ("front", "top", "left" if spec["arrangement"] == "first" else "right")
    low, high = kernel.bounds(spec["parts"])
    truth, lines = views_truth(spec), []
    for name in names:
        size = np.ptp(kernel.project(np.array([low, high]), kernel.VIEWS[name])[:, :2], axis=0)
        hidden = truth["lines"][name]["hidden"]
        en, zh = VIEW_NAMES[name]
        lines.append(
            (
                f"The {en} is {plain(size[0])} wide and {plain(size[1])} high, with "
                f"{hidden or 'no'} dashed line{'s' * (hidden != 1)}.",
                f"{zh}宽{plain(size[0])}、高{plain(size[1])}，{f'有{hidden}条虚线' if hidden else '没有虚线'}。",
            )
        )
    spec["named"] = True
    arranged = ARRANGED[spec["arrangement"]]
    lines.append((f"The picture has {arranged[0]}, each with its name below.", f"图中有{arranged[1]}，下方写名称。"))
    prompt = puzzle(
        choices,
        ("{words}. Its three views ({arranged}) with names and dashed hidden lines.",),
        ("{words}。画出三视图（{arranged}），写出名称，不可见的棱用虚线。",),
        words=words,
        arranged=arranged,
    )
    return space.to_draw(choices, spec, prompt, steps(choices, *lines), **truth)


def work_out_a_turn(choices):
    """Two turns, one after the other."""
    spec, _ = some_solid(choices, TURNING)
    one, two = choices.few((15, 30, 45, 60, 75, 90, 120), 2)
    first, second = choices.number(0, 1), choices.number(0, 1)
    by = (one if first else -one) + (two if second else -two)
    if not by or abs(by) > 180:
        return work_out_a_turn(choices)
    way = WAYS[by > 0]
    prompt = say(
        choices,
        ("[Turn|Rotate] the solid by {one}° {a} and then by {two}° {b} about its vertical axis, seen from above.",),
        ("从上方看，把物体绕竖直轴先{a}转{one}°，再{b}转{two}°。",),
        one=one,
        two=two,
        a=WAYS[first],
        b=WAYS[second],
    )
    sign = "+" if first == second else "−"
    lines = steps(
        choices,
        (
            f"Both turns are about the same axis, so they add up: {one}° {sign} {two}°.",
            f"两次转动绕同一轴，可以合并：{one}° {sign} {two}°。",
        ),
        (f"Together this is {abs(by)}° {way[0]}.", f"合起来是{way[1]}{abs(by)}°。"),
        (
            "The picture shows the same solid after this turn, from the same viewpoint.",
            "图中为同一物体转动后、从同一视点看到的样子。",
        ),
    )
    return space.to_edit(choices, spec, turned(spec, by), prompt, lines, angle=abs(by))


KINDS = {
    "draw": {"solid": draw_a_solid, "three views": draw_three_views, "net": draw_a_net, "cubes": draw_cubes},
    "edit": {
        "turn": turn_a_solid,
        "viewpoint": tilt_the_view,
        "one view": show_a_view,
        "three views": to_three_views,
        "hidden lines": show_hidden_lines,
        "colour": recolour_a_solid,
        "hole": drill_a_hole,
        "size": resize_a_box,
        "cut": cut_a_solid,
        "net": unfold_a_solid,
        "cubes": change_the_cubes,
    },
    "ask": {
        "faces, edges, vertices": ask_a_count,
        "volume": ask_a_volume,
        "angle": ask_an_angle,
        "which view": ask_which_view,
        "hidden lines": ask_hidden_lines,
        "section": ask_a_section,
        "opposite face": ask_an_opposite_face,
        "cubes": ask_about_cubes,
    },
    "reason": {
        "three views": work_out_views,
        "turn": work_out_a_turn,
        "cut": work_out_a_cut,
        "opposite face": recolour_an_opposite_face,
        "view of cubes": view_of_cubes,
    },
}
