"""Physics: forces on a block, thin lenses, refraction, circuits. Rays and forces are computed, not sketched."""

import itertools
import math

from internvlu_core.errors import need

from ..drawing import COLOUR_NAMES, HEX, blend, some_style
from ..wording import in_language, listed, plain, puzzle, request, say, steps
from .base import science

schemdraw = need("schemdraw", "synthesis")
elements = need("schemdraw.elements", "synthesis")

GRAVITY = 10.0  # m/s²: the value of school books, which keeps numbers short

# Forces on a block on a slope

FORCES = {
    "weight": (("weight", "重力"), "G", "red"),
    "normal": (("normal force", "支持力"), "N", "blue"),
    "friction": (("friction", "摩擦力"), "f", "green"),
    "pull": (("pull", "拉力"), "F", "purple"),
}
WEIGHT, FRICTION = 3.0, 1.5  # lengths of arrows; that of friction is one against a pull


def lengths(spec) -> dict[str, float]:
    """How long the arrow of each force is, in proportion; of friction and pull positive up the slope.

    The block is at rest: friction holds what the weight, or a pull up the slope, would move.
    """
    angle = math.radians(spec["angle"])
    along = WEIGHT * math.sin(angle)
    pulled = "pull" in spec["forces"]
    return {
        "weight": WEIGHT,
        "normal": WEIGHT * math.cos(angle),
        "friction": -FRICTION if pulled else along,
        "pull": along + FRICTION,
    }


def some_slope(choices) -> dict:
    angle = choices.pick((0, 15, 20, 25, 30, 35, 40, 45))
    forces = ["weight", "normal"] + (["friction"] if angle or choices.flip(0.5) else [])
    if not angle or choices.flip(0.3):  # without a pull there is no friction on level ground
        forces.append("pull")
    return {
        "figure": "slope",
        "style": some_style(choices) | {"names": choices.flip(0.3), "fill": choices.pick(COLOUR_NAMES)[0]},
        "language": choices.language,
        "angle": angle,
        "mass": choices.number(1, 9),
        "forces": forces,
        "plain": choices.flip(0.15),
    }


@science.figure("slope")
def draw_slope(paper, spec):
    angle = math.radians(spec["angle"])
    along, up = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    length = 10.0
    top = length * math.sin(angle)
    plane = paper.plane(-0.6, length * along[0] + 0.6, -3.2 + 0.3 * top, max(4.6, top + 2.9))
    at = plane.at
    ground = [(0, 0), (length * along[0], top), (length * along[0], 0)]
    if spec["angle"]:
        paper.path(plane.all(ground), fill=blend(paper.back, paper.ink, 0.15), closed=True)
        radius, far = 1.5 * plane.scale, 2.15 if spec["angle"] >= 30 else 3.0
        paper.arc(*at(0, 0), radius, 0, spec["angle"])
        paper.text(
            *at(far * math.cos(angle / 2), far * math.sin(angle / 2)), f"{spec['angle']}°", 0.9 if far < 3 else 0.75
        )
    else:
        paper.path(plane.all([(0, 0), (length, 0)]), width=1.5)
        for i in range(21):
            paper.path(plane.all([(0.5 * i, 0), (0.5 * i - 0.3, -0.3)]), width=0.6)
    middle = tuple(0.55 * length * a + 0.75 * u for a, u in zip(along, up, strict=True))

    def place(s, t):
        return middle[0] + s * along[0] + t * up[0], middle[1] + s * along[1] + t * up[1]

    corners = [place(-1.05, -0.75), place(1.05, -0.75), place(1.05, 0.75), place(-1.05, 0.75)]
    paper.path(plane.all(corners), fill=blend(HEX[spec["style"]["fill"]], paper.back, 0.55), closed=True, width=1.3)
    mass = f"{spec['mass']} kg"
    # Above the arrow of the weight, and left of that of the normal force.
    paper.text(*at(*place(-0.57, 0.42)), mass, paper.fit(mass, 0.82 * plane.scale, 0.95), turn=spec["angle"])
    ways, long = {"weight": (0, -1), "normal": up, "friction": along, "pull": along}, lengths(spec)
    for force in spec["forces"]:
        way, size = ways[force], long[force]
        x, y = (math.copysign(1.05, size) * a if way == along else 0 for a in way)  # from the side, or the middle
        names, letter, colour = FORCES[force]
        tail = (middle[0] + x, middle[1] + y)
        head = (tail[0] + size * way[0], tail[1] + size * way[1])
        paper.arrow(at(*tail), at(*head), HEX[colour], width=2.2, size=1.3)
        word = in_language(names, spec["language"]) if spec["style"]["names"] else letter
        shift = math.copysign(1, size)
        gap = 0.25 * plane.scale + 0.6 * paper.unit
        px, py = at(*head)
        aside = 0.0 if force in ("weight", "normal") else 1.0
        reach = gap + (0.5 * paper.measure(word, bold=True) * abs(way[0]) if not aside else 0)
        px, py = px + shift * reach * way[0] * (1 - aside), py + shift * reach * way[1] * (1 - aside)
        if aside:
            px, py = px + gap * up[0], py + gap * up[1]
        if force == "weight" and abs(py - at(0, 0)[1]) < paper.unit:
            py = at(0, 0)[1] - paper.unit  # below the line of the ground
        half = 0.5 * paper.measure(word, bold=True)
        px = min(max(px, half + 0.3 * paper.unit), paper.width - half - 0.3 * paper.unit)
        paper.text(px, py, word, bold=True, colour=HEX[colour])
    if not spec["plain"]:
        x, y = at(*middle)
        paper.disc(x, y, 0.1 * plane.scale, paper.ink)


def slope_words(spec) -> tuple[str, str]:
    if spec["angle"]:
        return f"a slope of {spec['angle']}°", f"倾角{spec['angle']}°的斜面上"
    return "a horizontal surface", "水平面上"


def force_words(choices, spec) -> str:
    colours = {colour[0]: colour for colour in COLOUR_NAMES}
    told = []
    for force in spec["forces"]:
        (en, zh), letter, colour = FORCES[force]
        mark = ("", "") if spec["style"]["names"] else (f" {letter}", letter)
        told.append((f"the {en}{mark[0]} ({colour})", f"{zh}{mark[1]}（{colours[colour][1]}）"))
    return listed(told, choices.language)


def draw_forces(choices):
    spec = some_slope(choices)
    prompt = request(
        choices,
        (
            "a free-body diagram of a block of {mass} kg on {slope} with {forces}",
            "a diagram of the forces on a {mass} kg block on {slope}: {forces}, as arrows",
        ),
        (
            "一[张|幅]受力分析图：{mass}千克的物块放在{slope}，画出{forces}",
            "{slope}{mass}千克物块的受力图，标出{forces}",
        ),
        mass=spec["mass"],
        slope=slope_words(spec),
        forces=force_words(choices, spec),
    )
    return science.to_draw(choices, spec, prompt)


def change_a_slope(choices):
    spec = some_slope(choices)
    what = choices.pick(("angle", "mass", "force"))
    if what == "angle":
        angle = choices.pick([a for a in (15, 20, 25, 30, 35, 40, 45) if a != spec["angle"]])
        after, values = spec | {"angle": angle}, {"angle": angle}
        forms = (
            (
                "[Set|Change] the [angle|inclination] of the surface to {angle}°.",
                "[Tilt|Incline] the surface to {angle}°.",
            ),
            ("把[斜面|支撑面]的倾角[改为|变成]{angle}°。",),
        )
    elif what == "mass":
        mass = choices.pick([m for m in range(1, 10) if m != spec["mass"]])
        after, values = spec | {"mass": mass}, {"mass": mass}
        forms = (
            (
                "[Change|Set] the mass [of the block |]to {mass} kg.",
                "The block [weighs|has a mass of] {mass} kg[ instead|].",
            ),
            ("把[物块的|]质量[改为|改成]{mass}千克。",),
        )
    else:
        force = choices.pick([f for f in spec["forces"] if f != "pull"])
        less = spec | {"forces": [f for f in spec["forces"] if f != force]}
        after, values = less, {"force": FORCES[force][0]}
        forms = (
            ("[Remove|Delete|Take away] the arrow of the {force}.", "[Leave out|Drop] the {force}."),
            ("[去掉|删除]{force}[的箭头|]。",),
        )
        if choices.flip(0.5):
            spec, after = less, spec
            forms = (
                ("[Add|Draw|Mark] the {force}[ too| as well|].", "The {force} is missing[. Add it|; add it]."),
                ("[补上|画上|加上]{force}。", "图中缺少{force}，请补上。"),
            )
    return science.to_edit(choices, spec, after, say(choices, *forms, **values))


def components(spec) -> tuple[float, float, float]:
    """Weight, its parts across and along the slope, in newtons."""
    weight, angle = spec["mass"] * GRAVITY, math.radians(spec["angle"])
    return weight, weight * math.cos(angle), weight * math.sin(angle)


def ask_a_force(choices):
    spec = some_slope(choices)
    spec["forces"] = ["weight", "normal"] + (["friction"] if spec["angle"] else [])  # which balance each other
    weight, across, along = components(spec)
    which = choices.pick(("weight", "normal", "friction") if spec["angle"] else ("weight", "normal"))
    answer = {"weight": weight, "normal": across, "friction": along}[which]
    forms = (
        (
            "How large is the {force} on the [resting block|block at rest]? Take g = 10 m/s² and round to one decimal.",
            "The block is at rest. [Find|Compute] the {force} in newtons (g = 10 m/s², one decimal).",
            "The block is at rest. What is the {force} in newtons (g = 10 m/s², one decimal)?",
        ),
        ("物块静止，[求|计算]{force}的大小（g取10 m/s²，保留一位小数，单位牛）。",),
    )
    number = plain(answer, 1)
    return science.to_ask(
        choices, spec, say(choices, *forms, force=FORCES[which][0]), f"{number} N", (number, f"{number}牛")
    )


def work_out_forces(choices):
    spec = some_slope(choices)
    spec["angle"] = spec["angle"] or 30
    spec["forces"], spec["style"]["names"] = ["weight", "normal", "friction"], False
    weight, across, along = components(spec)
    prompt = puzzle(
        choices,
        (
            "a block of {mass} kg rests on a slope of {angle}°. The free-body diagram, with g = 10 m/s².",
            "the forces on a {mass} kg block at rest on a {angle}° incline (g = 10 m/s²), as a diagram.",
        ),
        ("质量{mass}千克的物块静止在倾角{angle}°的斜面上（g取10 m/s²），画出受力图。",),
        mass=spec["mass"],
        angle=spec["angle"],
    )
    words = steps(
        choices,
        (
            f"The weight acts straight down: G = m g = {spec['mass']} × 10 = {plain(weight)} N.",
            f"重力竖直向下：G = mg = {spec['mass']} × 10 = {plain(weight)} N。",
        ),
        (
            f"The normal force acts at right angles to the slope: N = G cos {spec['angle']}° = {plain(across, 1)} N.",
            f"支持力垂直于斜面：N = G cos {spec['angle']}° = {plain(across, 1)} N。",
        ),
        (
            "At rest, friction holds the block, so it acts up the slope: "
            f"f = G sin {spec['angle']}° = {plain(along, 1)} N.",
            f"物块静止，摩擦力沿斜面向上：f = G sin {spec['angle']}° = {plain(along, 1)} N。",
        ),
        (
            f"The picture: a block of {spec['mass']} kg on a slope of "
            f"{spec['angle']}° with {force_words(choices, spec)}.",
            f"图中：倾角{spec['angle']}°的斜面上有{spec['mass']}千克的物块，标出{force_words(choices, spec)}。",
        ),
    )
    return science.to_draw(choices, spec, prompt, words)


# A thin lens: an object, its image, and three rays

LENSES = {1: ("converging lens", "凸透镜"), -1: ("diverging lens", "凹透镜")}


def some_lens(choices) -> dict:
    kind = choices.pick((1, 1, -1))
    focus = choices.number(3, 6)
    far = [u for u in range(2, 19) if abs(u - focus) > 1 and image_of(kind * focus, u)[0] is not None]
    far = [u for u in far if abs(image_of(kind * focus, u)[0]) <= 18 and abs(image_of(kind * focus, u)[1]) <= 2.6]
    return {
        "figure": "lens",
        "style": some_style(choices) | {"ray": choices.pick(COLOUR_NAMES)[0], "rays": choices.number(2, 3)},
        "language": choices.language,
        "kind": kind,
        "focus": focus,
        "far": choices.pick(far),
    }


def image_of(focus: float, far: float) -> tuple[float | None, float]:
    """Distance of the image behind the lens (negative: before it) and its magnification."""
    if far == focus:
        return None, 0.0
    distance = focus * far / (far - focus)
    return distance, -distance / far


@science.figure("lens")
def draw_lens(paper, spec):
    focus, far, high = spec["kind"] * spec["focus"], spec["far"], 3.0
    distance, size = image_of(focus, far)
    tall = high * max(1.0, abs(size)) + 1.2
    x0, x1 = -max(far, spec["focus"], -distance) - 1.5, max(distance, spec["focus"], 4) + 1.5
    plane = paper.plane(x0, x1, -tall, tall)
    at, ray = plane.at, HEX[spec["style"]["ray"]]
    paper.path(plane.all([(x0, 0), (x1, 0)]), width=0.8)
    draw_glass(paper, plane, spec["kind"], tall - 0.3)
    tip = distance, high * size
    # Parallel to the axis and through a focus; through the middle; through the other focus and then parallel.
    crossings = [high, 0.0, tip[1]][: spec["style"]["rays"]]
    for y in crossings:
        if abs(y) > tall:
            continue
        paper.path(plane.all([(-far, high), (0, y)]), ray, 1.2)
        slope = (tip[1] - y) / distance
        end = min(x1, distance + 1.2) if distance > 0 else x1
        limit = (math.copysign(tall, slope) - y) / slope if slope else x1
        end = min(end, limit) if limit > 0 else end
        paper.path(plane.all([(0, y), (end, y + slope * end)]), ray, 1.2)
        if distance < 0:
            paper.path(plane.all([(0, y), tip]), ray, 1.0, dash=(3, 3))
    words = {"en": ("object", "image"), "zh": ("物体", "像")}[spec["language"]]
    paper.arrow(at(-far, 0), at(-far, high), width=2.4, size=1.3)
    pale = blend(paper.ink, paper.back, 0.5)  # of virtual images
    paper.arrow(at(distance, 0), at(*tip), pale if distance < 0 else paper.ink, width=2.4, size=1.1)
    gap = 0.9 * paper.unit
    place_word(paper, at(-far, 0), -gap, words[0])
    down = -gap if size > 0 else gap
    near = size > 0 and abs(at(distance, 0)[0] - at(-far, 0)[0]) < paper.measure(words[0]) + paper.unit
    place_word(paper, at(distance, 0), down * (2.4 if near else 1), words[1])
    for x, name in ((spec["focus"], "F'"), (-spec["focus"], "F")):
        paper.disc(*at(x, 0), 0.28 * paper.unit, paper.ink)
        dx, dy = at(x, 0)
        below = [abs(dx - at(other, 0)[0]) for other in (-far, distance)]
        taken = below[0] < 3 * paper.unit or (size > 0 and below[1] < 3 * paper.unit)
        aside = 1.1 * paper.unit if min(below) < 1.2 * paper.unit else 0
        paper.text(dx + aside, dy + (gap if taken else -gap), name, 0.95, halo=True)


def place_word(paper, point, shift, word):
    half = 0.5 * paper.measure(word) + 0.4 * paper.unit
    x = min(max(point[0], half), paper.width - half)
    paper.text(x, point[1] + shift, word, 0.95, halo=True)


def draw_glass(paper, plane, kind, half):
    """A lens of two circular arcs, standing on the axis."""
    belly, points = 0.45, []
    count = 24
    for i in range(count + 1):
        y = half * (2 * i / count - 1)
        bulge = belly * (1 - (y / half) ** 2)
        points.append((bulge if kind > 0 else 0.15 + belly - bulge, y))
    outline = [*points, *((-x, y) for x, y in reversed(points))]
    paper.path(plane.all(outline), fill=blend("#66b2ff", paper.back, 0.6), closed=True, alpha=0.8)


def draw_a_lens(choices):
    spec = some_lens(choices)
    prompt = request(
        choices,
        (
            "a ray diagram of a {lens} with the focal length {focus} cm and an object {far} cm "
            "[before|in front of] it, {rays} [construction |]rays in {colour}, and the image",
            "the construction of the image of an object {far} cm from a "
            "{lens} (f = {focus} cm), with {rays} {colour} rays",
        ),
        ("一[张|幅]{lens}成像光路图：焦距{focus}厘米，物距{far}厘米，画{rays}条{colour}光线和像",),
        lens=LENSES[spec["kind"]],
        focus=spec["focus"],
        far=spec["far"],
        rays=spec["style"]["rays"],
        colour={colour[0]: colour for colour in COLOUR_NAMES}[spec["style"]["ray"]],
    )
    return science.to_draw(choices, spec, prompt)


def move_the_object(choices):
    spec = some_lens(choices)
    other = some_lens(choices)
    while other["focus"] != spec["focus"] or other["kind"] != spec["kind"] or other["far"] == spec["far"]:
        other = some_lens(choices)
    prompt = say(
        choices,
        (
            "[Move|Shift] the object to {far} cm from the lens[ and redraw the rays|]. The focal length is {focus} cm.",
            "Put the object {far} cm [from|before] the lens, where the focal length is {focus} cm.",
            "The object now [is|stands] {far} cm from the lens (f = {focus} "
            "cm). [Redraw|Correct] the rays and the image.",
        ),
        ("焦距为{focus}厘米，把物体移到距透镜{far}厘米处，重画光线和像。",),
        far=other["far"],
        focus=spec["focus"],
    )
    return science.to_edit(choices, spec, spec | {"far": other["far"]}, prompt)


def image_words(spec) -> tuple[str, str]:
    distance, size = image_of(spec["kind"] * spec["focus"], spec["far"])
    en = ("real" if distance > 0 else "virtual", "inverted" if size < 0 else "upright")
    zh = ("实" if distance > 0 else "虚", "倒立" if size < 0 else "正立")
    grown = abs(size)
    bigger = (
        ("magnified", "放大") if grown > 1.001 else ("reduced", "缩小") if grown < 0.999 else ("of equal size", "等大")
    )
    return f"{en[0]}, {en[1]}, {bigger[0]}", f"{zh[1]}{bigger[1]}的{zh[0]}像"


def ask_about_an_image(choices):
    spec = some_lens(choices)
    if choices.flip(0.5):
        prompt = say(
            choices,
            (
                "Describe the image: real or virtual, upright or inverted, magnified or reduced.",
                "What is the image: real or virtual, upright or inverted, magnified or reduced?",
            ),
            ("像的性质是什么（正立或倒立、放大或缩小、实像或虚像）？",),
        )
        answer = in_language(image_words(spec), choices.language)
        return science.to_ask(choices, spec, prompt, answer)
    distance = plain(abs(image_of(spec["kind"] * spec["focus"], spec["far"])[0]), 1)
    prompt = say(
        choices,
        (
            "The focal length is {focus} cm, the object is {far} cm from the lens. "
            "How far from the lens is the image, in cm, to one decimal?",
        ),
        ("焦距{focus}厘米，物距{far}厘米，像到透镜的距离是多少厘米（保留一位小数）？",),
        focus=spec["focus"],
        far=spec["far"],
    )
    return science.to_ask(choices, spec, prompt, f"{distance} cm", (distance, f"{distance}厘米"))


def work_out_an_image(choices):
    spec = some_lens(choices)
    focus, far = spec["kind"] * spec["focus"], spec["far"]
    distance, size = image_of(focus, far)
    prompt = puzzle(
        choices,
        (
            "an object stands {far} cm from a {lens} with a focal length of {focus} cm. A ray diagram with the image.",
            "where is the image of an object {far} cm before a {lens} of f = {focus} cm? Show it in a ray diagram.",
        ),
        ("物体在{lens}前{far}厘米处，焦距{focus}厘米，画出成像光路图。",),
        far=far,
        lens=LENSES[spec["kind"]],
        focus=spec["focus"],
    )
    en, zh = image_words(spec)
    words = steps(
        choices,
        (
            f"The lens equation: 1/v = 1/f − 1/u = 1/({focus}) − 1/{far}, with f = {focus} cm and u = {far} cm.",
            f"透镜公式：1/v = 1/f − 1/u = 1/({focus}) − 1/{far}，其中f = {focus}厘米，u = {far}厘米。",
        ),
        (
            f"So v = {plain(distance, 1)} cm, {'behind the lens' if distance > 0 else 'on the side of the object'}.",
            f"得v = {plain(distance, 1)}厘米，{'在透镜另一侧' if distance > 0 else '与物体同侧'}。",
        ),
        (f"The magnification is {plain(size)}; the image is {en}.", f"放大率为{plain(size)}，成{zh}。"),
        (
            f"The picture shows {spec['style']['rays']} rays from the tip of the object, which "
            f"meet{'' if distance > 0 else ', extended backwards,'} at the tip of the image.",
            f"图中从物体顶端画{spec['style']['rays']}条光线，"
            f"{'会聚于' if distance > 0 else '反向延长线会聚于'}像的顶端。",
        ),
    )
    return science.to_draw(choices, spec, prompt, words)


# Refraction at a plane surface

MEDIA = (
    (("air", "空气"), 1.0),
    (("water", "水"), 1.33),
    (("oil", "油"), 1.47),
    (("glass", "玻璃"), 1.5),
    (("sapphire", "蓝宝石"), 1.77),
    (("diamond", "钻石"), 2.42),
)


def some_surface(choices) -> dict:
    upper, lower = choices.few(range(len(MEDIA)), 2)
    return {
        "figure": "refraction",
        "style": some_style(choices) | {"ray": choices.pick(COLOUR_NAMES)[0], "reflected": choices.flip(0.4)},
        "language": choices.language,
        "upper": upper,
        "lower": lower,
        "angle": 5 * choices.number(4, 14),
    }


def refracted(spec) -> float | None:
    """The angle of refraction in degrees; None for total reflection."""
    sine = MEDIA[spec["upper"]][1] * math.sin(math.radians(spec["angle"])) / MEDIA[spec["lower"]][1]
    return None if sine >= 1 else math.degrees(math.asin(sine))


@science.figure("refraction")
def draw_refraction(paper, spec):
    half = 0.5 * min(paper.right - paper.left, paper.top - paper.bottom)
    x, y, language = paper.width / 2, paper.height / 2, spec["language"]
    shades = [blend(paper.back, "#3f8fd0", 0.08 + 0.28 * (MEDIA[spec[side]][1] - 1)) for side in ("upper", "lower")]
    paper.box(0, y, paper.width, y, shades[0], "none")
    paper.box(0, 0, paper.width, y, shades[1], "none")
    paper.path([(0, y), (paper.width, y)], width=1.4)
    paper.path([(x, y - half), (x, y + half)], width=0.9, dash=(5, 4))
    ray, length = HEX[spec["style"]["ray"]], 0.92 * half
    angles = [(90 + spec["angle"], True)]  # of the ways from the middle, anticlockwise from the right
    bent = refracted(spec)
    if bent is not None:
        angles.append((-90 + bent, False))
    if bent is None or spec["style"]["reflected"]:
        angles.append((90 - spec["angle"], False))
    for angle, incoming in angles:
        way = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        end = (x + length * way[0], y + length * way[1])
        middle = (x + 0.55 * length * way[0], y + 0.55 * length * way[1])
        paper.path([end, (x, y)], ray, 2.2)
        paper.arrow(end if incoming else (x, y), middle, ray, 2.2, 1.4)
        straight = 90 if angle > 0 else -90
        paper.arc(x, y, 0.3 * half, min(angle, straight), max(angle, straight))
        mark = math.radians((angle + straight) / 2)
        value = f"{plain(abs(angle - straight), 1)}°"
        radius, wide = 0.3 * half + 0.7 * paper.unit, 0.5 * paper.measure(value, 0.95)
        if radius * math.sin(math.radians(abs(angle - straight) / 2)) > wide + 0.4 * paper.unit:
            paper.text(x + radius * math.cos(mark), y + radius * math.sin(mark), value, 0.95)
        else:  # no room between the ray and the normal
            radius = 0.36 * half
            aside = math.copysign(wide + 0.6 * paper.unit, way[0])
            paper.text(x + radius * way[0] + aside, y + radius * way[1], value, 0.95)
    for side, dy in (("upper", 1), ("lower", -1)):
        name, index = MEDIA[spec[side]]
        word = f"{in_language(name, language)}  n = {plain(index)}"
        paper.text(paper.left, y + dy * 1.2 * paper.unit, word, paper.fit(word, 0.36 * paper.width), ha="left")


def draw_a_refraction(choices):
    spec = some_surface(choices)
    bent = refracted(spec)
    extra = ("", "")
    if bent is not None and spec["style"]["reflected"]:
        extra = (", with the reflected ray too", "，同时画出反射光线")
    prompt = request(
        choices,
        (
            "a {colour} ray of light that goes from {upper} (above) into {lower} "
            "(below) at {angle}° to the normal, with its angles{extra}",
            "a diagram of the refraction of a {colour} ray between {upper} above and "
            "{lower} below, angle of incidence {angle}°{extra}",
        ),
        ("一条{colour}光线从上方的{upper}以{angle}°入射角射入下方的{lower}，标出各个角{extra}",),
        upper=MEDIA[spec["upper"]][0],
        lower=MEDIA[spec["lower"]][0],
        angle=spec["angle"],
        extra=extra,
        colour={colour[0]: colour for colour in COLOUR_NAMES}[spec["style"]["ray"]],
    )
    return science.to_draw(choices, spec, prompt)


def change_a_refraction(choices):
    spec = some_surface(choices)
    if choices.flip(0.5):
        angle = choices.pick([5 * i for i in range(4, 15) if 5 * i != spec["angle"]])
        after = spec | {"angle": angle}
        forms = (
            (
                "[Change|Set] the angle of incidence to {value}°.",
                "[Let|Make] the ray [come|arrive] at {value}° to the normal.",
            ),
            ("把入射角[改为|改成]{value}°。",),
        )
        value = angle
    else:
        medium = choices.pick([i for i in range(len(MEDIA)) if i not in (spec["upper"], spec["lower"])])
        after, value = spec | {"lower": medium}, MEDIA[medium][0]
        forms = (
            (
                "Replace the lower medium [by|with] {value}[, and redraw the rays|].",
                "[Let|Make] the light enter {value} instead[ and correct the rays|].",
            ),
            ("把下方的介质换成{value}[，并重画光线|]。",),
        )
    return science.to_edit(choices, spec, after, say(choices, *forms, value=value))


def work_out_a_refraction(choices):
    spec = some_surface(choices)
    (upper, n), (lower, m), angle = MEDIA[spec["upper"]], MEDIA[spec["lower"]], spec["angle"]
    bent, sine = refracted(spec), n * math.sin(math.radians(angle)) / m
    prompt = puzzle(
        choices,
        (
            "light passes from {upper} (n = {n}) into {lower} (n = {m}), which lies below, "
            "at {angle}° to the normal. The path of the ray with its angles.",
        ),
        ("光线从{upper}（n = {n}）以{angle}°入射角射向下方的{lower}（n = {m}），画出光路并标出角度。",),
        upper=upper,
        lower=lower,
        n=plain(n),
        m=plain(m),
        angle=angle,
    )
    lines = [
        (
            f"Snell's law: sin r = {plain(n)} × sin {angle}° / {plain(m)} = {plain(sine, 3)}.",
            f"折射定律：sin r = {plain(n)} × sin {angle}° / {plain(m)} = {plain(sine, 3)}。",
        )
    ]
    if bent is None:
        lines.append(("This is over 1, so all light is reflected.", "结果不小于1，因此发生全反射。"))
        lines.append(
            (
                f"The ray goes back into {upper[0]} at {angle}° on the other side of the normal.",
                f"光线以{angle}°反射回{upper[1]}。",
            )
        )
    else:
        lines.append(
            (
                f"So r = {plain(bent, 1)}°, {'towards' if m > n else 'away from'} the normal.",
                f"得r = {plain(bent, 1)}°，{'靠近' if m > n else '远离'}法线。",
            )
        )
        lines.append(
            (f"The ray enters {lower[0]} on the other side of the normal.", f"光线在法线另一侧进入{lower[1]}。")
        )
    return science.to_draw(choices, spec, prompt, steps(choices, *lines))


# Circuits: a source and resistors in series or side by side


def some_circuit(choices, fewest=1) -> dict:
    parallel, count = choices.flip(0.5), choices.number(fewest, 3)
    lamp = choices.flip(0.4)
    return {
        "figure": "circuit",
        "style": some_style(choices),
        "parallel": parallel and count > 1,
        "volts": choices.pick((3, 4.5, 6, 9, 12, 24)),
        "ohms": [choices.pick((1, 2, 3, 4, 5, 6, 8, 10, 12, 20)) for _ in range(count)],
        "part": "lamp" if lamp else "resistor",
        "switch": choices.pick(("none", "open", "closed")),
        "meter": choices.flip(0.3),
    }


@science.figure("circuit")
def draw_circuit(paper, spec):
    """A loop in units of schemdraw's, scaled to the free part."""
    ohms = spec["ohms"]
    w, h = paper.right - paper.left, paper.top - paper.bottom
    wide = max(2.0 + 3.2 * (1 if spec["parallel"] else len(ohms)), 4.2 * (spec["switch"] != "none") + 4 * spec["meter"])
    tall = 4.0 + (2.6 * (len(ohms) - 1) if spec["parallel"] else 0)
    wide, tall = max(wide, tall * w / h * 0.8 - 1), max(tall, min(9.0, (wide + 2) * h / w * 0.8))
    scale = min(w / (wide + 2.6), h / (tall + 2.2))
    figure = schemdraw.Drawing(show=False)
    size = paper.unit / scale * 0.95
    labels = []

    def element(kind, start, end, label="", at=(0, 0)):
        figure.add(kind.at(start) if isinstance(kind, elements.Dot) else kind.endpoints(start, end))
        if label:
            labels.append((label, (start[0] + end[0]) / 2 + at[0], (start[1] + end[1]) / 2 + at[1]))

    part = elements.Lamp if spec["part"] == "lamp" else elements.ResistorIEC
    element(elements.Battery(), (0, 0), (0, tall), f"{plain(spec['volts'])} V", (-0.75 - 0.75 * size, 0))
    bottom = []
    if spec["switch"] != "none":
        bottom.append(elements.Switch(action=None) if spec["switch"] == "open" else elements.Switch())
    if spec["meter"]:
        bottom.append(elements.MeterA())
    xs = [wide * i / max(1, len(bottom)) for i in range(len(bottom) + 1)] if bottom else [0, wide]
    for i, (a, b) in enumerate(itertools.pairwise(xs)):
        middle = (a + b) / 2
        if not bottom:
            element(elements.Line(), (a, 0), (b, 0))
            continue
        element(elements.Line(), (a, 0), (middle - 0.75, 0))
        if isinstance(bottom[i], elements.Switch):
            closed_or_open(element, middle, spec["switch"])
        else:
            element(bottom[i], (middle - 0.75, 0), (middle + 0.75, 0))
        element(elements.Line(), (middle + 0.75, 0), (b, 0))
    rows = len(ohms) if spec["parallel"] else 1
    ys = [tall - (tall - 1.6) * i / max(1, rows) * 0.9 for i in range(rows)]
    for row, y in enumerate(ys):
        if row:
            element(elements.Line(), (0.8, ys[row - 1]), (0.8, y))
            element(elements.Line(), (wide - 0.8, ys[row - 1]), (wide - 0.8, y))
        left, right = (0.8, wide - 0.8) if spec["parallel"] else (0, wide)
        inside = [row] if spec["parallel"] else range(len(ohms))
        pitch = (right - left) / len(list(inside))
        for k, i in enumerate(inside):
            middle = left + pitch * (k + 0.5)
            element(elements.Line(), (left + pitch * k, y), (middle - 1, y))
            label = f"R{i + 1} = {ohms[i]} Ω"
            element(part(), (middle - 1, y), (middle + 1, y), label, (0, 0.62 + 0.55 * size))
            element(elements.Line(), (middle + 1, y), (left + pitch * (k + 1), y))
    if spec["parallel"]:
        element(elements.Line(), (0, tall), (0.8, tall))
        element(elements.Line(), (wide - 0.8, tall), (wide, tall))
        for y in ys[:-1]:
            for x in (0.8, wide - 0.8):
                figure.add(elements.Dot(radius=0.09).at((x, y)))
    element(elements.Line(), (wide, tall), (wide, 0))
    place_drawing(paper, figure, labels, scale, (wide, tall))


def closed_or_open(element, middle, state):
    """A switch as two contacts and a lever."""
    high = 0.55 if state == "open" else 0.0
    element(elements.Dot(radius=0.09, open=True), (middle - 0.75, 0), (middle - 0.75, 0))
    element(elements.Dot(radius=0.09, open=True), (middle + 0.75, 0), (middle + 0.75, 0))
    element(elements.Line(), (middle - 0.68, 0.04 if high else 0), (middle + (0.5 if high else 0.68), high))


def place_drawing(paper, figure, labels, scale, size):
    """Put schemdraw's segments on the paper, and the labels."""
    wide, tall = size
    x0 = (paper.left + paper.right - scale * (wide - 1.4)) / 2
    y0 = (paper.bottom + paper.top - scale * (tall - 0.2)) / 2 - 0.4 * paper.unit
    for element in figure.elements:
        for segment in element.segments:
            put_segment(paper, segment.xform(element.transform, **element.params), x0, y0, scale)
    for label, x, y in labels:
        room = 2.9 * scale if "Ω" in label else 2.2 * scale
        half = 0.5 * paper.measure(label, 0.95)
        place = min(max(x0 + scale * x, half + 0.3 * paper.unit), paper.width - half)
        paper.text(place, y0 + scale * y, label, paper.fit(label, room, 0.95))


def put_segment(paper, segment, x0, y0, scale):
    """One of schemdraw's primitives in the paper's pixels."""
    kind, width = type(segment).__name__, 1.3
    if kind == "Segment":
        runs, run = [], []
        for x, y in segment.path:
            if math.isnan(x) or math.isnan(y):
                runs.append(run)
                run = []
            else:
                run.append((x0 + scale * x, y0 + scale * y))
        for points in [*runs, run]:
            if len(points) > 1:
                paper.path(points, width=width)
    elif kind == "SegmentCircle":
        filled = paper.ink if segment.fill and segment.fill != "bg" else paper.back
        x, y = segment.center
        paper.disc(x0 + scale * x, y0 + scale * y, scale * segment.radius, filled, width=width)
    elif kind == "SegmentPoly":
        paper.path([(x0 + scale * x, y0 + scale * y) for x, y in segment.verts], width=width, closed=segment.closed)
    elif kind == "SegmentText":
        x, y = segment.xy
        paper.text(x0 + scale * x, y0 + scale * y, segment.text, 1.0)
    else:
        raise ValueError(f"no way to draw schemdraw's {kind}")


PARTS = {"lamp": ("lamp", "灯泡"), "resistor": ("resistor", "电阻")}


def circuit_words(spec) -> tuple[str, str]:
    ohms, part = spec["ohms"], PARTS[spec["part"]]
    values = [f"R{i + 1} = {value} Ω" for i, value in enumerate(ohms)]
    if len(ohms) == 1:
        en, zh = [f"a {part[0]} of {ohms[0]} Ω"], f"一个{ohms[0]}欧的{part[1]}"
    else:
        how = ("in parallel", "并联") if spec["parallel"] else ("in series", "串联")
        en = [f"{len(ohms)} {part[0]}s {how[0]} ({', '.join(values)})"]
        zh = f"{len(ohms)}个{how[1]}的{part[1]}（{'、'.join(values)}）"
    if spec["switch"] != "none":
        en.append(f"{'an' if spec['switch'] == 'open' else 'a'} {spec['switch']} switch")
        zh += f"、一个{'断开' if spec['switch'] == 'open' else '闭合'}的开关"
    if spec["meter"]:
        en, zh = [*en, "an ammeter"], zh + "和一个电流表"
    return listed(en, "en"), zh


def draw_a_circuit(choices):
    spec = some_circuit(choices)
    prompt = request(
        choices,
        (
            "a circuit[ diagram|]: a battery of {volts} V with {parts}",
            "the [schematic|circuit diagram] of a {volts} V battery with {parts}",
        ),
        ("一[张|幅]电路图：{volts}伏电池、{parts}", "电路图，含{volts}伏电源，{parts}"),
        volts=plain(spec["volts"]),
        parts=circuit_words(spec),
    )
    return science.to_draw(choices, spec, prompt)


def change_a_circuit(choices):
    spec = some_circuit(choices, 2)
    what = choices.pick(("ohms", "volts", "switch", "part", "one less"))
    i, values = choices.number(0, len(spec["ohms"]) - 1), {}
    if what == "ohms":
        new = choices.pick([value for value in (1, 2, 4, 5, 7, 9, 15, 30) if value != spec["ohms"][i]])
        after = spec | {"ohms": [*spec["ohms"][:i], new, *spec["ohms"][i + 1 :]]}
        values = {"name": f"R{i + 1}", "new": new}
        forms = (
            ("[Change|Set] {name} to {new} Ω.", "{name} should be {new} Ω[ instead|]."),
            ("把{name}[改为|改成]{new}欧。",),
        )
    elif what == "volts":
        new = choices.pick([value for value in (3, 4.5, 6, 9, 12, 24) if value != spec["volts"]])
        after, values = spec | {"volts": new}, {"new": plain(new)}
        forms = (
            ("[Use|Put in] a battery of {new} V[ instead|].", "[Set|Change] the voltage to {new} V."),
            ("把电池[换成|改为]{new}伏。",),
        )
    elif what == "switch":
        spec["switch"] = choices.pick(("open", "closed"))
        after = spec | {"switch": "closed" if spec["switch"] == "open" else "open"}
        forms = (
            (("[Close|Shut] the switch.",), ("[闭合|合上]开关。",))
            if spec["switch"] == "open"
            else (("Open the switch.", "Switch the circuit off."), ("[断开|打开]开关。",))
        )
    elif what == "part":
        after = spec | {"part": "resistor" if spec["part"] == "lamp" else "lamp"}
        values = {"old": PARTS[spec["part"]], "new": PARTS[after["part"]]}
        forms = (
            (
                "Replace the {old}s [with|by] {new}s.",
                "Exchange the {old}s for {new}s.",
                "Turn every {old} into a {new}.",
            ),
            ("把[所有|]{old}换成{new}。",),
        )
    else:
        less = spec | {"ohms": spec["ohms"][:-1], "parallel": spec["parallel"] and len(spec["ohms"]) > 2}
        if less["parallel"] != spec["parallel"]:
            return change_a_circuit(choices)
        spec, after = (less, spec) if choices.flip(0.5) else (spec, less)
        last = max(spec["ohms"], after["ohms"], key=len)
        values = {"part": PARTS[spec["part"]], "new": last[-1], "name": f"R{len(last)}"}
        if len(after["ohms"]) > len(spec["ohms"]):
            how = ("in parallel", "并联") if spec["parallel"] else ("in series", "串联")
            values["how"] = how
            forms = ("[Add|Insert|Connect] a {part} {name} of {new} Ω {how}.",), ("再{how}一个{new}欧的{part}{name}。",)
        else:
            forms = ("[Remove|Take out|Delete] {name}.",), ("[去掉|移除|删除]{name}。",)
    return science.to_edit(choices, spec, after, say(choices, *forms, **values))


def resistance(spec) -> float:
    return 1 / sum(1 / value for value in spec["ohms"]) if spec["parallel"] else sum(spec["ohms"])


def ask_about_a_circuit(choices):
    spec = some_circuit(choices, 2)
    spec["switch"] = "closed" if spec["switch"] == "open" else spec["switch"]
    total = resistance(spec)
    if choices.flip(0.5):
        forms = (
            (
                "What is the total resistance, in ohms to two decimals?",
                "[Find|Compute] the [total|equivalent] resistance (Ω, two decimals).",
            ),
            ("总电阻是多少欧（保留两位小数）？",),
        )
        answer, unit, zh = plain(total), "Ω", "欧"
    else:
        forms = (
            (
                "What current does the battery supply, in amperes to two decimals?",
                "[Find|Compute] the current through the battery (A, two decimals).",
            ),
            ("电池的电流是多少安（保留两位小数）？",),
        )
        answer, unit, zh = plain(spec["volts"] / total), "A", "安"
    return science.to_ask(choices, spec, say(choices, *forms), f"{answer} {unit}", (answer, f"{answer}{zh}"))


def work_out_a_circuit(choices):
    """The resistor that makes the total right."""
    spec = some_circuit(choices, 2)
    spec["parallel"], spec["switch"], spec["part"] = False, "none", "resistor"
    total = sum(spec["ohms"])
    current = choices.pick((0.25, 0.5, 1, 2))
    spec["volts"] = total * current
    known = [f"{value} Ω" for value in spec["ohms"][:-1]]
    prompt = puzzle(
        choices,
        (
            "a battery of {volts} V must drive {current} A through {parts}, all in series. "
            "The circuit[ diagram|] with {last}{meter}.",
        ),
        ("{volts}伏电池给{parts}和另一个电阻串联供电，电流为{current}安。求出该电阻并画出电路图，标上{last}{meter}。",),
        volts=plain(spec["volts"]),
        current=plain(current),
        parts=(listed([*known, "one more resistor"], "en"), listed(known, "zh")),
        last=f"R{len(spec['ohms'])}",
        meter=(" and an ammeter", "，并画电流表") if spec["meter"] else ("", ""),
    )
    last, name = spec["ohms"][-1], f"R{len(spec['ohms'])}"
    sums = " + ".join(map(str, spec["ohms"][:-1]))
    sums = f"({sums})" if len(known) > 1 else sums
    words = steps(
        choices,
        (
            f"The total resistance is U / I = {plain(spec['volts'])} / {plain(current)} = {total} Ω.",
            f"总电阻：U / I = {plain(spec['volts'])} / {plain(current)} = {total} Ω。",
        ),
        (
            f"In series, resistances add up, so {name} = {total} − {sums} = {last} Ω.",
            f"串联电阻相加，所以{name} = {total} − {sums} = {last} Ω。",
        ),
        (
            f"The picture: a battery of {plain(spec['volts'])} V with {circuit_words(spec)[0]}.",
            f"图中：{plain(spec['volts'])}伏电池，{circuit_words(spec)[1]}。",
        ),
    )
    return science.to_draw(choices, spec, prompt, words)


KINDS = {
    "draw": {"forces": draw_forces, "lens": draw_a_lens, "refraction": draw_a_refraction, "circuit": draw_a_circuit},
    "edit": {
        "forces": change_a_slope,
        "object before a lens": move_the_object,
        "refraction": change_a_refraction,
        "circuit": change_a_circuit,
    },
    "ask": {"force": ask_a_force, "image of a lens": ask_about_an_image, "circuit": ask_about_a_circuit},
    "reason": {
        "forces": work_out_forces,
        "image of a lens": work_out_an_image,
        "refraction": work_out_a_refraction,
        "circuit": work_out_a_circuit,
    },
}
