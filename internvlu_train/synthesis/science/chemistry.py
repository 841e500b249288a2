"""Chemistry: structures from SMILES, laid out by RDKit and drawn in the paper's style."""

import math
from collections import Counter

from internvlu_core.errors import need

from ..drawing import COLOUR_NAMES, HEX, blend, some_style
from ..figures import bilingual, held_out
from ..wording import counted, in_language, listed, puzzle, request, say, steps
from .base import science

Chem = need("rdkit.Chem", "synthesis")
AllChem = need("rdkit.Chem.AllChem", "synthesis")
rdMolDescriptors = need("rdkit.Chem.rdMolDescriptors", "synthesis")
rdDepictor = need("rdkit.Chem.rdDepictor", "synthesis")

MOLECULES = (
    (("ethanol", "乙醇"), "CCO"),
    (("acetic acid", "乙酸"), "CC(=O)O"),
    (("acetone", "丙酮"), "CC(C)=O"),
    (("benzene", "苯"), "c1ccccc1"),
    (("toluene", "甲苯"), "Cc1ccccc1"),
    (("phenol", "苯酚"), "Oc1ccccc1"),
    (("aniline", "苯胺"), "Nc1ccccc1"),
    (("aspirin", "阿司匹林"), "CC(=O)Oc1ccccc1C(=O)O"),
    (("paracetamol", "对乙酰氨基酚"), "CC(=O)Nc1ccc(O)cc1"),
    (("ibuprofen", "布洛芬"), "CC(C)Cc1ccc(cc1)C(C)C(=O)O"),
    (("caffeine", "咖啡因"), "Cn1cnc2c1c(=O)n(C)c(=O)n2C"),
    (("nicotine", "尼古丁"), "CN1CCCC1c1cccnc1"),
    (("glycine", "甘氨酸"), "NCC(=O)O"),
    (("alanine", "丙氨酸"), "CC(N)C(=O)O"),
    (("serine", "丝氨酸"), "OCC(N)C(=O)O"),
    (("cysteine", "半胱氨酸"), "SCC(N)C(=O)O"),
    (("lactic acid", "乳酸"), "CC(O)C(=O)O"),
    (("citric acid", "柠檬酸"), "OC(=O)CC(O)(CC(=O)O)C(=O)O"),
    (("glycerol", "甘油"), "OCC(O)CO"),
    (("urea", "尿素"), "NC(N)=O"),
    (("vanillin", "香草醛"), "COc1cc(C=O)ccc1O"),
    (("naphthalene", "萘"), "c1ccc2ccccc2c1"),
    (("styrene", "苯乙烯"), "C=Cc1ccccc1"),
    (("cyclohexane", "环己烷"), "C1CCCCC1"),
    (("pyridine", "吡啶"), "c1ccncc1"),
    (("furan", "呋喃"), "c1ccoc1"),
    (("thiophene", "噻吩"), "c1ccsc1"),
    (("indole", "吲哚"), "c1ccc2[nH]ccc2c1"),
    (("dopamine", "多巴胺"), "NCCc1ccc(O)c(O)c1"),
    (("adrenaline", "肾上腺素"), "CNCC(O)c1ccc(O)c(O)c1"),
    (("serotonin", "血清素"), "NCCc1c[nH]c2ccc(O)cc12"),
    (("adenine", "腺嘌呤"), "Nc1ncnc2[nH]cnc12"),
    (("cytosine", "胞嘧啶"), "Nc1cc[nH]c(=O)n1"),
    (("uracil", "尿嘧啶"), "O=c1cc[nH]c(=O)[nH]1"),
    (("salicylic acid", "水杨酸"), "OC(=O)c1ccccc1O"),
    (("benzoic acid", "苯甲酸"), "OC(=O)c1ccccc1"),
    (("diethyl ether", "乙醚"), "CCOCC"),
    (("ethyl acetate", "乙酸乙酯"), "CCOC(C)=O"),
    (("butane", "丁烷"), "CCCC"),
    (("isobutane", "异丁烷"), "CC(C)C"),
    (("hexane", "己烷"), "CCCCCC"),
    (("propene", "丙烯"), "CC=C"),
    (("butadiene", "丁二烯"), "C=CC=C"),
    (("oxalic acid", "草酸"), "OC(=O)C(=O)O"),
    (("acetonitrile", "乙腈"), "CC#N"),
    (("dimethyl sulfoxide", "二甲基亚砜"), "CS(C)=O"),
    (("chloroform", "氯仿"), "ClC(Cl)Cl"),
    (("menthol", "薄荷醇"), "CC(C)C1CCC(C)CC1O"),
    (("limonene", "柠檬烯"), "CC1=CCC(CC1)C(C)=C"),
    (("glucose", "葡萄糖"), "OCC1OC(O)C(O)C(O)C1O"),
)
# A group that stands in place of a hydrogen of a ring or chain.
GROUPS = (
    (("methyl", "甲基"), "C"),
    (("hydroxyl", "羟基"), "O"),
    (("amino", "氨基"), "N"),
    (("chloro", "氯"), "Cl"),
    (("bromo", "溴"), "Br"),
    (("fluoro", "氟"), "F"),
    (("carboxyl", "羧基"), "C(=O)O"),
    (("nitro", "硝基"), "[N+](=O)[O-]"),
    (("cyano", "氰基"), "C#N"),
    (("ethyl", "乙基"), "CC"),
)
SCAFFOLDS = (
    (("benzene ring", "苯环"), "c1ccccc1"),
    (("pyridine ring", "吡啶环"), "c1ccncc1"),
    (("cyclohexane ring", "环己烷环"), "C1CCCCC1"),
    (("naphthalene skeleton", "萘环"), "c1ccc2ccccc2c1"),
)
ELEMENTS = {
    "O": ("oxygen", "氧"),
    "N": ("nitrogen", "氮"),
    "C": ("carbon", "碳"),
    "S": ("sulfur", "硫"),
    "Cl": ("chlorine", "氯"),
}
ATOM_COLOURS = {"O": "#d62728", "N": "#1f5fd6", "S": "#b8860b", "F": "#2ca02c", "Cl": "#2ca02c", "Br": "#8c3b1a"}
# An atom belongs to one group: O and N of acids, esters and amides are no hydroxyl or amino groups, and urea, in which
# two N share a carbonyl, is no amide.
PARTS = (
    (("carboxylic acid", "羧酸"), "[CX3](=O)[OX2H1]"),
    (("ester", "酯"), "[CX3](=O)[OX2][#6]"),
    (("amide", "酰胺"), "[CX3;!$(C(N)N)](=O)[NX3]"),
    (("hydroxyl group", "羟基"), "[OX2H;!$(OC=O)]"),
    (("amino group", "氨基"), "[NX3;H2;!$(NC=O)]"),
)
AROMATIC = ("aromatic ring", "芳香环")
TIMES = {1: "once", 2: "twice"}
bilingual((MOLECULES, SCAFFOLDS))


def groups_of(smiles: str) -> list:
    """The PARTS and the aromatic rings that a molecule has: (names, the atoms of each)."""
    molecule = Chem.MolFromSmiles(smiles)
    found = [(names, molecule.GetSubstructMatches(Chem.MolFromSmarts(smarts))) for names, smarts in PARTS]
    rings = [
        ring
        for ring in molecule.GetRingInfo().AtomRings()
        if all(molecule.GetAtomWithIdx(atom).GetIsAromatic() for atom in ring)
    ]
    return [(names, atoms) for names, atoms in (*found, (AROMATIC, rings)) if atoms]


def some_molecule(choices, molecule=None) -> dict:
    names, smiles = molecule or choices.pick(held_out(choices, MOLECULES))
    return {
        "figure": "molecule",
        "style": some_style(choices)
        | {"coloured": choices.flip(0.7), "turn": choices.pick((0, 0, 30, 90)), "named": choices.flip(0.4)},
        "smiles": smiles,
        "name": in_language(names, choices.language),
        "marked": [],
        "mark": choices.pick(COLOUR_NAMES)[0],
        "numbers": False,
        "hydrogens": False,
    }


def laid_out(spec):
    """RDKit's molecule with coordinates in two dimensions. spec["shape"]: SMILES whose layout is kept."""
    molecule = Chem.MolFromSmiles(spec["smiles"])
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    if spec.get("shape"):
        shape = Chem.MolFromSmiles(spec["shape"])
        Chem.Kekulize(shape, clearAromaticFlags=True)
        rdDepictor.Compute2DCoords(shape, canonOrient=True)
        found = molecule.GetSubstructMatch(shape) or tuple(range(shape.GetNumAtoms()))
        places = shape.GetConformer()
        fixed = {atom: places.GetAtomPosition(i) for i, atom in enumerate(found)}
        fixed = {atom: Chem.rdGeometry.Point2D(place.x, place.y) for atom, place in fixed.items()}
        rdDepictor.Compute2DCoords(molecule, coordMap=fixed, canonOrient=False)
    else:
        rdDepictor.Compute2DCoords(molecule, canonOrient=True)
    return molecule


def atom_label(atom, hydrogens: bool) -> str:
    """What is written for an atom: nothing for carbon within a chain."""
    symbol, count, charge = atom.GetSymbol(), atom.GetTotalNumHs(), atom.GetFormalCharge()
    if symbol == "C" and not hydrogens and atom.GetDegree():
        return ""
    tail = "H" + (f"$_{{{count}}}$" if count > 1 else "") if count else ""
    return symbol + tail + {1: "$^+$", -1: "$^-$"}.get(charge, "")


@science.figure("molecule")
def draw_molecule(paper, spec):
    if spec["style"]["named"]:
        paper.title(spec["name"])
    molecule = laid_out(spec)
    turn = math.radians(spec["style"]["turn"])
    conformer = molecule.GetConformer()
    places = []
    for i in range(molecule.GetNumAtoms()):
        at = conformer.GetAtomPosition(i)
        places.append((at.x * math.cos(turn) - at.y * math.sin(turn), at.x * math.sin(turn) + at.y * math.cos(turn)))
    xs, ys = [x for x, _ in places], [y for _, y in places]
    plane = paper.plane(min(xs) - 1, max(xs) + 1, min(ys) - 0.9, max(ys) + 0.9)
    if plane.scale > 0.16 * min(paper.width, paper.height):  # small molecules are not blown up
        shrink = plane.scale / (0.16 * min(paper.width, paper.height)) - 1
        w, h = max(xs) - min(xs) + 2, max(ys) - min(ys) + 1.8
        plane = paper.plane(
            min(xs) - 1 - shrink * w / 2,
            max(xs) + 1 + shrink * w / 2,
            min(ys) - 0.9 - shrink * h / 2,
            max(ys) + 0.9 + shrink * h / 2,
        )
    points = plane.all(places)
    size = 0.42 * plane.scale / paper.unit
    for i in spec["marked"]:
        paper.disc(*points[i], 0.42 * plane.scale, blend(HEX[spec["mark"]], paper.back, 0.5), "none")
    labels = [atom_label(atom, spec["hydrogens"]) for atom in molecule.GetAtoms()]
    for bond in molecule.GetBonds():
        draw_bond(paper, plane, molecule, bond, points, labels)
    for i, (point, label) in enumerate(zip(points, labels, strict=True)):
        atom = molecule.GetAtomWithIdx(i)
        colour = ATOM_COLOURS.get(atom.GetSymbol(), paper.ink) if spec["style"]["coloured"] else paper.ink
        if paper.back < "#8" and colour != paper.ink:
            colour = blend(colour, "#ffffff", 0.35)
        if label:
            draw_atom(paper, atom, point, label, size, colour, molecule, points)
        if spec["numbers"]:
            x, y = away_from_bonds(molecule, i, points, 0.42 * plane.scale if not label else 0.62 * plane.scale)
            paper.text(x, y, str(i + 1), 0.6 * size, colour=blend(paper.ink, paper.back, 0.35))


def away_from_bonds(molecule, i, points, distance):
    """A place beside an atom in the direction with the most room."""
    x, y = points[i]
    ways = [
        math.atan2(points[n.GetIdx()][1] - y, points[n.GetIdx()][0] - x)
        for n in molecule.GetAtomWithIdx(i).GetNeighbors()
    ]
    best = max(
        (2 * math.pi * k / 16 for k in range(16)),
        key=lambda angle: round(
            min([abs((angle - way + math.pi) % (2 * math.pi) - math.pi) for way in ways] or [0]), 6
        ),
    )
    return x + distance * math.cos(best), y + distance * math.sin(best)


def draw_atom(paper, atom, point, label, size, colour, molecule, points):
    """The symbol on its place, with its hydrogens on the side that is free."""
    symbol, tail = atom.GetSymbol(), label[len(atom.GetSymbol()) :]
    x, y = point
    paper.text(x, y, symbol, size, colour=colour, va="center")
    if not tail:
        return
    half = 0.5 * paper.measure(symbol, size) + 0.06 * size * paper.unit
    aside = sum(points[n.GetIdx()][0] - x for n in atom.GetNeighbors())
    if aside > 1 and tail.startswith("H"):  # bonds go to the right
        head = tail.replace("$^+$", "").replace("$^-$", "")
        paper.text(x - half, y, head, size, colour=colour, ha="right")
        tail = tail[len(head) :]
    if tail:
        paper.text(x + half, y, tail, size, colour=colour, ha="left")


def draw_bond(paper, plane, molecule, bond, points, labels):
    i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    (ax, ay), (bx, by) = points[i], points[j]
    length = math.hypot(bx - ax, by - ay)
    ux, uy = (bx - ax) / length, (by - ay) / length
    cut = 0.32 * plane.scale
    if labels[i]:
        ax, ay = ax + cut * ux, ay + cut * uy
    if labels[j]:
        bx, by = bx - cut * ux, by - cut * uy
    order = int(bond.GetBondTypeAsDouble())
    gap = 0.13 * plane.scale
    if order == 2:
        side, inside = side_of(molecule, bond, points), 0.12 * plane.scale
        if side:
            paper.path([(ax, ay), (bx, by)], width=1.3)
            sx, sy = -uy * 1.3 * gap * side, ux * 1.3 * gap * side
            a, b = (0 if labels[i] else inside), (0 if labels[j] else inside)
            paper.path([(ax + sx + a * ux, ay + sy + a * uy), (bx + sx - b * ux, by + sy - b * uy)], width=1.3)
            return
        shifts = (-0.6, 0.6)
    else:
        shifts = (0,) if order == 1 else (-1.1, 0, 1.1)
    for shift in shifts:
        sx, sy = -uy * gap * shift, ux * gap * shift
        paper.path([(ax + sx, ay + sy), (bx + sx, by + sy)], width=1.3)


def side_of(molecule, bond, points) -> int:
    """On which side of a bond its ring's middle is: 1 left, -1 right, 0 for a bond outside of rings."""
    for ring in molecule.GetRingInfo().BondRings():
        if bond.GetIdx() in ring:
            atoms = {
                end
                for k in ring
                for end in (molecule.GetBondWithIdx(k).GetBeginAtomIdx(), molecule.GetBondWithIdx(k).GetEndAtomIdx())
            }
            x = sum(points[k][0] for k in atoms) / len(atoms)
            y = sum(points[k][1] for k in atoms) / len(atoms)
            (ax, ay), (bx, by) = points[bond.GetBeginAtomIdx()], points[bond.GetEndAtomIdx()]
            return 1 if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0 else -1
    return 0


def formula(smiles: str) -> str:
    return rdMolDescriptors.CalcMolFormula(Chem.MolFromSmiles(smiles))


def named(spec) -> str:
    return f"“{spec['name']}”"


def draw_a_molecule(choices):
    spec = some_molecule(choices)
    prompt = request(
        choices,
        (
            "the [skeletal|structural|chemical] formula of {name}{colours}{title}",
            "the [structure|molecule] of {name} ({formula}) [as a skeletal formula|in skeletal form]{colours}{title}",
            "the molecule with the SMILES {smiles}[ as a skeletal formula|]{colours}",
        ),
        (
            "{name}的[结构式|骨架式|键线式]{colours}{title}",
            "{name}（{formula}）的[键线式|分子结构]{colours}{title}",
        ),
        name=spec["name"],
        formula=formula(spec["smiles"]),
        smiles=spec["smiles"],
        colours=(", atoms coloured by element", "，原子按元素着色") if spec["style"]["coloured"] else ("", ""),
        title=(", with its name above", "，上方写名称") if spec["style"]["named"] else ("", ""),
    )
    return science.to_draw(choices, spec, prompt)


def substituted(choices):
    """A ring, and the same with a group or with another group."""
    names, scaffold = choices.pick(SCAFFOLDS)
    (one, first), (other, second) = choices.few(GROUPS, 2)
    ring = scaffold[1:] if scaffold[0] in "cC" else scaffold
    head = scaffold[0]

    def with_group(group):
        return f"{head}{ring[:1]}({group}){ring[1:]}" if ring[:1].isdigit() else scaffold

    plain, a, b = scaffold, with_group(first), with_group(second)
    return names, plain, (one, a), (other, b)


def change_a_group(choices):
    names, plain, (one, a), (other, b) = substituted(choices)
    spec = some_molecule(choices, (names, plain))
    spec["style"]["named"] = False
    spec["shape"] = plain
    what = choices.pick(("add", "remove", "replace"))
    before, after, forms = {
        "add": (
            plain,
            a,
            (
                (
                    "[Add|Attach] a {one} group to the {ring}.",
                    "Put a {one} group on the {ring}.",
                    "Replace one hydrogen of the {ring} [by|with] a {one} group.",
                ),
                ("在{ring}上[加|引入|接上]一个{one}。",),
            ),
        ),
        "remove": (
            a,
            plain,
            (
                ("[Remove|Delete|Take away] the {one} group.", "Replace the {one} group [by|with] hydrogen."),
                ("[去掉|移除|删除]{one}。", "把{one}换成氢。"),
            ),
        ),
        "replace": (
            a,
            b,
            (
                (
                    "Replace the {one} group [by|with] a {other} group.",
                    "[Turn|Change] the {one} group into a {other} group.",
                ),
                ("把{one}[换成|改为]{other}。",),
            ),
        ),
    }[what]
    prompt = say(choices, *forms, one=one, other=other, ring=names)
    return science.to_edit(choices, spec | {"smiles": before}, spec | {"smiles": after}, prompt)


def mark_atoms(choices):
    spec = some_molecule(choices)
    molecule = Chem.MolFromSmiles(spec["smiles"])
    present = [symbol for symbol in ELEMENTS if any(atom.GetSymbol() == symbol for atom in molecule.GetAtoms())]
    symbol = choices.pick(present)
    found = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetSymbol() == symbol]
    colours = {colour[0]: colour for colour in COLOUR_NAMES}
    prompt = say(
        choices,
        (
            "[Mark|Highlight] [all|the] {element} atoms [in|with] {colour}.",
            "[Mark|Highlight] every {element} atom [in|with] {colour}.",
            "[Put|Draw] a {colour} disc behind each {element} atom.",
        ),
        ("用{colour}[标出|突出显示]所有{element}原子。", "在每个{element}原子后画一个{colour}圆。"),
        element=ELEMENTS[symbol],
        colour=colours[spec["mark"]],
    )
    return science.to_edit(choices, spec, spec | {"marked": found}, prompt)


def restyle_a_molecule(choices):
    spec = some_molecule(choices)
    what = choices.pick(("numbers", "hydrogens", "coloured", "named"))
    forms = {
        "numbers": (
            ("[Number|Give numbers to] the atoms.", "[Write|Put] a number beside each atom."),
            ("给[每个|]原子编号。",),
        ),
        "hydrogens": (
            (
                "[Show|Write] all carbon and hydrogen atoms.",
                "[Write out|Label] [every|each] carbon with its hydrogens.",
            ),
            ("[写出|显示]所有的碳原子和氢原子。",),
        ),
        "coloured": (
            ("[Colour|Color] the atoms by element.", "Use a colour for each element."),
            ("按元素给原子[着色|上色]。",),
        ),
        "named": (
            (
                "[Write|Put|Add] the name above[ the structure|].",
                "[Add|Give the picture] a title with the name of the molecule.",
            ),
            ("在上方[写上|加上]名称。",),
        ),
    }[what]
    if what in ("coloured", "named"):
        before = spec | {"style": spec["style"] | {what: False}}
        after = spec | {"style": spec["style"] | {what: True}}
        if what == "coloured" and not set("ONSFlBr") & set(spec["smiles"].replace("Cl", "F").upper()):
            return restyle_a_molecule(choices)
    else:
        before, after = spec, spec | {what: True}
    if what == "numbers" and Chem.MolFromSmiles(spec["smiles"]).GetNumAtoms() > 14:
        return restyle_a_molecule(choices)
    return science.to_edit(choices, before, after, say(choices, *forms))


def ask_a_formula(choices):
    spec = some_molecule(choices)
    spec["style"]["named"] = False
    prompt = say(
        choices,
        ("What is the molecular formula of this [molecule|compound|structure]?", "[Give|Write] the molecular formula."),
        ("[这个分子|图中化合物]的分子式是什么？", "写出[该化合物的|]分子式。"),
    )
    return science.to_ask(choices, spec, prompt, formula(spec["smiles"]))


def ask_a_count(choices):
    spec = some_molecule(choices)
    molecule = Chem.MolFromSmiles(spec["smiles"])
    counts = Counter(atom.GetSymbol() for atom in molecule.GetAtoms())
    what = choices.pick(("atom", "atom", "ring", "hydrogen", "double"))
    if what == "atom":
        symbol = choices.pick(sorted(set(counts) & set(ELEMENTS)))
        answer, word = counts[symbol], ELEMENTS[symbol]
        word = (f"{word[0]} atoms", f"{word[1]}原子")
    elif what == "ring":
        answer, word = molecule.GetRingInfo().NumRings(), ("rings", "环")
    elif what == "hydrogen":
        answer, word = sum(atom.GetTotalNumHs() for atom in molecule.GetAtoms()), ("hydrogen atoms", "氢原子")
    else:
        Chem.Kekulize(molecule, clearAromaticFlags=True)
        answer, word = sum(bond.GetBondTypeAsDouble() == 2 for bond in molecule.GetBonds()), ("double bonds", "双键")
    prompt = say(
        choices,
        (
            "How many {word} [does this molecule have|are there in this structure]?",
            "[Count|Give the number of] the {word}.",
        ),
        ("[这个分子|该结构]中有几个{word}？", "[数一数|请数出]{word}的个数。"),
        word=word,
    )
    return science.to_ask(choices, spec, prompt, answer)


def ask_a_name(choices):
    spec = some_molecule(choices)
    spec["style"]["named"] = False
    prompt = say(
        choices,
        ("What is this molecule called?", "Which compound is this?", "Name this compound."),
        ("[这是什么化合物|图中的分子叫什么]？",),
    )
    return science.to_ask(choices, spec, prompt, spec["name"])


def work_out_a_formula(choices):
    """The groups of a molecule, then the molecule with the one that is asked for marked."""
    spec = some_molecule(choices)
    present = groups_of(spec["smiles"])
    if not present:
        return work_out_a_formula(choices)
    names, found = choices.pick(present)
    marked = sorted({atom for match in found for atom in match})
    colour = {colour[0]: colour for colour in COLOUR_NAMES}[spec["mark"]]
    prompt = puzzle(
        choices,
        (
            "the structure of {name} with every {part} marked in {colour}.",
            "which atoms of {name} belong to a {part}? Its structure with these marked in {colour}.",
        ),
        ("{name}的结构式，并用{colour}标出其中的{part}。",),
        name=spec["name"],
        part=names,
        colour=colour,
    )
    every = listed([part for part, _ in present], choices.language)
    words = steps(
        choices,
        (
            f"The molecule {spec['name']} has the formula {formula(spec['smiles'])}; its SMILES is {spec['smiles']}.",
            f"{spec['name']}的分子式为{formula(spec['smiles'])}，SMILES为{spec['smiles']}。",
        ),
        (f"Its groups: {every}.", f"它含有：{every}。"),
        (
            f"The {names[0]} occurs {TIMES.get(len(found)) or counted(len(found), 'time')} "
            f"and takes {counted(len(marked), 'atom')}.",
            f"其中{names[1]}有{len(found)}处，共{len(marked)}个原子。",
        ),
        (
            f"The picture: the skeletal formula with {colour[0]} discs behind these atoms.",
            f"图中：键线式，在这些原子后画{colour[1]}圆。",
        ),
    )
    return science.to_draw(choices, spec | {"marked": marked}, prompt, words)


KINDS = {
    "draw": {"molecule": draw_a_molecule},
    "edit": {
        "group of a molecule": change_a_group,
        "atoms marked": mark_atoms,
        "style of a molecule": restyle_a_molecule,
    },
    "ask": {"formula": ask_a_formula, "count in a molecule": ask_a_count, "name of a molecule": ask_a_name},
    "reason": {"groups of a molecule": work_out_a_formula},
}
