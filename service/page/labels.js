// Where the labels of a map stand: beside their points, and out of each other's way as far as there is room.

const HEIGHT = 16;
const GAP = 13;

/**
 * A place for each label.
 * points: [{x, y, width}], width being the label's; box: {width, height} of the map.
 * Returns [{x, y}]: each label's left end and its baseline. Greedy, in the order of the points.
 */
export function placeLabels(points, box) {
  const taken = points.map(({ x, y }) => ({ left: x - GAP, right: x + GAP, top: y - GAP, bottom: y + GAP }));
  return points.map((point, index) => {
    const others = taken.filter((_, i) => i !== index);
    const best = candidates(point)
      .map((area, order) => ({ area, cost: costOf(area, others, box) + order * 0.5 }))
      .reduce((a, b) => (b.cost < a.cost ? b : a)).area;
    taken.push(best);
    return { x: best.left, y: best.bottom - 4 };
  });
}

function candidates({ x, y, width }) {
  const half = HEIGHT / 2;
  const at = (left, middle) => ({ left, right: left + width, top: middle - half, bottom: middle + half });
  return [
    at(x + GAP, y),
    at(x - GAP - width, y),
    at(x - width / 2, y - GAP - half),
    at(x - width / 2, y + GAP + half),
    at(x + GAP, y - HEIGHT),
    at(x + GAP, y + HEIGHT),
    at(x - GAP - width, y - HEIGHT),
    at(x - GAP - width, y + HEIGHT),
  ];
}

function costOf(area, others, box) {
  const overlap = others.reduce((sum, other) => sum + overlapOf(area, other), 0);
  const outside =
    Math.max(0, -area.left) + Math.max(0, area.right - box.width) + Math.max(0, -area.top) + Math.max(0, area.bottom - box.height);
  return overlap + 100 * outside;
}

function overlapOf(a, b) {
  const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  return width > 0 && height > 0 ? width * height : 0;
}
