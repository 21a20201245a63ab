"use strict";
// Curves of metrics over the steps of a stage.
const SVG = "http://www.w3.org/2000/svg", WIDTH = 240, HEIGHT = 90, EDGE = 8;

const words = (name) => name.replaceAll("_", " ").replaceAll(".", ": ");
const duration = (seconds) => (seconds < 120 ? `${Math.round(seconds)} s` : `${(seconds / 60).toFixed(1)} min`);
function number(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 0.01 && Math.abs(value) < 1e6 ? value.toFixed(Math.abs(value) < 10 ? 2 : 1) : value.toExponential(1);
}

const curve = ([name, points]) => curveOver(name, points, "", []);

// A curve with another one of the same metric behind it, which has a name.
function curveOver(name, points, otherName, others) {
  const all = [...points, ...others], steps = all.map((point) => point[0]), values = all.map((point) => point[1]);
  const own = points.map((point) => point[1]), [begin, end] = [points[0][0], points.at(-1)[0]];
  const [left, right, low, high] = [Math.min(...steps), Math.max(...steps), Math.min(...values), Math.max(...values)];
  const x = (step) => EDGE + ((step - left) / (right - left || 1)) * (WIDTH - 2 * EDGE);
  const y = (value) => HEIGHT - EDGE - ((value - low) / (high - low || 1)) * (HEIGHT - 2 * EDGE);
  const drawing = document.createElementNS(SVG, "svg"), line = document.createElementNS(SVG, "polyline");
  drawing.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", `${words(name)} over steps ${begin} to ${end}: from ${number(own[0])} to ${number(own.at(-1))}`);
  const places = (those) => those.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  line.setAttribute("points", places(points));
  if (others.length) {
    const behind = document.createElementNS(SVG, "polyline");
    behind.setAttribute("class", "behind");
    behind.setAttribute("points", places(others));
    drawing.append(behind);
  }
  drawing.append(line);
  const node = element("figure");
  node.append(drawing, element("figcaption", "", `${words(name)}: ${number(own[0])} → ${number(own.at(-1))}, steps ${begin} to ${end}${otherName ? `; dashed: ${otherName}, ${number(others[0][1])} → ${number(others.at(-1)[1])}` : ""}`));
  return node;
}
