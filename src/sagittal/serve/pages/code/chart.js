// The chart of agreement over time: a point a week with its interval.

import { svg } from "./dom.js";
import { percent } from "./format.js";

const [WIDTH, HEIGHT] = [960, 300];
const [LEFT, RIGHT, TOP, BOTTOM] = [48, 12, 12, 40];

/**
 * @typedef {{label: string, value: number|null, low: number|null, high: number|null, n: number}} Point
 */

/**
 * Draw shares from 0 to 1.
 * @param {Point[]} points
 * @param {string} title for those who do not see it
 * @returns {SVGElement}
 */
export function drawChart(points, title) {
  const x = (n) => LEFT + ((n + 0.5) * (WIDTH - LEFT - RIGHT)) / Math.max(1, points.length);
  const y = (share) => TOP + (1 - share) * (HEIGHT - TOP - BOTTOM);
  const known = points.map((point, n) => ({ ...point, n: n, at: x(n) })).filter((point) => point.value !== null);
  const every = Math.max(1, Math.ceil(points.length / 10));
  const node = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    node.append(
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(share), y2: y(share) }),
      svg("text", { x: LEFT - 8, y: y(share) + 4, "text-anchor": "end" }, percent(share)),
    );
  }
  points.forEach((point, n) => {
    if (n % every === 0) node.append(svg("text", { x: x(n), y: HEIGHT - 18, "text-anchor": "middle" }, point.label));
  });
  for (const point of known) {
    if (point.low === null || point.high === null) continue;
    const [low, high] = [y(point.low), y(point.high)];
    node.append(
      svg("line", { class: "whisker", x1: point.at, x2: point.at, y1: low, y2: high }),
      svg("line", { class: "whisker", x1: point.at - 5, x2: point.at + 5, y1: low, y2: low }),
      svg("line", { class: "whisker", x1: point.at - 5, x2: point.at + 5, y1: high, y2: high }),
    );
  }
  if (known.length > 1) {
    const path = known.map((point, n) => `${n ? "L" : "M"}${point.at.toFixed(1)} ${y(point.value).toFixed(1)}`).join("");
    node.append(svg("path", { class: "line", d: path }));
  }
  for (const point of known) {
    node.append(
      svg(
        "circle",
        { class: "point", cx: point.at, cy: y(point.value), r: 4 },
        svg("title", {}, `${point.label}: ${percent(point.value)} (${percent(point.low)} – ${percent(point.high)}), n = ${points[point.n].n}`),
      ),
    );
  }
  return node;
}
