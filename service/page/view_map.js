// The vectors in the plane of their greatest variance, as a drawing and as a table.

import { byId, el, svg } from "./dom.js";
import { placeLabels } from "./labels.js";
import { project } from "./pca.js";
import { scriptOf } from "./scripts.js";
import { cosines, neighbours } from "./similarity.js";

const MARGIN = 26;
const SNIPPET_CHARS = 11;
// As results.css has it.
const LABEL_PX = 12;
// Of the width: flat enough to stand beside the search, high enough that labels find room.
const ASPECT = 0.7;

/** app: as in view_texts.js. Returns {refresh}. */
export function mapView(app) {
  const drawing = byId("map");
  new ResizeObserver(() => draw()).observe(drawing.parentElement);
  let plane = { points: [], shares: [0, 0] };

  function refresh() {
    const shown = app.results.indices;
    plane = project(shown.map((index) => app.results.vectors[index]));
    const [first, second] = plane.shares.map(percent);
    const note =
      shown.length < 3
        ? "A map takes three texts or more."
        : `Principal components of ${shown.length} vectors. The plane shows ${percent(plane.shares[0] + plane.shares[1])} of ` +
          `their variance: ${first} across, ${second} upwards. Near here is likely, but not surely, near in the matrix.`;
    byId("map-note").textContent = note;
    byId("map-title").textContent = `Map of ${shown.length} texts`;
    byId("map-desc").textContent = `${note} The coordinates are in the table that follows.`;
    byId("coordinates").replaceChildren(...coordinates(shown));
    draw();
  }

  function draw() {
    const width = drawing.parentElement.clientWidth;
    const shown = app.results.indices;
    if (!width) return;
    const height = Math.round(Math.max(240, width * ASPECT));
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.setAttribute("height", height);
    const marks = byId("map-marks");
    if (shown.length < 3) {
      marks.replaceChildren();
      return;
    }
    const places = scaled(plane.points, width, height);
    const names = shown.map((index) => nameOf(app.state.texts[index], index, width < 420));
    const labels = placeLabels(
      places.map((place, i) => ({ ...place, width: measured(names[i]) })),
      { width, height },
    );
    marks.replaceChildren(
      ...axes(places, width, height),
      ...links(shown, places),
      ...shown.flatMap((index, i) => [mark(index, places[i]), label(index, names[i], labels[i])]),
    );
  }

  function mark(index, { x, y }) {
    const { role } = app.state.texts[index];
    const group = svg("g", { class: `point ${role}${index === app.state.selected ? " selected" : ""}` });
    group.append(svg("circle", { class: "halo", cx: x, cy: y, r: 10 }));
    group.append(
      role === "query"
        ? svg("path", { class: "shape", d: `M${x} ${y - 6.5}L${x + 6.5} ${y}L${x} ${y + 6.5}L${x - 6.5} ${y}Z` })
        : svg("circle", { class: "shape", cx: x, cy: y, r: 5 }),
    );
    group.addEventListener("click", () => app.select(index));
    return group;
  }

  function label(index, name, { x, y }) {
    const { text, lang } = app.state.texts[index];
    const node = svg("text", { x, y, class: index === app.state.selected ? "selected" : null, lang: lang || scriptOf(text).lang });
    node.textContent = name;
    node.addEventListener("click", () => app.select(index));
    return node;
  }

  /** From each query to the passage nearest to it in all dimensions. */
  function links(shown, places) {
    const matrix = cosines(shown.map((index) => app.results.vectors[index]));
    const roles = shown.map((index) => app.state.texts[index].role);
    return roles.flatMap((role, i) => {
      const best = role === "query" ? neighbours(matrix, i).find((one) => roles[one.index] === "passage") : undefined;
      if (!best) return [];
      const [from, to] = [places[i], places[best.index]];
      return [svg("line", { class: "link", x1: from.x, y1: from.y, x2: to.x, y2: to.y })];
    });
  }

  function coordinates(shown) {
    const head = el("tr", {}, ...["Text", "Across", "Upwards"].map((name) => el("th", { scope: "col" }, name)));
    const rows = shown.map((index, i) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, String(index + 1)),
        ...plane.points[i].map((value) => el("td", {}, value.toFixed(3))),
      ),
    );
    return [el("thead", {}, head), el("tbody", {}, ...rows)];
  }

  return { refresh };
}

/** Points of the plane as places of the drawing, one scale for both axes: a distance is a distance in any direction. */
export function scaled(points, width, height) {
  const spans = [0, 1].map((k) => {
    const values = points.map((point) => point[k]);
    return { low: Math.min(...values), high: Math.max(...values) };
  });
  // The labels stand mostly to the right.
  const room = [width - 2 * MARGIN - Math.min(110, width * 0.2), height - 2 * MARGIN];
  const scale = Math.min(...spans.map(({ low, high }, k) => room[k] / Math.max(high - low, 1e-6)));
  return points.map(([x, y]) => ({
    x: MARGIN + (room[0] - scale * (spans[0].high - spans[0].low)) / 2 + scale * (x - spans[0].low),
    y: MARGIN + (room[1] - scale * (spans[1].high - spans[1].low)) / 2 + scale * (spans[1].high - y),
  }));
}

function axes(places, width, height) {
  // Through the mean of all vectors, where PCA has its origin.
  const middle = (key) => places.reduce((sum, place) => sum + place[key], 0) / places.length;
  return [
    svg("line", { class: "axis", x1: 0, x2: width, y1: middle("y"), y2: middle("y") }),
    svg("line", { class: "axis", y1: 0, y2: height, x1: middle("x"), x2: middle("x") }),
  ];
}

function nameOf({ text }, index, short) {
  if (short) return String(index + 1);
  const chars = [...text.replace(/\s+/g, " ")];
  const snippet = chars.length > SNIPPET_CHARS ? `${chars.slice(0, SNIPPET_CHARS - 1).join("").trimEnd()}…` : chars.join("");
  // Isolated, or a text from right to left would take the number along.
  return `${index + 1} \u2068${snippet}\u2069`;
}

const pen = document.createElement("canvas").getContext("2d");

/** How wide a label is drawn, in pixels. */
function measured(name) {
  pen.font = `${LABEL_PX}px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(name).width;
}

function percent(share) {
  return `${Math.round(100 * share)}\u00a0%`;
}
