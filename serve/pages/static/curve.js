"use strict";
// Curves of metrics over the steps of a stage.
const SVG = "http://www.w3.org/2000/svg", WIDTH = 240, HEIGHT = 90, EDGE = 8;

const words = (name) => name.replaceAll("_", " ").replaceAll(".", ": ");
const duration = (seconds) => (seconds < 120 ? `${Math.round(seconds)} s` : `${(seconds / 60).toFixed(1)} min`);
function number(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 0.01 && Math.abs(value) < 1e6 ? value.toFixed(Math.abs(value) < 10 ? 2 : 1) : value.toExponential(1);
}

function curve([name, points]) {
  const steps = points.map((point) => point[0]), values = points.map((point) => point[1]);
  const [left, right, low, high] = [Math.min(...steps), Math.max(...steps), Math.min(...values), Math.max(...values)];
  const x = (step) => EDGE + ((step - left) / (right - left || 1)) * (WIDTH - 2 * EDGE);
  const y = (value) => HEIGHT - EDGE - ((value - low) / (high - low || 1)) * (HEIGHT - 2 * EDGE);
  const drawing = document.createElementNS(SVG, "svg"), line = document.createElementNS(SVG, "polyline");
  drawing.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", `${words(name)} over steps ${left} to ${right}: from ${number(values[0])} to ${number(values.at(-1))}`);
  line.setAttribute("points", points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" "));
  drawing.append(line);
  const node = element("figure");
  node.append(drawing, element("figcaption", "", `${words(name)}: ${number(values[0])} → ${number(values.at(-1))}, steps ${left} to ${right}`));
  return node;
}
