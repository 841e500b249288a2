"""Solids, their lines in a view, cuts and unfoldings, by Open CASCADE.

A solid is a list of parts that JSON can hold: [sign, name, …], "+" joined and "-" cut away, lengths in units:

    box x y z width depth height      cylinder x y z axis radius length      cone x y z radius height
    prism sides radius height         pyramid sides radius height            (about the z axis, from z = 0)
    half x y z nx ny nz               (the side of a plane to which its normal points; only to be cut away)

x to the right, y to the back, z up.
"""

import functools
import json
import math
from typing import NamedTuple

import numpy as np

from internvlu_core.errors import need


def kernel(module: str):
    return need(f"OCP.{module}", "synthesis")


gp, TopoDS, TopAbs, BRep = kernel("gp"), kernel("TopoDS"), kernel("TopAbs"), kernel("BRep")
Primitives, Booleans, Builder = kernel("BRepPrimAPI"), kernel("BRepAlgoAPI"), kernel("BRepBuilderAPI")
HLR, HLRAlgo, BRepLib, TopExp = kernel("HLRBRep"), kernel("HLRAlgo"), kernel("BRepLib"), kernel("TopExp")
Adaptor, Mesh, Location = kernel("BRepAdaptor"), kernel("BRepMesh"), kernel("TopLoc")
ThruSections = kernel("BRepOffsetAPI").BRepOffsetAPI_ThruSections
UnifySameDomain = kernel("ShapeUpgrade").ShapeUpgrade_UnifySameDomain
GProps, Properties = kernel("GProp").GProp_GProps, kernel("BRepGProp").BRepGProp
Bounds, BoundsOf = kernel("Bnd").Bnd_Box, kernel("BRepBndLib").BRepBndLib
ExploreWire, Tools = kernel("BRepTools").BRepTools_WireExplorer, kernel("BRepTools").BRepTools
CURVED, FAR, NEAR = 24, 100.0, 1e-4  # points of a curve; the size of a half space; what counts as equal


def axis(x, y, z, way):
    return gp.gp_Ax2(gp.gp_Pnt(x, y, z), gp.gp_Dir(*way))


def corners(sides: int, radius: float) -> list[tuple[float, float]]:
    """Of a regular polygon with one side to the front."""
    angles = [math.radians(-90 + 180 / sides + 360 * i / sides) for i in range(sides)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def base(sides: int, radius: float):
    wire = Builder.BRepBuilderAPI_MakePolygon()
    for x, y in corners(sides, radius):
        wire.Add(gp.gp_Pnt(x, y, 0))
    wire.Close()
    return wire.Wire()


def part(name: str, *sizes):
    """One of the shapes that this module's description lists."""
    if name == "box":
        x, y, z, *size = sizes
        return Primitives.BRepPrimAPI_MakeBox(gp.gp_Pnt(x, y, z), *map(float, size)).Shape()
    if name == "cylinder":
        x, y, z, along, radius, length = sizes
        way = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1)}[along]
        return Primitives.BRepPrimAPI_MakeCylinder(axis(x, y, z, way), float(radius), float(length)).Shape()
    if name == "cone":
        x, y, z, radius, height = sizes
        return Primitives.BRepPrimAPI_MakeCone(axis(x, y, z, (0, 0, 1)), float(radius), 0.0, float(height)).Shape()
    if name == "prism":
        sides, radius, height = sizes
        face = Builder.BRepBuilderAPI_MakeFace(base(sides, radius)).Face()
        return Primitives.BRepPrimAPI_MakePrism(face, gp.gp_Vec(0, 0, height)).Shape()
    if name == "pyramid":
        sides, radius, height = sizes
        loft = ThruSections(True, True)
        loft.AddWire(base(sides, radius))
        loft.AddVertex(Builder.BRepBuilderAPI_MakeVertex(gp.gp_Pnt(0, 0, height)).Vertex())
        loft.Build()
        return loft.Shape()
    if name == "half":
        x, y, z, *way = sizes
        place = gp.gp_Ax2(gp.gp_Pnt(x, y, z), gp.gp_Dir(*way))
        corner = gp.gp_Vec(place.XDirection()) * (-FAR / 2) + gp.gp_Vec(place.YDirection()) * (-FAR / 2)
        place.Translate(corner)
        return Primitives.BRepPrimAPI_MakeBox(place, FAR, FAR, FAR).Shape()
    raise ValueError(f"no solid {name!r}")


def solid(parts, unified: bool = True):
    """The shape of a list of parts. unified: whether faces in one plane become one face."""
    return made(json.dumps(parts), unified)


@functools.lru_cache(64)
def made(parts: str, unified: bool):
    shape = None
    for sign, name, *sizes in json.loads(parts):
        other = part(name, *sizes)
        join = Booleans.BRepAlgoAPI_Fuse if sign == "+" else Booleans.BRepAlgoAPI_Cut
        shape = other if shape is None else join(shape, other).Shape()
    if unified:
        unify = UnifySameDomain(shape, True, True, False)
        unify.Build()
        shape = unify.Shape()
    return shape


def parts_of(shape, kind: str) -> list:
    """Its different "FACE"s, "EDGE"s or "VERTEX"es, in the kernel's order."""
    found, seen = [], TopExp.TopExp_Explorer(shape, getattr(TopAbs.TopAbs_ShapeEnum, f"TopAbs_{kind}"))
    cast = getattr(TopoDS.TopoDS, f"{kind.capitalize()}_s", None) or getattr(TopoDS.TopoDS, kind.capitalize())
    while seen.More():
        one = seen.Current()
        if not any(one.IsSame(other) for other in found):
            found.append(cast(one))
        seen.Next()
    return found


def counts(parts) -> dict[str, int]:
    """Faces, edges and vertices; a seam of a round face is no edge, and its ends are no vertices."""
    shape = solid(parts)
    faces, edges = parts_of(shape, "FACE"), parts_of(shape, "EDGE")
    edges = [edge for edge in edges if not BRep.BRep_Tool.Degenerated_s(edge)]
    edges = [edge for edge in edges if not any(BRep.BRep_Tool.IsClosed_s(edge, face) for face in faces)]
    ends = [parts_of(edge, "VERTEX") for edge in edges]
    ends = [end for pair in ends if len(pair) > 1 for end in pair]  # a circle has one vertex, where it begins
    vertices = [vertex for vertex in parts_of(shape, "VERTEX") if any(vertex.IsSame(end) for end in ends)]
    return {"faces": len(faces), "edges": len(edges), "vertices": len(vertices)}


def volume(parts) -> float:
    found = GProps()
    Properties.VolumeProperties_s(solid(parts), found)
    return found.Mass()


def bounds(parts) -> np.ndarray:
    """[[x, y, z], [x, y, z]]: the smallest and the largest coordinates."""
    box = Bounds()
    BoundsOf.AddOptimal_s(solid(parts), box, False, False)
    low, high = box.CornerMin(), box.CornerMax()
    return np.array([[low.X(), low.Y(), low.Z()], [high.X(), high.Y(), high.Z()]])


# Views

VIEWS = {  # the way to the viewer, and the way to the right in the picture
    "front": ((0, -1, 0), (1, 0, 0)),
    "back": ((0, 1, 0), (-1, 0, 0)),
    "top": ((0, 0, 1), (1, 0, 0)),
    "right": ((1, 0, 0), (0, 1, 0)),
    "left": ((-1, 0, 0), (0, -1, 0)),
}


def slanted(azimuth: float, elevation: float):
    """A view from an angle: the viewer goes anticlockwise, seen from above, from the front; degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return (math.sin(a) * math.cos(e), -math.cos(a) * math.cos(e), math.sin(e)), (math.cos(a), math.sin(a), 0)


def frame(view) -> np.ndarray:
    """Unit vectors [3, 3] of a view: to the right, up, to the viewer."""
    toward, right = (np.array(way, float) / np.linalg.norm(way) for way in view)
    return np.stack([right, np.cross(toward, right), toward])


def project(points, view) -> np.ndarray:
    """Points [..., 3] in the coordinates of a view: right, up, toward the viewer."""
    return np.asarray(points, float) @ frame(view).T


def curve_points(edge) -> np.ndarray:
    """Points [N, 3] of an edge."""
    curve = Adaptor.BRepAdaptor_Curve(edge)
    start, end = curve.FirstParameter(), curve.LastParameter()
    points = [curve.Value(start + (end - start) * i / CURVED) for i in range(CURVED + 1)]
    return np.array([(point.X(), point.Y(), point.Z()) for point in points])


def lines(parts, view, unified: bool = True) -> dict[str, list[np.ndarray]]:
    """{"visible": […], "hidden": […]}: lines [N, 2] of a view; straight ones have two points and are not parted.

    A hidden line that lies on a visible one is left out.
    """
    (x, y, z), right = view
    removal = HLR.HLRBRep_Algo()
    removal.Add(solid(parts, unified), 0)
    place = gp.gp_Ax2(gp.gp_Pnt(0, 0, 0), gp.gp_Dir(x, y, z), gp.gp_Dir(*right))
    removal.Projector(HLRAlgo.HLRAlgo_Projector(place))
    removal.Update()
    removal.Hide()
    shapes, found = HLR.HLRBRep_HLRToShape(removal), {}
    for name, letter in (("visible", "V"), ("hidden", "H")):
        curves = []
        for kind in (f"{letter}Compound", f"OutLine{letter}Compound"):
            compound = getattr(shapes, kind)()
            if compound is not None and not compound.IsNull():
                BRepLib.BRepLib.BuildCurves3d_s(compound)
                curves += [curve_points(edge)[:, :2] for edge in parts_of(compound, "EDGE")]
        found[name] = curves
    return tidied(found)


def tidied(found) -> dict[str, list[np.ndarray]]:
    straight, bent = {}, {}
    for name, curves in found.items():
        pairs = [(curve, straightened(curve)) for curve in curves]
        straight[name] = joined([ends for _, ends in pairs if ends is not None])
        bent[name] = [curve for curve, ends in pairs if ends is None]
    hidden = {key: without(spans, straight["visible"].get(key, [])) for key, spans in straight["hidden"].items()}
    on = [curve for curve in bent["hidden"] if not lies_on(curve, bent["visible"])]
    return {
        "visible": segments(straight["visible"]) + bent["visible"],
        "hidden": segments(hidden) + on,
    }


def straightened(curve: np.ndarray) -> np.ndarray | None:
    """The ends of a curve that is straight, though it may run back; None for another."""
    middle = curve - curve.mean(axis=0)
    way = np.linalg.svd(middle, full_matrices=False)[2][0]
    along = middle @ way
    if np.abs(middle - np.outer(along, way)).max() > NEAR:
        return None
    return np.stack([curve[along.argmin()], curve[along.argmax()]])


def joined(pairs) -> dict[tuple, list[list[float]]]:
    """{line: spans} of straight pieces. A line is its direction and its distance from the origin."""
    spans: dict[tuple, list[list[float]]] = {}
    for start, end in pairs:
        length = np.linalg.norm(end - start)
        if length < 10 * NEAR:
            continue
        way = (end - start) / length
        way = -way if way[0] < -NEAR or (abs(way[0]) <= NEAR and way[1] < 0) else way
        key = (*(np.round(way, 3) + 0.0), round(float(way[0] * start[1] - way[1] * start[0]), 3) + 0.0)
        spans.setdefault(key, []).append(sorted((float(way @ start), float(way @ end))))
    for key, every in spans.items():
        merged = []
        for low, high in sorted(every):
            if merged and low <= merged[-1][1] + 2 * NEAR:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        spans[key] = merged
    return spans


def without(spans, taken) -> list[list[float]]:
    """Spans less those that are taken."""
    for low, high in taken:
        rest = []
        for a, b in spans:
            rest += [[a, min(b, low)]] if a < low - NEAR else []
            rest += [[max(a, high), b]] if b > high + NEAR else []
        spans = rest
    return [[a, b] for a, b in spans if b - a > 10 * NEAR]


def segments(spans) -> list[np.ndarray]:
    found = []
    for (x, y, distance), every in spans.items():
        way = np.array([x, y]) / math.hypot(x, y)
        foot = distance * np.array([-way[1], way[0]])
        found += [np.stack([foot + low * way, foot + high * way]) for low, high in every]
    return found


def lies_on(curve, others) -> bool:
    """Whether each point of a curve is on one of the other curves."""
    if not others:
        return False
    starts, ends = np.concatenate([o[:-1] for o in others]), np.concatenate([o[1:] for o in others])
    ways = ends - starts
    share = ((curve[:, None] - starts) * ways).sum(-1) / np.maximum((ways * ways).sum(-1), 1e-12)
    feet = starts + np.clip(share, 0, 1)[..., None] * ways
    return bool((np.linalg.norm(curve[:, None] - feet, axis=-1).min(axis=1) < 0.02).all())


# Faces


def triangles(parts, unified: bool = True) -> list[np.ndarray]:
    """Triangles [N, 3, 3] of each face, turned so that they are anticlockwise from outside."""
    shape = solid(parts, unified)
    Mesh.BRepMesh_IncrementalMesh(shape, 0.02, False, 0.15, False)
    found = []
    for face in parts_of(shape, "FACE"):
        place = Location.TopLoc_Location()
        mesh = BRep.BRep_Tool.Triangulation_s(face, place)
        points = [mesh.Node(i + 1).Transformed(place.Transformation()) for i in range(mesh.NbNodes())]
        points = np.array([(point.X(), point.Y(), point.Z()) for point in points])
        corners_ = np.array([mesh.Triangle(i + 1).Get() for i in range(mesh.NbTriangles())]) - 1
        if face.Orientation() == TopAbs.TopAbs_Orientation.TopAbs_REVERSED:
            corners_ = corners_[:, ::-1]
        found.append(points[corners_])
    return found


def polygons(parts) -> list[np.ndarray]:
    """The corners [N, 3] of each face of a polyhedron, anticlockwise from outside."""
    shape, found = solid(parts), []
    middle = bounds(parts).mean(axis=0)
    for face in parts_of(shape, "FACE"):
        walk, points = ExploreWire(parts_of(face, "WIRE")[0], face), []
        while walk.More():
            point = BRep.BRep_Tool.Pnt_s(walk.CurrentVertex())
            points.append((point.X(), point.Y(), point.Z()))
            walk.Next()
        points = np.array(points)
        if normal(points) @ (points.mean(axis=0) - middle) < 0:
            points = points[::-1]
        found.append(points)
    return found


def normal(points) -> np.ndarray:
    """The unit normal of a plane polygon [N, 3], by its anticlockwise order."""
    way = np.cross(points[1:-1] - points[0], points[2:] - points[0]).sum(axis=0)
    return way / np.linalg.norm(way)


def unfolded(parts) -> list[np.ndarray]:
    """A net of a convex polyhedron: the corners [N, 2] of each face, joined along edges, the lowest face first.

    Every other face is joined to a face nearest to the lowest one. A face on the opposite side comes last.
    """
    faces = polygons(parts)
    root = min(range(len(faces)), key=lambda i: round(faces[i][:, 2].max(), 4))
    flat, queue = {root: faces[root][:, :2] * np.array([1, -1])}, [root]
    while queue:
        at = queue.pop(0)
        for i, a in enumerate(faces[at]):
            b = faces[at][(i + 1) % len(faces[at])]
            p, q = flat[at][i], flat[at][(i + 1) % len(faces[at])]
            for j, face in enumerate(faces):
                if j in flat or (at == root and normal(face) @ normal(faces[root]) < -0.99):
                    continue
                for k, c in enumerate(face):
                    d = face[(k + 1) % len(face)]
                    if np.linalg.norm(c - b) < NEAR and np.linalg.norm(d - a) < NEAR:
                        flat[j] = laid(face, k, q, p)
                        queue.append(j)
    return [flat[i] for i in range(len(faces))]


def laid(face, k, start, end) -> np.ndarray:
    """A face in the plane, its edge k from one point to another, seen from outside."""
    way = face[(k + 1) % len(face)] - face[k]
    way = way / np.linalg.norm(way)
    across = np.cross(normal(face), way)
    local = np.stack([(face - face[k]) @ way, (face - face[k]) @ across], axis=-1)
    right = (end - start) / np.linalg.norm(end - start)
    up = np.array([-right[1], right[0]])
    return start + local[:, :1] * right + local[:, 1:] * up


def cut_faces(parts) -> list[int]:
    """The indices among the faces of those that the last part, a half space, made: several where it cut through a hole
    or a recess, none if it missed the solid.
    """
    _, _, x, y, z, *way = parts[-1]
    point, way = np.array([x, y, z], float), np.array(way, float) / np.linalg.norm(way)
    return [i for i, face in enumerate(triangles(parts)) if np.abs((face.reshape(-1, 3) - point) @ way).max() < NEAR]


class Section(NamedTuple):
    """The faces that a cut made. edges, curved: how many edges the outline of each has, and whether one is curved.
    area: of all together, in which the holes are not counted.
    """

    faces: int
    edges: int
    curved: bool
    holes: int
    area: float


def section(parts) -> Section:
    """What a cut made. Its faces must be alike, as those of our solids are, which are the same left and right."""
    shape, shapes, area, holes = solid(parts), set(), 0.0, 0
    every, cut = parts_of(shape, "FACE"), cut_faces(parts)
    for face in (every[i] for i in cut):
        found = GProps()
        Properties.SurfaceProperties_s(face, found)
        area += found.Mass()
        holes += len(parts_of(face, "WIRE")) - 1
        outline = parts_of(Tools.OuterWire_s(face), "EDGE")
        shapes.add((len(outline), any(straightened(curve_points(edge)) is None for edge in outline)))
    ((edges, curved),) = shapes
    return Section(len(cut), edges, curved, holes, area)
