"""Rooms made of simple shapes, as clouds of labelled points: what `examples.segment` learns from.

A room has a floor, four walls with windows and a door, and furniture that stands where it would: chairs around tables, sofas
and shelves at walls. Its points lie on the surfaces, with noise. Colours are drawn at random for each thing, so that its shape
has to tell what it is.
"""

import numpy as np

LABELS = ("floor", "wall", "window", "door", "table", "chair", "sofa", "shelf", "lamp")
NOISE = 0.006  # metres, of every point
HEIGHT = 2.5  # of a room
CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])


class Room:
    """Points of surfaces, as they are added. `density`: points to a square metre."""

    def __init__(self, rng: np.random.Generator, density: float):
        self.rng, self.density = rng, density
        self.points, self.colours, self.labels = [], [], []
        self.taken: list[tuple[np.ndarray, np.ndarray]] = []  # boxes on the floor, (low, high)

    def add(self, label: str, points: np.ndarray, colour: np.ndarray) -> None:
        self.points.append(points)
        self.colours.append(np.clip(colour + self.rng.normal(0, 0.05, (len(points), 3)), 0, 1))
        self.labels.append(np.full(len(points), LABELS.index(label)))

    def plane(self, origin, u, v, holes=()) -> np.ndarray:
        """Points [N, 3] on a rectangle with sides u and v, without `holes`: (low, high) in metres along these."""
        lengths = np.array([np.linalg.norm(u), np.linalg.norm(v)])
        places = self.rng.random((self.rng.poisson(self.density * lengths.prod()), 2))
        for low, high in holes:
            places = places[~((places * lengths > low) & (places * lengths < high)).all(1)]
        return origin + places[:, :1] * u + places[:, 1:] * v

    def box(self, low, high) -> np.ndarray:
        """Points on the six sides of a box."""
        low, high = np.asarray(low, float), np.asarray(high, float)
        faces = []
        for axis in range(3):
            u, v = np.zeros(3), np.zeros(3)
            first, second = (axis + 1) % 3, (axis + 2) % 3
            u[first], v[second] = (high - low)[first], (high - low)[second]
            shift = np.zeros(3)
            shift[axis] = (high - low)[axis]
            faces += [self.plane(low, u, v), self.plane(low + shift, u, v)]
        return np.concatenate(faces)

    def cone(self, centre, bottom: float, low: float, top: float, high: float) -> np.ndarray:
        """Points around an upright axis: radius `bottom` at height `low`, radius `top` at height `high`."""
        side = np.hypot(high - low, top - bottom)
        along = self.rng.random(max(1, self.rng.poisson(self.density * np.pi * (bottom + top) * side)))
        angle, radius = self.rng.random(len(along)) * 2 * np.pi, bottom + along * (top - bottom)
        x, y = centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)
        return np.stack([x, y, low + along * (high - low)], 1)

    def free(self, centre, size, gap: float = 0.1) -> bool:
        """Whether nothing stands where a thing of that size [2] is to stand; if so, it stands there from now on."""
        low, high = np.asarray(centre) - np.asarray(size) / 2 - gap, np.asarray(centre) + np.asarray(size) / 2 + gap
        if any((low < b).all() and (high > a).all() for a, b in self.taken):
            return False
        self.taken.append((low, high))
        return True

    def cloud(self) -> tuple[np.ndarray, np.ndarray]:
        """(points float32 [N, 6] as x, y, z of at least 0 and red, green, blue from 0 to 1; labels int64 [N])"""
        points = np.concatenate(self.points)
        points = points + self.rng.normal(0, NOISE, points.shape)
        points -= points.min(0)
        return np.concatenate([points, np.concatenate(self.colours)], 1).astype("float32"), np.concatenate(self.labels)


def turned(points: np.ndarray, centre, quarters: float) -> np.ndarray:
    """Points around the origin of a thing, turned about its upright axis by so many quarters, and put to its place."""
    sine, cosine = np.sin(quarters * np.pi / 2), np.cos(quarters * np.pi / 2)
    x, y, z = points.T
    return np.stack([centre[0] + cosine * x - sine * y, centre[1] + sine * x + cosine * y, z], 1)


def table(room: Room, width: float, depth: float, height: float) -> np.ndarray:
    parts = [room.box((-width / 2, -depth / 2, height - 0.05), (width / 2, depth / 2, height))]
    for x, y in (CORNERS - 0.5) * (width - 0.12, depth - 0.12):
        parts.append(room.box((x - 0.03, y - 0.03, 0), (x + 0.03, y + 0.03, height - 0.05)))
    return np.concatenate(parts)


def chair(room: Room) -> np.ndarray:
    """Its back is at negative y."""
    seat = room.rng.uniform(0.42, 0.48)
    parts = [
        room.box((-0.21, -0.21, seat - 0.04), (0.21, 0.21, seat)),
        room.box((-0.21, -0.21, seat), (0.21, -0.17, seat + 0.45)),
    ]
    for x, y in (CORNERS - 0.5) * 0.36:
        parts.append(room.box((x - 0.02, y - 0.02, 0), (x + 0.02, y + 0.02, seat - 0.04)))
    return np.concatenate(parts)


def sofa(room: Room, width: float) -> np.ndarray:
    """Its back is at negative y."""
    parts = [
        room.box((-width / 2, -0.4, 0.05), (width / 2, 0.4, 0.42)),
        room.box((-width / 2, -0.4, 0.42), (width / 2, -0.18, 0.85)),
    ]
    for side in (-1, 1):
        x = side * (width / 2 - 0.08)
        parts.append(room.box((x - 0.08, -0.4, 0.05), (x + 0.08, 0.4, 0.62)))
    return np.concatenate(parts)


def shelf(room: Room, width: float, height: float) -> np.ndarray:
    """Its back is at negative y; some of its boards carry boxes."""
    parts = [room.plane(np.array([-width / 2, -0.15, 0]), np.array([width, 0, 0]), np.array([0, 0, height]))]
    for x in (-width / 2, width / 2 - 0.03):
        parts.append(room.box((x, -0.15, 0), (x + 0.03, 0.15, height)))
    for z in np.linspace(0.05, height - 0.03, 5):
        parts.append(room.box((-width / 2, -0.15, z), (width / 2, 0.15, z + 0.03)))
        if room.rng.random() < 0.5:
            x = room.rng.uniform(-width / 2 + 0.05, width / 2 - 0.3)
            parts.append(room.box((x, -0.12, z + 0.03), (x + 0.22, 0.1, z + 0.25)))
    return np.concatenate(parts)


def lamp(room: Room) -> np.ndarray:
    height = room.rng.uniform(1.3, 1.7)
    shade = room.cone((0, 0), 0.22, height - 0.1, 0.12, height + 0.18)
    return np.concatenate([room.cone((0, 0), 0.14, 0.02, 0.02, 0.04), room.cone((0, 0), 0.02, 0.04, 0.02, height), shade])


def room_of(rng: np.random.Generator, *, size: tuple[float, float] = (3.5, 5.5), density: float = 700.0):
    """A room whose sides are drawn between two lengths in metres: `Room.cloud`."""
    room = Room(rng, density)
    sides = rng.uniform(*size, 2)
    add_shell(room, sides)
    add_furniture(room, sides)
    return room.cloud()


def add_shell(room: Room, sides: np.ndarray) -> None:
    """Floor and walls, with a door in one of them and windows in others."""
    rng = room.rng
    paint = rng.uniform(0.5, 1.0, 3)
    x, y, z = np.array([sides[0], 0, 0]), np.array([0, sides[1], 0]), np.array([0, 0, HEIGHT])
    room.add("floor", room.plane(np.zeros(3), x, y), rng.uniform(0.2, 0.8, 3))
    walls = [(np.zeros(3), x, [0, -1, 0]), (x, y, [1, 0, 0]), (x + y, -x, [0, 1, 0]), (y, -y, [-1, 0, 0])]
    door = rng.integers(4)
    for number, (origin, along, out) in enumerate(walls):
        length, out = np.linalg.norm(along), np.array(out, float)
        holes = []
        if number == door:
            start = rng.uniform(0.3, length - 1.3)
            holes.append(("door", (start, 0.0), (start + 0.9, 2.05), rng.uniform(0.1, 0.9, 3)))
        elif rng.random() < 0.7:
            start, width = rng.uniform(0.4, length - 1.9), rng.uniform(0.9, 1.5)
            holes.append(
                ("window", (start, rng.uniform(0.8, 1.0)), (start + width, rng.uniform(1.9, 2.2)), np.array([0.7, 0.8, 0.95]))
            )
        room.add("wall", room.plane(origin, along, z, [hole[1:3] for hole in holes]), paint)
        for label, low, high, colour in holes:  # lies a little outside of the wall, in a frame that is as deep
            unit, up = along / length, np.array([0, 0, 1.0])
            corner, depth = origin + unit * low[0] + up * low[1], out * (0.12 if label == "window" else 0.06)
            u, v = unit * (high[0] - low[0]), up * (high[1] - low[1])
            parts = [room.plane(corner + depth, u, v), room.plane(corner, v, depth), room.plane(corner + u, v, depth)]
            parts.append(room.plane(corner + v, u, depth))
            if label == "window":  # a sill, and a bar through the middle
                parts += [room.plane(corner, u, depth - out * 0.2), room.plane(corner + u / 2 + out * 0.04, unit * 0.08, v)]
            else:  # a handle
                at = corner + u * 0.88 + up * 1.05 - out * 0.05
                parts.append(room.box(np.minimum(at, at + unit * 0.1 + up * 0.04), np.maximum(at, at + unit * 0.1 + up * 0.04)))
            room.add(label, np.concatenate(parts), colour)


def at_a_wall(room: Room, sides: np.ndarray, width: float, depth: float):
    """(centre, quarters) of a thing that stands with its back to a wall."""
    wall = room.rng.integers(4)
    span, distance = sides[wall % 2], depth / 2 + 0.04
    along = room.rng.uniform(width / 2 + 0.1, span - width / 2 - 0.1)
    centre = [(along, distance), (sides[0] - distance, along), (along, sides[1] - distance), (distance, along)][wall]
    size = (width, depth) if wall % 2 == 0 else (depth, width)
    return np.array(centre), wall, size


def add_furniture(room: Room, sides: np.ndarray) -> None:
    """At least one of everything, if it finds a place."""
    rng = room.rng

    def colour():
        return rng.uniform(0.1, 0.9, 3)

    def placed(place, tries: int = 8):
        """What `place()` says, (centre, size, what more it knows), once nothing stands there; None if something always does."""
        for _ in range(tries):
            centre, size, *more = place()
            if room.free(centre, size):
                return centre, *more
        return None

    def table_place():
        width, depth = rng.uniform(1.0, 1.6), rng.uniform(0.7, 0.9)
        return rng.uniform(1.0, sides - 1.0), (width, depth + 0.9), width, depth

    def wall_place(least: float, most: float, depth: float):
        width = rng.uniform(least, most)
        centre, quarters, size = at_a_wall(room, sides, width, depth)
        return centre, size, width, quarters

    for _ in range(rng.integers(1, 3)):
        if found := placed(table_place):
            centre, width, depth = found
            room.add("table", turned(table(room, width, depth, rng.uniform(0.68, 0.78)), centre, 0), colour())
            wood = colour()
            for x in np.arange(-width / 2 + 0.3, width / 2 - 0.25, 0.6):
                for side in (-1, 1):
                    if rng.random() < 0.8:
                        place = centre + np.array([x, side * (depth / 2 + rng.uniform(0.05, 0.2))])
                        quarters = (2 if side > 0 else 0) + rng.normal(0, 0.15)
                        room.add("chair", turned(chair(room), place, quarters), wood)
    for _ in range(rng.integers(1, 3)):
        if found := placed(lambda: wall_place(1.3, 2.0, 0.8)):
            centre, width, quarters = found
            room.add("sofa", turned(sofa(room, width), centre, quarters), colour())
    for _ in range(rng.integers(1, 4)):
        if found := placed(lambda: wall_place(0.7, 1.2, 0.3)):
            centre, width, quarters = found
            room.add("shelf", turned(shelf(room, width, rng.uniform(1.2, 2.1)), centre, quarters), colour())
    for _ in range(rng.integers(1, 4)):
        if found := placed(lambda: (rng.uniform(0.35, sides - 0.35), (0.45, 0.45))):
            room.add("lamp", turned(lamp(room), found[0], 0), colour())
