"""Computer science: search trees, graphs, automata, arrays, stacks, queues, linked lists, sorting."""

import math

import numpy as np

from internvlu_core.errors import need

from ..drawing import COLOUR_NAMES, HEX, blend, some_style
from ..figures import bilingual, pieces, where
from ..wording import counted, in_language, listed, puzzle, request, say, steps
from .base import science

networkx = need("networkx", "synthesis")

LETTERS = "ABCDEFGHJKLM"
NAMED = {colour[0]: colour for colour in COLOUR_NAMES}


def node(paper, x, y, radius, label, fill, second=False):
    """A labelled circle. second: a second circle within, as of an accepting state."""
    pale = blend(HEX[fill], "#ffffff", 0.45)
    paper.disc(x, y, radius, pale, width=1.3)
    if second:
        paper.disc(x, y, 0.8 * radius, pale, width=1.1)
    size = paper.fit(str(label), (1.2 if second else 1.45) * radius, min(1.25, 1.1 * radius / paper.unit))
    paper.text(x, y, str(label), size, colour="#111111")


def count_nodes(spec, picture, colours) -> bool:
    """Whether there are as many pale discs as nodes of each colour. colours: one for each node.

    A label or an arrow may part a disc, so that spots whose frames overlap count as one.
    """
    for colour in set(colours):
        mask = where(picture, blend(HEX[colour], "#ffffff", 0.45), 36)
        found = pieces(mask, 60)
        boxes = []
        for piece in sorted(found, key=lambda piece: -np.prod(np.ptp(piece, axis=0) + 1)):
            low, high = piece.min(axis=0), piece.max(axis=0)
            if not any((low <= b[1]).all() and (high >= b[0]).all() for b in boxes):
                boxes.append((low, high))
        areas = [int(np.prod(high - low)) for low, high in boxes]
        if sum(area > 0.3 * max(areas) for area in areas) != colours.count(colour):
            return False
    return True


# Binary search trees


def grow(values) -> dict:
    """{value: (left, right)} of the search tree in which the values were put in this order."""
    tree = {}
    for value in values:
        at = values[0]
        while value != at and tree:
            side = value > at
            children = tree[at]
            if children[side] is None:
                tree[at] = (children[0], value) if side else (value, children[1])
                break
            at = children[side]
        tree.setdefault(value, (None, None))
    return tree


def depth(tree, root) -> int:
    return 0 if root is None else 1 + max(depth(tree, child) for child in tree[root])


def some_tree(choices, most=9) -> dict:
    while True:
        values = choices.few(range(1, 100), choices.number(5, most))
        if depth(grow(values), values[0]) <= 4:
            break
    return {
        "figure": "tree",
        "style": some_style(choices) | {"fill": choices.pick(COLOUR_NAMES)[0]},
        "values": values,
        "frame": values,  # of a tree with more values, so that a node has the same place before and after an edit
        "marked": [],
        "mark": choices.pick(COLOUR_NAMES)[0],
    }


def tree_places(tree, root, sorted_values) -> dict:
    places = {}

    def walk(value, level):
        if value is not None:
            places[value] = (sorted_values.index(value), -level)
            for child in tree[value]:
                walk(child, level + 1)

    walk(root, 0)
    return places


@science.figure("tree")
def draw_tree(paper, spec):
    values, frame = spec["values"], spec["frame"]
    tree, whole, root = grow(values), grow(frame), values[0]
    places = tree_places(whole, root, sorted(frame))
    count, levels = len(frame), depth(whole, root)
    w, h = paper.right - paper.left, paper.top - paper.bottom
    radius = min(0.47 * w / count, 0.3 * h / levels, 2.2 * paper.unit)
    across = min((w - 2 * radius) / max(1, count - 1), 3.4 * radius)
    down = min((h - 2 * radius) / max(1, levels - 1), 5 * radius)
    x0, y0 = paper.width / 2 - across * (count - 1) / 2, paper.height / 2 + down * (levels - 1) / 2

    def at(value):
        x, y = places[value]
        return x0 + across * x, y0 + down * y

    for value, children in tree.items():
        for child in children:
            if child is not None:
                paper.path([at(value), at(child)], width=1.3)
    for value in tree:
        fill = spec["mark"] if value in spec["marked"] else spec["style"]["fill"]
        node(paper, *at(value), radius, value, fill)


@science.reader("tree")
def read_tree(spec, picture):
    fills = [spec["mark"] if value in spec["marked"] else spec["style"]["fill"] for value in spec["values"]]
    return {"nodes": count_nodes(spec, picture, fills)}


def draw_a_tree(choices):
    spec = some_tree(choices)
    prompt = request(
        choices,
        (
            "the binary search tree of {values}, inserted in this order, with {colour} nodes",
            "a binary search tree [made by inserting|from] {values} in this order, nodes in {colour}",
        ),
        ("依次插入{values}得到的二叉搜索树，节点为{colour}",),
        values=listed([str(value) for value in spec["values"]], choices.language),
        colour=NAMED[spec["style"]["fill"]],
    )
    return science.to_draw(choices, spec, prompt)


def insert_into_a_tree(choices):
    spec = some_tree(choices, 8)
    tree = grow(spec["values"])
    if choices.flip(0.5):
        new = choices.pick([value for value in range(1, 100) if value not in spec["values"]])
        after = spec | {"values": [*spec["values"], new], "frame": [*spec["values"], new]}
        before = spec | {"frame": after["frame"]}
        if depth(grow(after["values"]), after["values"][0]) > 5:
            return insert_into_a_tree(choices)
        forms = (
            (
                "[Insert|Put] {value} into the tree.",
                "[Insert|Add] {value}.",
                "[Show|Draw] the tree after {value} was inserted.",
            ),
            ("[插入|加入]{value}。", "画出插入{value}之后的[树|二叉搜索树]。"),
        )
    else:
        leaves = [value for value, children in tree.items() if children == (None, None) and value != spec["values"][0]]
        new = choices.pick(sorted(leaves))
        before, after = spec, spec | {"values": [value for value in spec["values"] if value != new]}
        forms = (
            ("[Delete|Remove] the leaf {value}.", "[Show|Draw] the tree without the leaf {value}."),
            ("[删除|去掉]叶节点{value}。",),
        )
    return science.to_edit(choices, before, after, say(choices, *forms, value=new))


def path_in(tree, root, value) -> list:
    way, at = [root], root
    while at != value:
        at = tree[at][value > at]
        way.append(at)
    return way


def mark_a_way(choices):
    """The way of a search, with its comparisons as reasoning."""
    spec = some_tree(choices)
    spec["mark"] = choices.pick([colour[0] for colour in COLOUR_NAMES if colour[0] != spec["style"]["fill"]])
    tree, root = grow(spec["values"]), spec["values"][0]
    target = choices.pick([value for value in spec["values"] if value != root])
    way = path_in(tree, root, target)
    lines = []
    for value in way[:-1]:
        lower = target < value
        lines.append(
            (
                f"{target} is {'less' if lower else 'greater'} than {value}: go {'left' if lower else 'right'}.",
                f"{target}{'小于' if lower else '大于'}{value}，向{'左' if lower else '右'}走。",
            )
        )
    said = listed([str(value) for value in way], choices.language)
    colour = NAMED[spec["mark"]]
    lines.append(
        (f"{target} is found. The nodes {said} are {colour[0]}.", f"找到{target}。把节点{said}画成{colour[1]}。")
    )
    prompt = say(
        choices,
        (
            "[Mark|Colour] in {colour} the nodes that a search for {value} visits.",
            "[Search|Look] for {value} and colour the nodes on the way {colour}.",
        ),
        ("把查找{value}时经过的节点[标成|涂成]{colour}。",),
        value=target,
        colour=colour,
    )
    return science.to_edit(choices, spec, spec | {"marked": way}, prompt, steps(choices, *lines))


def orders(tree, root) -> dict:
    def walk(value, when):
        if value is None:
            return []
        left, right = (walk(child, when) for child in tree[value])
        return {"pre": [value, *left, *right], "in": [*left, value, *right], "post": [*left, *right, value]}[when]

    return {when: walk(root, when) for when in ("pre", "in", "post")}


def ask_about_a_tree(choices):
    spec = some_tree(choices)
    tree, root = grow(spec["values"]), spec["values"][0]
    what = choices.pick(("order", "height", "leaves", "parent"))
    if what == "order":
        when = choices.pick(("pre", "in", "post"))
        name = {"pre": ("pre-order", "前序"), "in": ("in-order", "中序"), "post": ("post-order", "后序")}[when]
        forms = (
            ("[List|Give] the values in the order of the {name} traversal.", "What is the {name} traversal?"),
            ("[写出|给出]{name}遍历的结果。",),
        )
        answer = ", ".join(map(str, orders(tree, root)[when]))
        return science.to_ask(choices, spec, say(choices, *forms, name=name), answer)
    if what == "height":
        forms = ("How many levels does the tree have?", "[Count|Give] the levels of the tree."), ("这棵树有几层？",)
        return science.to_ask(choices, spec, say(choices, *forms), depth(tree, root))
    if what == "leaves":
        forms = (
            ("How many leaves [are there|does the tree have]?", "[Count|Give the number of] the leaves."),
            ("这棵树有几个叶节点？",),
        )
        return science.to_ask(choices, spec, say(choices, *forms), sum(c == (None, None) for c in tree.values()))
    value = choices.pick([value for value in spec["values"] if value != root])
    forms = ("[What|Which node] is the parent of {value}?",), ("{value}的父节点是[哪个|什么]？",)
    return science.to_ask(choices, spec, say(choices, *forms, value=value), path_in(tree, root, value)[-2])


def work_out_a_tree(choices):
    spec = some_tree(choices, 7)
    values = spec["values"]
    lines = [(f"{values[0]} becomes the root.", f"{values[0]}作为根节点。")]
    for i, value in enumerate(values[1:], 2):
        parent = path_in(grow(values[:i]), values[0], value)[-2]
        left = value < parent
        lines.append(
            (
                f"{value} becomes the {'left' if left else 'right'} child of {parent}.",
                f"{value}成为{parent}的{'左' if left else '右'}孩子。",
            )
        )
    lines.append(
        (
            f"The tree has {len(values)} nodes in {NAMED[spec['style']['fill']][0]}.",
            f"树共有{len(values)}个{NAMED[spec['style']['fill']][1]}节点。",
        )
    )
    prompt = puzzle(
        choices,
        ("insert {values} into an empty binary search tree. The tree with {colour} nodes.",),
        ("依次把{values}插入空的二叉搜索树，画出这棵树，节点用{colour}。",),
        values=listed([str(value) for value in values], choices.language),
        colour=NAMED[spec["style"]["fill"]],
    )
    return science.to_draw(choices, spec, prompt, steps(choices, *lines))


# Graphs


def some_graph(choices, weighted=None) -> dict:
    count = choices.number(4, 7)
    names = list(LETTERS[:count])
    edges = [[names[i], names[choices.number(0, i - 1)]] for i in range(1, count)]  # connected
    rest = [[a, b] for i, a in enumerate(names) for b in names[i + 1 :] if [a, b] not in edges and [b, a] not in edges]
    edges += choices.few(rest, min(len(rest), choices.number(1, 3)))
    return {
        "figure": "graph",
        "style": some_style(choices)
        | {
            "fill": choices.pick(COLOUR_NAMES)[0],
            "start": choices.pick((0, 18, 90, 45)),
            "order": choices.shuffled(range(count)),
        },
        "nodes": names,
        "edges": [[*edge, choices.number(1, 9)] for edge in edges],
        "weighted": choices.flip(0.4) if weighted is None else weighted,
        "directed": choices.flip(0.3) if weighted is None else False,
        "marked": [],
        "mark": choices.pick(COLOUR_NAMES)[0],
    }


@science.figure("graph")
def draw_graph(paper, spec):
    """Nodes on an ellipse, so that no edge passes through another node."""
    count = len(spec["style"]["order"])
    w, h = paper.right - paper.left, paper.top - paper.bottom
    radius = min(0.085 * min(w, h), 1.9 * paper.unit)
    places = {}
    a, b = min(w / 2 - radius, 1.25 * (h / 2)), min(h / 2 - radius, 1.25 * (w / 2))
    for name, slot in zip(LETTERS, spec["style"]["order"], strict=False):
        angle = math.radians(spec["style"]["start"] + 360 * slot / count)
        places[name] = (paper.width / 2 + a * math.cos(angle), paper.height / 2 + b * math.sin(angle))
    marked = [set(pair) for pair in zip(spec["marked"], spec["marked"][1:], strict=False)]
    labels = []
    for one, other, weight in spec["edges"]:
        (ax, ay), (bx, by) = places[one], places[other]
        hot = {one, other} in marked
        colour, width = (HEX[spec["mark"]], 3.2) if hot else (paper.ink, 1.4)
        if spec["directed"]:
            length = math.hypot(bx - ax, by - ay)
            ux, uy = (bx - ax) / length * radius, (by - ay) / length * radius
            paper.arrow((ax + ux, ay + uy), (bx - ux, by - uy), colour, width, 1.2)
        else:
            paper.path([(ax, ay), (bx, by)], colour, width)
        share = 0.42 if (ord(one) + ord(other)) % 2 else 0.6
        labels.append((ax + share * (bx - ax), ay + share * (by - ay), str(weight), share, (ax, ay, bx, by)))
    if spec["weighted"]:
        taken = []
        edges = [ends for *_, ends in labels]
        for *_, label, _, ends in labels:
            ax, ay, bx, by = ends
            options = [(ax + s * (bx - ax), ay + s * (by - ay)) for s in (0.5, 0.42, 0.58, 0.36, 0.64, 0.28, 0.72)]
            others = [edge for edge in edges if edge != ends]
            away = [room_around(at, taken, others, 1.6 * paper.unit) for at in options]
            x, y = options[away.index(max(away))]
            taken.append((x, y))
            paper.text(x, y, label, 0.95, halo=True)
    for name in spec["nodes"]:
        node(paper, *places[name], radius, name, spec["mark"] if name in spec["marked"] else spec["style"]["fill"])


def room_around(at, points, edges, enough: float) -> float:
    """How far the nearest of these is, at most `enough`."""
    distances = [math.dist(at, point) for point in points] + [from_edge(at, edge) for edge in edges]
    return round(min([enough, *distances]), 3)


def from_edge(at, edge) -> float:
    """The distance of a point from a line between two points, (x, y, x, y)."""
    ax, ay, bx, by = edge
    share = ((at[0] - ax) * (bx - ax) + (at[1] - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
    share = min(1.0, max(0.0, share))
    return math.dist(at, (ax + share * (bx - ax), ay + share * (by - ay)))


@science.reader("graph")
def read_graph(spec, picture):
    fills = [spec["mark"] if name in spec["marked"] else spec["style"]["fill"] for name in spec["nodes"]]
    return {"nodes": count_nodes(spec, picture, fills)}


def edge_words(choices, spec) -> str:
    arrow = "→" if spec["directed"] else "–"
    return listed(
        [f"{a}{arrow}{b}" + (f" ({w})" if spec["weighted"] else "") for a, b, w in spec["edges"]], choices.language
    )


def graph_word(spec) -> tuple[str, str]:
    en = ("directed " if spec["directed"] else "") + ("weighted " if spec["weighted"] else "") + "graph"
    return en, ("带权" if spec["weighted"] else "") + ("有向图" if spec["directed"] else "无向图")


def draw_a_graph(choices):
    spec = some_graph(choices)
    prompt = request(
        choices,
        (
            "a {kind} with the nodes {nodes} in {colour} and the edges {edges}",
            "a {kind} of {count} {colour} nodes ({nodes}) with the edges {edges}",
        ),
        (
            "一[张|幅]{kind}：节点{nodes}为{colour}，边为{edges}",
            "有{count}个{colour}节点（{nodes}）的{kind}，边：{edges}",
        ),
        kind=graph_word(spec),
        nodes=listed(spec["nodes"], choices.language),
        count=len(spec["nodes"]),
        edges=edge_words(choices, spec),
        colour=NAMED[spec["style"]["fill"]],
    )
    return science.to_draw(choices, spec, prompt)


def change_a_graph(choices):
    spec = some_graph(choices)
    known = [{a, b} for a, b, _ in spec["edges"]]
    absent = [[a, b] for i, a in enumerate(spec["nodes"]) for b in spec["nodes"][i + 1 :] if {a, b} not in known]
    what = choices.pick(("add", "remove", "node", "weight", "colour"))
    if what == "add" and absent:
        a, b = choices.pick(absent)
        weight = choices.number(1, 9)
        after = spec | {"edges": [*spec["edges"], [a, b, weight]]}
        tail = (f" with the weight {weight}", f"，权为{weight}") if spec["weighted"] else ("", "")
        forms = (
            ("[Add|Draw|Insert] an edge from {a} to {b}{tail}.", "[Connect|Join] {a} [and|with] {b}{tail}.")
            if not spec["directed"]
            else ("[Add|Draw|Insert] an edge from {a} to {b}{tail}.",)
        )
        prompt = say(choices, forms, ("[添加|画上]一条从{a}到{b}的边{tail}。",), a=a, b=b, tail=tail)
    elif what == "node":
        name = choices.pick(spec["nodes"])
        after = spec | {
            "nodes": [n for n in spec["nodes"] if n != name],
            "edges": [e for e in spec["edges"] if name not in e[:2]],
        }
        prompt = say(
            choices,
            ("[Remove|Delete] [the node |]{name} [and all its|with its] edges.",),
            ("[删除|去掉]节点{name}及其所有边。",),
            name=name,
        )
    elif what == "weight" and spec["weighted"]:
        i = choices.number(0, len(spec["edges"]) - 1)
        a, b, old = spec["edges"][i]
        new = choices.pick([weight for weight in range(1, 10) if weight != old])
        after = spec | {"edges": [*spec["edges"][:i], [a, b, new], *spec["edges"][i + 1 :]]}
        prompt = say(
            choices,
            ("[Set|Change] the weight of the edge {a}{b} to {new}.",),
            ("把边{a}{b}的权[改为|改成]{new}。",),
            a=a,
            b=b,
            new=new,
        )
    elif what == "colour":
        colour = choices.pick([colour for colour in COLOUR_NAMES if colour[0] != spec["style"]["fill"]])
        after = spec | {"style": spec["style"] | {"fill": colour[0]}}
        prompt = say(
            choices,
            ("[Make|Colour|Paint] [all|the] nodes {colour}.",),
            ("把[所有|]节点[改成|涂成]{colour}。",),
            colour=colour,
        )
    else:
        i = choices.number(0, len(spec["edges"]) - 1)
        a, b, _ = spec["edges"][i]
        after = spec | {"edges": spec["edges"][:i] + spec["edges"][i + 1 :]}
        prompt = say(
            choices,
            ("[Remove|Delete|Erase] the edge [between {a} and {b}|{a}{b}].", "[Disconnect|Separate] {a} and {b}."),
            ("[删除|去掉]{a}和{b}之间的边。",),
            a=a,
            b=b,
        )
    return science.to_edit(choices, spec, after, prompt)


def as_networkx(spec):
    graph = networkx.DiGraph() if spec["directed"] else networkx.Graph()
    graph.add_nodes_from(spec["nodes"])
    graph.add_weighted_edges_from([tuple(edge) for edge in spec["edges"]])
    return graph


def ask_about_a_graph(choices):
    spec = some_graph(choices)
    graph = as_networkx(spec)
    name = choices.pick(spec["nodes"])
    what = choices.pick(("neighbours", "edges", "degree", "tree"))
    if what == "neighbours":
        forms = ("[Which|What] nodes can be reached from {name} by one edge?",), ("从{name}经过一条边能到达哪些节点？",)
        answer = ", ".join(sorted(graph.neighbors(name))) or in_language(("none", "没有"), choices.language)
    elif what == "edges":
        forms, answer = (
            (("How many edges [are there|does the graph have]?",), ("图中有几条边？",)),
            graph.number_of_edges(),
        )
    elif what == "degree":
        forms, answer = (
            (("How many edges [meet at|touch] {name}?", "What is the degree of {name}?"), ("{name}的度是多少？",)),
            graph.degree(name),
        )
    else:
        cycle = networkx.is_directed_acyclic_graph(graph) if spec["directed"] else networkx.is_tree(graph)
        forms = ("Does the graph [have|contain] a cycle?",), ("图中有环吗？",)
        answer = in_language(("no", "没有") if cycle else ("yes", "有"), choices.language)
    return science.to_ask(choices, spec, say(choices, *forms, name=name), answer)


def mark_the_shortest_way(choices):
    spec = some_graph(choices, weighted=choices.flip(0.5))
    spec["mark"] = choices.pick([colour[0] for colour in COLOUR_NAMES if colour[0] != spec["style"]["fill"]])
    graph = as_networkx(spec)
    start, end = choices.few(spec["nodes"], 2)
    ways = list(networkx.all_shortest_paths(graph, start, end, weight="weight" if spec["weighted"] else None))
    if len(ways) > 1 or len(ways[0]) < 3:
        return mark_the_shortest_way(choices)
    way, lines = ways[0], []
    if spec["weighted"]:
        costs = networkx.single_source_dijkstra_path_length(graph, start)
        for name, cost in sorted(costs.items(), key=lambda item: (item[1], item[0])):
            lines.append((f"Distance of {name} from {start}: {cost}.", f"{start}到{name}的距离：{cost}。"))
    else:
        costs = networkx.single_source_shortest_path_length(graph, start)
        for level in range(max(costs.values()) + 1):
            names = listed(sorted(name for name, cost in costs.items() if cost == level), choices.language)
            lines.append((f"After {counted(level, 'step')}: {names}.", f"走{level}步到达：{names}。"))
    said, colour = "–".join(way), NAMED[spec["mark"]]
    lines.append((f"The shortest path is {said}. It is drawn in {colour[0]}.", f"最短路径是{said}，画成{colour[1]}。"))
    prompt = say(
        choices,
        (
            "[Mark|Highlight|Colour] the shortest path from {start} to {end} in {colour}.",
            "[Find|Show] the shortest path between {start} and {end}, in {colour}.",
        ),
        ("用{colour}[标出|画出]从{start}到{end}的最短路径。",),
        start=start,
        end=end,
        colour=colour,
    )
    return science.to_edit(choices, spec, spec | {"marked": way}, prompt, steps(choices, *lines))


# Automata: states in a row, one way on and one way back or in place for each letter


def some_automaton(choices) -> dict:
    count = choices.number(2, 4)
    moves = []
    for state in range(count):
        for letter in "01":
            moves.append([state, letter, choices.number(0, count - 1)])
    for state in range(count - 1):  # every state can be reached
        moves[2 * state + choices.number(0, 1)][2] = state + 1
    return {
        "figure": "automaton",
        "style": some_style(choices) | {"fill": choices.pick(COLOUR_NAMES)[0]},
        "language": choices.language,
        "moves": moves,
        "count": count,
        "accepting": sorted(choices.few(range(count), choices.number(1, max(1, count - 1)))),
        "marked": None,
        "mark": choices.pick(COLOUR_NAMES)[0],
    }


@science.figure("automaton")
def draw_automaton(paper, spec):
    """Along the longer side, with arrows that bend by the distance of their states."""
    count, lying = spec["count"], paper.width >= paper.height
    long, short = (
        (paper.right - paper.left, paper.top - paper.bottom)
        if lying
        else (paper.top - paper.bottom, paper.right - paper.left)
    )
    radius = min(0.18 * long / count, 0.1 * short, 2.4 * paper.unit)
    first, pitch = 3.4 * radius, (long - 5.4 * radius) / max(1, count - 1)
    pitch = min(pitch, 7 * radius)
    first += (long - 5.4 * radius - pitch * (count - 1)) / 2

    def at(state, aside=0.0):
        along = first - radius + pitch * state
        if lying:
            return paper.left + along, paper.height / 2 + aside
        return paper.width / 2 + aside, paper.top - along

    ways = {}
    for state, letter, goal in spec["moves"]:
        ways.setdefault((state, goal), []).append(letter)
    x, y = at(0)
    tail = (x - 2.2 * radius, y) if lying else (x, y + 2.2 * radius)
    head = (x - radius, y) if lying else (x, y + radius)
    paper.arrow(tail, head, width=1.4, size=1.1)
    for (state, goal), letters in ways.items():
        label = ",".join(letters)
        if state == goal:
            draw_loop(paper, at(state), radius, lying, label)
        else:
            far = abs(goal - state)
            apex = (
                0.16 * pitch if far == 1 else 2.4 * radius + 2.2 * paper.unit * (far - 1)
            )  # above loops and their labels
            draw_curve(paper, at(state), at(goal), radius, 2 * apex / (far * pitch), label)
    for state in range(count):
        fill = spec["mark"] if state == spec["marked"] else spec["style"]["fill"]
        node(paper, *at(state), radius, f"q{state}", fill, state in spec["accepting"])


def draw_loop(paper, centre, radius, lying, label):
    """A way from a state to itself: above it, or to its left where states stand below each other."""
    x, y = centre
    start, end = (55, 125) if lying else (145, 215)
    points = [(x + radius * math.cos(math.radians(a)), y + radius * math.sin(math.radians(a))) for a in (start, end)]
    height = 1.5 * radius
    control = [
        (px + height * 1.2 * math.cos(math.radians(a)), py + height * 1.2 * math.sin(math.radians(a)))
        for (px, py), a in zip(points, (start, end), strict=True)
    ]
    curve = []
    for i in range(25):
        t = i / 24
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        shape = [points[0], control[0], control[1], points[1]]
        curve.append(tuple(sum(w * p[k] for w, p in zip(weights, shape, strict=True)) for k in (0, 1)))
    paper.path(curve[:-2], width=1.4)
    paper.arrow(curve[-6], curve[-1], width=1.4, size=0.9)
    middle = math.radians((start + end) / 2)
    reach = 2.05 * radius + 0.9 * paper.unit + (0.5 * paper.measure(label) if not lying else 0)
    paper.text(x + reach * math.cos(middle), y + reach * math.sin(middle), label)


def draw_curve(paper, start, end, radius, bend, label):
    """A bent arrow between two states, to the left of the way, with its label outside."""
    (ax, ay), (bx, by) = start, end
    mx, my = (ax + bx) / 2, (ay + by) / 2
    nx, ny = -(by - ay), bx - ax  # to the left
    control = (mx + bend * nx, my + bend * ny)
    length = math.hypot(nx, ny)
    curve = []
    for i in range(49):
        t = i / 48
        weights = ((1 - t) ** 2, 2 * t * (1 - t), t * t)
        curve.append(tuple(sum(w * p[k] for w, p in zip(weights, (start, control, end), strict=True)) for k in (0, 1)))
    free = [p for p in curve if math.dist(p, start) >= radius and math.dist(p, end) >= radius]
    paper.path(free[:-2], width=1.4)
    edge = free[-1]
    paper.arrow(free[-4], edge, width=1.4, size=1.0)
    reach = bend / 2 * length + 0.85 * paper.unit + (0.5 * paper.measure(label) - 0.3 * paper.unit) * abs(nx) / length
    paper.text(mx + reach * nx / length, my + reach * ny / length, label, halo=False)


@science.reader("automaton")
def read_automaton(spec, picture):
    fills = [spec["mark"] if state == spec["marked"] else spec["style"]["fill"] for state in range(spec["count"])]
    return {"states": count_nodes(spec, picture, fills)}


def move_words(choices, spec) -> str:
    parts = [(f"{letter} leads from q{a} to q{b}", f"q{a}读{letter}到q{b}") for a, letter, b in spec["moves"]]
    return listed(parts, choices.language)


def state_words(choices, states) -> str:
    return listed([f"q{state}" for state in states], choices.language)


def draw_an_automaton(choices):
    spec = some_automaton(choices)
    prompt = request(
        choices,
        (
            "a [finite automaton|state machine] with {count} {colour} states, start q0, accepting {accepting}; {moves}",
            "the [state diagram|transition diagram] of a finite automaton with the states "
            "q0 {to} q{last} in {colour}, accepting {accepting}: {moves}",
        ),
        ("一个有限自动机：{count}个{colour}状态，初态q0，接受状态{accepting}；{moves}",),
        count=spec["count"],
        to="to" if spec["count"] > 2 else "and",
        last=spec["count"] - 1,
        accepting=state_words(choices, spec["accepting"]),
        moves=move_words(choices, spec),
        colour=NAMED[spec["style"]["fill"]],
    )
    return science.to_draw(choices, spec, prompt)


def run(spec, word) -> list[int]:
    moves = {(state, letter): goal for state, letter, goal in spec["moves"]}
    states = [0]
    for letter in word:
        states.append(moves[states[-1], letter])
    return states


def change_an_automaton(choices):
    spec = some_automaton(choices)
    if choices.flip(0.5):
        state = choices.number(0, spec["count"] - 1)
        accepts = state in spec["accepting"]
        after = spec | {"accepting": sorted(set(spec["accepting"]) ^ {state})}
        forms = (
            ("[Mark|Draw] q{state} as an accepting state.", "q{state} should [accept|be accepting]."),
            ("把q{state}[变成|设为]接受状态。",),
        )
        if accepts:
            forms = (
                ("q{state} should no longer be accepting.", "[Draw|Mark] q{state} as a state that does not accept."),
                ("把q{state}改成非接受状态。",),
            )
        return science.to_edit(choices, spec, after, say(choices, *forms, state=state))
    i = choices.number(0, len(spec["moves"]) - 1)
    state, letter, old = spec["moves"][i]
    new = choices.pick([goal for goal in range(spec["count"]) if goal != old])
    after = spec | {"moves": [*spec["moves"][:i], [state, letter, new], *spec["moves"][i + 1 :]]}
    prompt = say(
        choices,
        (
            "[Let|Make] {letter} lead from q{state} to q{new} [instead of|and not] to q{old}.",
            "[Redirect|Change] the transition of q{state} on {letter}: it should go to q{new}.",
        ),
        ("把q{state}读{letter}的转移改到q{new}。",),
        letter=letter,
        state=state,
        new=new,
        old=old,
    )
    return science.to_edit(choices, spec, after, prompt)


def some_word(choices) -> str:
    return "".join(choices.pick("01") for _ in range(choices.number(3, 6)))


def ask_about_an_automaton(choices):
    spec, word = some_automaton(choices), some_word(choices)
    end = run(spec, word)[-1]
    if choices.flip(0.5):
        forms = ("Does the automaton accept {word}?", "Is {word} accepted?"), ("这个自动机接受{word}吗？",)
        answer = in_language(("yes", "接受") if end in spec["accepting"] else ("no", "不接受"), choices.language)
    else:
        forms = ("In which state does the automaton end after reading {word}?",), ("读完{word}后自动机处于哪个状态？",)
        answer = f"q{end}"
    return science.to_ask(choices, spec, say(choices, *forms, word=word), answer)


def trace_a_word(choices):
    spec, word = some_automaton(choices), some_word(choices)
    spec["mark"] = choices.pick([colour[0] for colour in COLOUR_NAMES if colour[0] != spec["style"]["fill"]])
    states, colour = run(spec, word), NAMED[spec["mark"]]
    lines = [
        (f"In q{a} it reads {letter} and goes to q{b}.", f"在q{a}读{letter}，转到q{b}。")
        for a, letter, b in zip(states, word, states[1:], strict=False)
    ]
    accepts = states[-1] in spec["accepting"]
    lines.append(
        (
            f"It ends in q{states[-1]}, so the word is "
            f"{'accepted' if accepts else 'rejected'}. q{states[-1]} is {colour[0]}.",
            f"最后停在q{states[-1]}，该串{'被接受' if accepts else '被拒绝'}。把q{states[-1]}画成{colour[1]}。",
        )
    )
    prompt = say(
        choices,
        (
            "[Colour|Mark] the state in which the automaton ends after {word} in {colour}.",
            "[Read|Run] {word} and [mark|paint] the last state {colour}.",
        ),
        ("读入{word}，把最后的状态[标成|涂成]{colour}。",),
        word=word,
        colour=colour,
    )
    return science.to_edit(choices, spec, spec | {"marked": states[-1]}, prompt, steps(choices, *lines))


# Rows of cells: arrays, stacks, queues, linked lists

ROWS = {
    "array": ("array", "数组"),
    "stack": ("stack", "栈"),
    "queue": ("queue", "队列"),
    "list": ("linked list", "链表"),
}


def some_row(choices, kind=None) -> dict:
    kind = kind or choices.pick(tuple(ROWS))
    return {
        "figure": "cells",
        "style": some_style(choices)
        | {"fill": choices.pick(COLOUR_NAMES)[0], "numbered": kind == "array" and choices.flip(0.7)},
        "language": choices.language,
        "kind": kind,
        "values": choices.few(range(1, 100), choices.number(3, 6)),
        "marked": [],
        "mark": choices.pick(COLOUR_NAMES)[0],
    }


@science.figure("cells")
def draw_cells(paper, spec):
    values, kind, language = spec["values"], spec["kind"], spec["language"]
    w, h = paper.right - paper.left, paper.top - paper.bottom
    room = 8  # cells, so that pictures of fewer have the same scale
    pale = blend(HEX[spec["style"]["fill"]], "#ffffff", 0.5)
    hot = blend(HEX[spec["mark"]], "#ffffff", 0.3)

    def cell(x, y, side, i, wide=1.0):
        paper.box(x, y, wide * side, side, hot if i in spec["marked"] else pale, line=1.3)
        size = paper.fit("88", 0.6 * side, 1.5)
        paper.text(x + wide * side / 2, y + side / 2, str(values[i]), size, colour="#111111")

    if kind == "stack":
        side = min(h / room, w / 5.5, 0.25 * (w - 4 * paper.unit))
        x, y = paper.width / 2 - 1.6 * side, paper.bottom + (h - side * room) / 2
        paper.path(
            [(x, y + side * (room - 0.6)), (x, y), (x + 2 * side, y), (x + 2 * side, y + side * (room - 0.6))], width=2
        )
        for i in range(len(values)):
            cell(x, y + side * i, side, i, 2.0)
        word = in_language(("top", "栈顶"), language)
        tip, level = x + 2.15 * side, y + side * (len(values) - 0.5)
        paper.arrow((tip + 0.9 * side, level), (tip, level), width=1.5, size=1.1)
        paper.text(tip + 0.9 * side + 0.5 * paper.unit, level, word, ha="left")
        return
    spaced = 1.65 if kind == "list" else 1.0
    side = min(w / (7 * spaced + 1 if kind == "list" else 7), 0.3 * h)
    x0 = paper.width / 2 - side * (spaced * 6 - (spaced - 1)) / 2
    y = paper.height / 2 - side / 2
    if kind == "list":
        x0 -= 0.5 * side
    for i in range(len(values)):
        x = x0 + spaced * side * i
        cell(x, y, side, i)
        if spec["style"]["numbered"]:
            paper.text(x + side / 2, y - 0.9 * paper.unit, str(i), 0.9, colour=blend(paper.ink, paper.back, 0.35))
        if kind == "list":
            paper.arrow((x + side, y + side / 2), (x + spaced * side, y + side / 2), width=1.5, size=1.0)
    end = x0 + spaced * side * len(values)
    if kind == "list":
        word = in_language(("null", "空"), language)
        room = min(0.9 * side, paper.width - end - 0.5 * paper.unit)
        paper.text(end + 0.2 * paper.unit, y + side / 2, word, paper.fit(word, room), ha="left")
        word = in_language(("head", "头"), language)
        paper.text(x0 + side / 2, y + side + 0.9 * paper.unit, word, 0.95)
    if kind == "queue":
        for x, word in ((x0 + side / 2, ("front", "队头")), (end - side / 2, ("back", "队尾"))):
            word = in_language(word, language)
            paper.arrow((x, y + side + 1.6 * paper.unit), (x, y + side + 0.2 * paper.unit), width=1.4, size=1.0)
            paper.text(x, y + side + 2.2 * paper.unit, word, paper.fit(word, 0.95 * side))


def row_words(choices, spec) -> str:
    return listed([str(value) for value in spec["values"]], choices.language)


def draw_a_row(choices):
    spec = some_row(choices)
    where_ = {
        "array": (" from left to right", "，从左到右"),
        "stack": (" from bottom to top", "，从底到顶"),
        "queue": (" from front to back", "，从队头到队尾"),
        "list": (" in this order", "，按此顺序"),
    }[spec["kind"]]
    prompt = request(
        choices,
        (
            "{article} {kind} with the values {values}{where}, {colour} cells{tail}",
            "the {kind} {values}{where}, with {colour} cells{tail}",
        ),
        ("一个{kind}，元素为{values}{where}，单元格为{colour}{tail}",),
        article="an" if spec["kind"] == "array" else "a",
        kind=ROWS[spec["kind"]],
        values=row_words(choices, spec),
        where=where_,
        colour=NAMED[spec["style"]["fill"]],
        tail=(", with indices from 0 below", "，下方标出从0开始的下标") if spec["style"]["numbered"] else ("", ""),
    )
    return science.to_draw(choices, spec, prompt)


def change_a_row(choices):
    spec = some_row(choices)
    values, kind = spec["values"], spec["kind"]
    new = choices.pick([value for value in range(1, 100) if value not in values])
    i, j = sorted(choices.few(range(len(values)), 2))
    if kind == "array":
        what = choices.pick(("swap", "set"))
        after = list(values)
        if what == "swap":
            after[i], after[j] = values[j], values[i]
            forms = (
                ("[Swap|Exchange] {a} and {b}.", "[Swap|Exchange] the elements at the indices {i} and {j}."),
                ("[交换|互换]{a}和{b}。", "交换下标{i}和{j}处的元素。"),
            )
        else:
            after[i] = new
            forms = (
                ("[Set|Change] the element at index {i} to {new}.", "[Replace|Overwrite] {a} [by|with] {new}."),
                ("把下标{i}处的元素[改为|改成]{new}。", "把{a}换成{new}。"),
            )
    elif kind == "stack":
        push = choices.flip(0.5) or len(values) < 4
        after = [*values, new] if push else values[:-1]
        forms = (
            (("Push {new}[ onto the stack|].", "[Put|Lay] {new} on top."), ("[将|把]{new}入栈。",))
            if push
            else (
                ("Pop [the stack once|one element].", "[Take|Remove] the top element."),
                ("出栈一次。", "弹出栈顶元素。"),
            )
        )
    elif kind == "queue":
        push = choices.flip(0.5) or len(values) < 4
        after = [*values, new] if push else values[1:]
        forms = (
            (("Enqueue {new}.", "[Add|Put] {new} at the back."), ("[将|把]{new}入队。",))
            if push
            else (("Dequeue[ one element|].", "[Remove|Take] the front element."), ("出队一次。",))
        )
    else:
        insert = choices.flip(0.5) or len(values) < 4
        after = [*values[: i + 1], new, *values[i + 1 :]] if insert else [*values[:i], *values[i + 1 :]]
        forms = (
            (("[Insert|Add] {new} after {a}.",), ("在{a}之后[插入|加入]{new}。",))
            if insert
            else (("[Delete|Remove|Unlink] {a}.",), ("[删除|去掉]{a}。",))
        )
    prompt = say(choices, *forms, a=values[i], b=values[j], i=i, j=j, new=new)
    return science.to_edit(choices, spec, spec | {"values": after}, prompt)


def ask_about_a_row(choices):
    spec = some_row(choices)
    values, kind = spec["values"], spec["kind"]
    i = choices.number(0, len(values) - 1)
    forms, answer = {
        "array": (
            (("[What|Which value] is at index {i}, counted from 0?",), ("下标{i}（从0开始）处的元素是什么？",)),
            values[i],
        ),
        "stack": (
            (("What does pop return?", "Which element is on top?"), ("出栈会得到哪个元素？", "栈顶元素是什么？")),
            values[-1],
        ),
        "queue": ((("Which element leaves the queue first?",), ("哪个元素最先出队？",)), values[0]),
        "list": (
            (("What is the sum of [all|the] values?", "How many nodes does the list have?"), ("链表有几个节点？",)),
            None,
        ),
    }[kind]
    prompt = say(choices, *forms, i=i)
    if answer is None:
        answer = sum(values) if "sum" in prompt else len(values)
    return science.to_ask(choices, spec, prompt, answer)


def work_out_operations(choices):
    """Some operations on a stack or queue, one after another."""
    kind = choices.pick(("stack", "queue"))
    spec = some_row(choices, kind)
    held, lines, told = [], [], []
    fresh = iter(choices.few(range(1, 100), 9))
    for _ in range(choices.number(5, 8)):
        if len(held) < 2 or (len(held) < 6 and choices.flip(0.6)):
            held.append(next(fresh))
            told.append((f"add {held[-1]}", f"加入{held[-1]}"))
        else:
            held.pop(-1 if kind == "stack" else 0)
            told.append(("remove one", "取出一个"))
        state = listed([str(value) for value in held], choices.language)
        lines.append((f"{told[-1][0]}: {state}.", f"{told[-1][1]}：{state}。"))
    ends = ("bottom to top", "从底到顶") if kind == "stack" else ("front to back", "从队头到队尾")
    lines.append(
        (
            f"These are the values from {ends[0]}, in {NAMED[spec['style']['fill']][0]} cells.",
            f"以上元素{ends[1]}排列，单元格为{NAMED[spec['style']['fill']][1]}。",
        )
    )
    prompt = puzzle(
        choices,
        ("start with an empty {kind}: {told}. The {kind} afterwards, with {colour} cells.",),
        ("从空的{kind}开始：{told}。画出最后的{kind}，单元格为{colour}。",),
        kind=ROWS[kind],
        told=("; " if choices.language == "en" else "；").join(in_language(one, choices.language) for one in told),
        colour=NAMED[spec["style"]["fill"]],
    )
    return science.to_draw(choices, spec | {"values": held}, prompt, steps(choices, *lines))


# Sorting: an array after each pass


def bubble(values) -> list[list[int]]:
    """The array before, and after each pass of bubble sort until nothing changes."""
    rows = [list(values)]
    while True:
        row = list(rows[-1])
        for i in range(len(row) - 1):
            if row[i] > row[i + 1]:
                row[i], row[i + 1] = row[i + 1], row[i]
        if row == rows[-1]:
            return rows
        rows.append(row)


def selection(values) -> list[list[int]]:
    rows = [list(values)]
    for i in range(len(values) - 1):
        row = list(rows[-1])
        least = row.index(min(row[i:]), i)
        row[i], row[least] = row[least], row[i]
        rows.append(row)
    while len(rows) > 1 and rows[-1] == rows[-2]:
        rows.pop()
    return rows


def insertion(values) -> list[list[int]]:
    rows = [list(values)]
    for i in range(1, len(values)):
        row = list(rows[-1])
        row[: i + 1] = sorted(row[: i + 1])
        rows.append(row)
    while len(rows) > 1 and rows[-1] == rows[-2]:
        rows.pop()
    return rows


SORTS = (
    (("bubble sort", "冒泡排序"), bubble),
    (("selection sort", "选择排序"), selection),
    (("insertion sort", "插入排序"), insertion),
)
bilingual(tuple((en.capitalize(), zh) for (en, zh), _ in SORTS))


@science.figure("passes")
def draw_passes(paper, spec):
    rows, language = spec["rows"], spec["language"]
    paper.title(spec["title"])
    labels = [
        in_language(("start" if not i else f"pass {i}", "初始" if not i else f"第{i}趟"), language)
        for i in range(len(rows))
    ]
    wide = max(paper.measure(label) for label in labels) + paper.unit
    side = min(
        (paper.right - paper.left - wide) / len(rows[0]),
        (paper.top - paper.bottom) / (1.3 * spec["room"]),
        4.5 * paper.unit,
    )
    x0 = (paper.left + paper.right - wide - side * len(rows[0])) / 2 + wide
    high = 1.3 * side
    top = (paper.top + paper.bottom + high * spec["room"]) / 2
    pale, hot = blend(HEX[spec["style"]["fill"]], "#ffffff", 0.6), blend(HEX[spec["mark"]], "#ffffff", 0.3)
    for k, row in enumerate(rows):
        y = top - high * (k + 1) + 0.15 * side
        paper.text(x0 - paper.unit, y + side / 2, labels[k], ha="right")
        for i, value in enumerate(row):
            moved = k and rows[k - 1][i] != value
            paper.box(x0 + side * i, y, side, side, hot if moved else pale, line=1.2)
            paper.text(
                x0 + side * (i + 0.5), y + side / 2, str(value), paper.fit("88", 0.6 * side, 1.3), colour="#111111"
            )


def some_sort(choices) -> tuple[dict, tuple[str, str]]:
    name, sort = choices.pick(SORTS)
    while True:
        values = choices.few(range(1, 100), choices.number(4, 6))
        if len(sort(values)) >= 3:
            break
    rows = sort(values)
    colours = choices.few(COLOUR_NAMES, 2)
    spec = {
        "figure": "passes",
        "style": some_style(choices) | {"fill": colours[0][0]},
        "mark": colours[1][0],
        "language": choices.language,
        "title": in_language(name, choices.language).capitalize(),
        "rows": rows,
        "room": len(rows),
    }
    return spec, name


def sort_words(choices, spec) -> str:
    return listed([str(value) for value in spec["rows"][0]], choices.language)


def draw_a_sort(choices):
    spec, name = some_sort(choices)
    prompt = request(
        choices,
        (
            "the passes of {name} on {values}, one row each, {fill} cells, moved values in {mark}",
            "a diagram of how {name} sorts {values}: one row [for each|per] pass, {fill} cells, changes in {mark}",
        ),
        ("{name}对{values}排序的每一趟，每趟一行，单元格为{fill}，变动的元素为{mark}",),
        name=name,
        values=sort_words(choices, spec),
        fill=NAMED[spec["style"]["fill"]],
        mark=NAMED[spec["mark"]],
    )
    return science.to_draw(choices, spec, prompt)


def one_more_pass(choices):
    spec, name = some_sort(choices)
    shown = choices.number(1, len(spec["rows"]) - 1)
    prompt = say(
        choices,
        ("[Add|Draw] the next pass[ of {name}|].", "[Carry out|Do] one more pass[ and add it below|]."),
        ("[画出|加上]下一趟[的结果|]。", "再进行一趟{name}，画在下方。"),
        name=name,
    )
    return science.to_edit(
        choices, spec | {"rows": spec["rows"][:shown]}, spec | {"rows": spec["rows"][: shown + 1]}, prompt
    )


def ask_a_pass(choices):
    spec, name = some_sort(choices)
    shown = choices.number(1, len(spec["rows"]) - 1)
    prompt = say(
        choices,
        ("What is the array after the next pass of {name}?",),
        ("再进行一趟{name}后数组是什么？",),
        name=name,
    )
    return science.to_ask(
        choices, spec | {"rows": spec["rows"][:shown]}, prompt, ", ".join(map(str, spec["rows"][shown]))
    )


def work_out_a_sort(choices):
    spec, name = some_sort(choices)
    lines = [(f"Start: {', '.join(map(str, spec['rows'][0]))}.", f"初始：{'、'.join(map(str, spec['rows'][0]))}。")]
    for i, row in enumerate(spec["rows"][1:], 1):
        lines.append((f"After pass {i}: {', '.join(map(str, row))}.", f"第{i}趟后：{'、'.join(map(str, row))}。"))
    fill, mark = NAMED[spec["style"]["fill"]], NAMED[spec["mark"]]
    lines.append(
        (
            f"One row for each, {fill[0]} cells, changed values {mark[0]}.",
            f"每趟一行，单元格{fill[1]}，变动的元素{mark[1]}。",
        )
    )
    prompt = puzzle(
        choices,
        ("sort {values} by {name} and show [all|the] passes, one row each, {fill} cells, moved values in {mark}.",),
        ("用{name}对{values}排序，画出每一趟，每趟一行，单元格为{fill}，变动的元素为{mark}。",),
        values=sort_words(choices, spec),
        name=name,
        fill=fill,
        mark=mark,
    )
    return science.to_draw(choices, spec, prompt, steps(choices, *lines))


KINDS = {
    "draw": {
        "search tree": draw_a_tree,
        "graph": draw_a_graph,
        "automaton": draw_an_automaton,
        "cells": draw_a_row,
        "sorting": draw_a_sort,
    },
    "edit": {
        "search tree": insert_into_a_tree,
        "graph": change_a_graph,
        "automaton": change_an_automaton,
        "cells": change_a_row,
        "sorting": one_more_pass,
    },
    "ask": {
        "search tree": ask_about_a_tree,
        "graph": ask_about_a_graph,
        "automaton": ask_about_an_automaton,
        "cells": ask_about_a_row,
        "sorting": ask_a_pass,
    },
    "reason": {
        "search in a tree": mark_a_way,
        "search tree": work_out_a_tree,
        "shortest path": mark_the_shortest_way,
        "word of an automaton": trace_a_word,
        "cells": work_out_operations,
        "sorting": work_out_a_sort,
    },
}
