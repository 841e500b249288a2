"""The figures of space: solids from an angle, orthographic views, nets."""

import numpy as np

from ..drawing import COLOUR_NAMES, HEX, blend, rgb
from ..figures import Figures, pieces, where
from ..wording import in_language
from . import kernel

space = Figures("space")
NAMED = {colour[0]: colour for colour in COLOUR_NAMES}
LIGHT = np.array([-0.45, 0.75, 0.5])  # the way to the light, from the upper left: right, up, to the viewer
LIGHT /= np.linalg.norm(LIGHT)
DASH = (4, 3)
VIEW_NAMES = {
    "front": ("front view", "主视图"),
    "top": ("top view", "俯视图"),
    "right": ("right view", "右视图"),
    "left": ("left view", "左视图"),
    "back": ("back view", "后视图"),
}
# Where the views stand beside the front view: the way right and up.
ARRANGEMENTS = {
    "first": {"front": (0, 0), "top": (0, -1), "left": (1, 0)},
    "third": {"front": (0, 0), "top": (0, 1), "right": (1, 0)},
}


def shades(spec) -> list[str]:
    """The colour of each face: spec["faces"] has names, else all have spec["colour"]; a cut is in spec["cut"]."""
    count = len(kernel.triangles(spec["parts"], spec["unified"]))
    names = spec.get("faces") or [spec["colour"]] * count
    colours = [HEX[names[i % len(names)]] for i in range(count)]
    if spec.get("cut"):
        for face in kernel.cut_faces(spec["parts"]):
            colours[face] = HEX[spec["cut"]]
    return colours


def raster(spec, view, place, scale, size) -> np.ndarray:
    """The shaded faces, float [H, W, 4], by a depth buffer. place: of the origin, in pixels from the lower left."""
    width, height = size
    depth = np.full((height, width), -np.inf)
    picture = np.zeros((height, width, 4))
    light = kernel.frame(view).T @ LIGHT  # over the viewer's shoulder, whatever the view
    faces = kernel.triangles(spec["parts"], spec["unified"])
    for triangles, colour in zip(faces, shades(spec), strict=True):
        tone = 0.35 * rgb(colour) / 255 + 0.65 * 1.0 if spec["pale"] else rgb(colour) / 255
        for triangle in triangles:
            normal = np.cross(triangle[1] - triangle[0], triangle[2] - triangle[0])
            length = np.linalg.norm(normal)
            if length < 1e-12:
                continue
            bright = 0.62 + 0.38 * max(0.0, float(normal @ light) / length)
            points = kernel.project(triangle, view)
            fill(
                picture, depth, points[:, :2] * scale + place, points[:, 2], np.append(np.minimum(tone * bright, 1), 1)
            )
    return picture[::-1]


def fill(picture, depth, points, depths, colour):
    """One triangle, where it is nearer than what is there. Rows go upwards."""
    height, width = depth.shape
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, (width, height))
    (ax, ay), (bx, by), (cx, cy) = points
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    if x0 >= x1 or y0 >= y1 or area <= 1e-9:  # behind, or seen from the edge
        return
    y, x = np.mgrid[y0:y1, x0:x1] + 0.5
    u = ((cx - bx) * (y - by) - (cy - by) * (x - bx)) / area
    v = ((ax - cx) * (y - cy) - (ay - cy) * (x - cx)) / area
    z = u * depths[0] + v * depths[1] + (1 - u - v) * depths[2]
    inside = (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9) & (z > depth[y0:y1, x0:x1])
    depth[y0:y1, x0:x1][inside] = z[inside]
    picture[y0:y1, x0:x1][inside] = colour


def put_lines(paper, found, place, scale, hidden: bool, width: float = 1.5):
    for curve in found["hidden"] if hidden else ():
        paper.path(curve * scale + place, width=0.65 * width, dash=DASH, colour=blend(paper.ink, paper.back, 0.15))
    for curve in found["visible"]:
        paper.path(curve * scale + place, width=width)


@space.figure("solid")
def draw_solid(paper, spec):
    """From an angle, about the middle of the sphere around the whole solid, so that turning does not move it.

    spec["whole"]: the parts whose size and middle count, so that a cut solid stays in its place.
    """
    view = kernel.slanted(spec["azimuth"], spec["elevation"])
    if spec.get("title"):
        paper.title(spec["title"])
    low, high = kernel.bounds(spec.get("whole") or spec["parts"])
    radius = 0.5 * np.linalg.norm(high - low) + (0.25 if not spec.get("sizes") else 0.75)
    plane = paper.plane(-radius, radius, -radius, radius)
    middle = kernel.project((low + high) / 2, view)[:2]
    place = np.array(plane.at(*-middle))
    if spec["shaded"]:
        picture = raster(spec, view, place, plane.scale, (paper.width, paper.height))
        paper.figure.figimage(picture, origin="upper", zorder=paper.above())
    found = kernel.lines(spec["parts"], view, spec["unified"])
    put_lines(paper, found, place, plane.scale, spec["hidden"])
    if spec.get("sizes"):
        write_sizes(paper, plane, place, view, *kernel.bounds(spec["parts"]))


def write_sizes(paper, plane, place, view, low, high):
    """Width, depth and height beside the nearest edges of the box around a solid."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    toward = kernel.frame(view)[2]
    side, other = (x1, x0) if toward[0] > 0 else (x0, x1)
    edges = (((x0, y0, z0), (x1, y0, z0)), ((side, y0, z0), (side, y1, z0)), ((other, y0, z0), (other, y0, z1)))
    centre = kernel.project((low + high) / 2, view)[:2] * plane.scale + place
    for (start, end), size in zip(edges, high - low, strict=True):
        ends = kernel.project(np.array([start, end]), view)[:, :2] * plane.scale + place
        way = (ends[1] - ends[0]) / max(1e-6, np.linalg.norm(ends[1] - ends[0]))
        across = np.array([-way[1], way[0]])
        across = across if across @ (ends.mean(axis=0) - centre) > 0 else -across
        x, y = ends.mean(axis=0) + 1.2 * paper.unit * across
        paper.text(x, y, f"{round(float(size), 2):g}", 1.1)


@space.figure("views")
def draw_views(paper, spec):
    """Three views with their names; all of one scale, and in line with each other."""
    places = ARRANGEMENTS[spec["arrangement"]]
    if spec.get("title"):
        paper.title(spec["title"])
    low, high = kernel.bounds(spec["parts"])
    width, depth, height = high - low
    gap = 0.28 * max(width, depth, height)
    below = spec["arrangement"] == "first"
    label = 1.9 * paper.unit
    w, h = paper.right - paper.left, paper.top - paper.bottom - 2 * label
    scale = min(w / (width + gap + depth), h / (height + gap + depth))
    left = (paper.left + paper.right - scale * (width + gap + depth)) / 2
    ground = (paper.bottom + paper.top - 2 * label - scale * (height + gap + depth)) / 2
    front_y = ground + label + (scale * (depth + gap) + label if below else 0)
    for name, (right, up) in places.items():
        view = kernel.VIEWS[name]
        points = kernel.project(np.array([low, high]), view)[:, :2]
        corner, far = points.min(axis=0), points.max(axis=0)
        x = left + right * scale * (width + gap)
        y = front_y if not up else ground + label if below else front_y + scale * (height + gap) + label
        place = np.array([x, y]) - scale * corner
        put_lines(paper, kernel.lines(spec["parts"], view), place, scale, spec["hidden"], 1.7)
        if spec["named"]:
            word = in_language(VIEW_NAMES[name], spec["language"])
            room = scale * (far[0] - corner[0] + gap * 0.8)
            paper.text(x + scale * (far[0] - corner[0]) / 2, y - 1.0 * paper.unit, word, paper.fit(word, room))


@space.figure("view")
def draw_view(paper, spec):
    """One orthographic view, of the scale that all of the solid's views have."""
    if spec["named"]:
        paper.title(in_language(VIEW_NAMES[spec["view"]], spec["language"]), bold=False)
    low, high = kernel.bounds(spec["parts"])
    half = 0.62 * (high - low).max()
    plane = paper.plane(-half, half, -half, half)
    view = kernel.VIEWS[spec["view"]]
    place = np.array(plane.at(*-kernel.project((low + high) / 2, view)[:2]))
    put_lines(paper, kernel.lines(spec["parts"], view), place, plane.scale, spec["hidden"], 1.9)


@space.figure("net")
def draw_net(paper, spec):
    """spec["quarters"]: by how many quarter turns the net is turned. spec["labels"]: of the faces, or none."""
    faces = kernel.unfolded(spec["parts"])
    for _ in range(spec["quarters"]):
        faces = [np.stack([-face[:, 1], face[:, 0]], axis=-1) for face in faces]
    every = np.concatenate(faces)
    (x0, y0), (x1, y1) = every.min(axis=0), every.max(axis=0)
    edge = 0.04 * max(x1 - x0, y1 - y0)
    plane = paper.plane(x0 - edge, x1 + edge, y0 - edge, y1 + edge)
    names = spec.get("faces") or [spec["colour"]] * len(faces)
    for i, face in enumerate(faces):
        tone = blend(HEX[names[i]], "#ffffff", 0.65 if spec["pale"] else 0.0)
        paper.path(plane.all(face), fill=tone, closed=True, width=1.5)
    for i, face in enumerate(faces):
        if spec["labels"]:
            paper.text(*plane.at(*face.mean(axis=0)), spec["labels"][i], 1.6, bold=True, colour="#111111")


@space.reader("net")
def read_net(spec, picture):
    """Whether there are as many patches of each colour as faces, of areas in proportion, within 6% of the largest."""
    names = spec.get("faces") or [spec["colour"]] * len(kernel.unfolded(spec["parts"]))
    areas, wanted = [], []
    for name in dict.fromkeys(names):
        tone = blend(HEX[name], "#ffffff", 0.65 if spec["pale"] else 0.0)
        found = pieces(where(picture, tone, 20), picture.shape[0] * picture.shape[1] // 800)
        if len(found) != names.count(name):
            return {"faces": False}
        own = [
            polygon_area(face)
            for face, other in zip(kernel.unfolded(spec["parts"]), names, strict=True)
            if other == name
        ]
        areas += sorted(len(piece) for piece in found)
        wanted += sorted(own)
    areas, wanted = np.array(areas, float), np.array(wanted)
    scale = (areas * wanted).sum() / (wanted * wanted).sum()
    return {"faces": True, "areas": bool((np.abs(areas - scale * wanted) <= 0.12 * areas.max()).all())}


def polygon_area(points) -> float:
    x, y = points.T
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2)
