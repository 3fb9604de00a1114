// Elements are made here and nowhere from markup: whatever a study is called stays text.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element. Strings among the children become text nodes; listeners are given under `on`.
 * @param {string} tag
 * @param {Record<string, any>} [attributes] `true` sets an empty attribute; false, null and undefined leave it out.
 * @param {...(Node|string|number|null|undefined|false)} children
 * @returns {any} an HTMLElement of that kind
 */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * Make an element of a drawing.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node|string|number|null|undefined|false)} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  return /** @type {SVGElement} */ (fill(document.createElementNS(SVG, tag), attributes, children));
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (/^(on|style$|srcdoc$)/i.test(name)) {
      throw new Error(`attribute ${name} is not set from here`);
    } else if (value === true) {
      node.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, String(value));
    }
  }
  for (const child of children) {
    if (child instanceof Node || typeof child === "string" || typeof child === "number") node.append(child);
  }
  return node;
}

/**
 * Put children in the place of those that are there; nothing stands for what is not to be shown.
 * @param {Element} parent
 * @param {...(Node|string|null|undefined|false)} children
 */
export function refill(parent, ...children) {
  const shown = children.filter((child) => child instanceof Node || (typeof child === "string" && child !== ""));
  parent.replaceChildren(.../** @type {(Node|string)[]} */ (shown));
}

/**
 * The element of this page with an id.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`this page has no element ${id}`);
  return found;
}

/**
 * A list made of keyed nodes: kept ones stay in place with their focus, others come and go.
 * @param {HTMLElement} parent
 * @param {Node[]} nodes
 */
export function replaceChildrenKeepingFocus(parent, nodes) {
  const wanted = new Set(nodes);
  for (const old of [...parent.childNodes]) if (!wanted.has(old)) old.remove();
  nodes.forEach((node, n) => {
    if (parent.childNodes[n] !== node) parent.insertBefore(node, parent.childNodes[n] ?? null);
  });
}

const SHAPES = {
  dot: "M8 4a4 4 0 1 0 0 8 4 4 0 0 0 0-8z",
  ring: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11zm0 2a3.5 3.5 0 1 1 0 7 3.5 3.5 0 0 1 0-7z",
  half: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2zm0 2v8a4 4 0 0 1 0-8z",
  tick: "M6.4 12.6 2 8.3l1.5-1.5 2.9 2.8 6-6L14 5.1z",
  cross: "m3.5 2 4.5 4.6L12.5 2 14 3.5 9.4 8l4.6 4.5-1.5 1.5L8 9.4 3.5 14 2 12.5 6.6 8 2 3.5z",
  pen: "M11.6 1.6 14.4 4.4 5.4 13.4 1.8 14.2 2.6 10.6z",
  triangle: "M8 1.8 15 14H1zm-.9 4.4.3 4h1.2l.3-4zm.9 5a.8.8 0 1 0 0 1.7.8.8 0 0 0 0-1.7z",
  down: "M8 13.5 2.5 7h11zM7 2h2v6H7z",
  up: "M8 2.5 13.5 9h-11z",
  upup: "M8 1.5 13 7H3zM8 8l5 5.5H3z",
  bar: "M2 7h12v2H2z",
  lens: "M6.5 1.5a5 5 0 1 0 3 9l4 4 1.2-1.2-4-4a5 5 0 0 0-4.2-7.8zm0 1.7a3.3 3.3 0 1 1 0 6.6 3.3 3.3 0 0 1 0-6.6z",
};

/**
 * A small sign that stands beside a word.
 * @param {keyof typeof SHAPES} shape
 * @returns {SVGElement}
 */
export function sign(shape) {
  return svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: SHAPES[shape], fill: "currentColor" }));
}

/**
 * A bar from 0 to 1 with its value as words for those who do not see it.
 * @param {number} value
 * @param {string} label
 * @returns {SVGElement}
 */
export function bar(value, label) {
  const share = Math.max(0, Math.min(1, value));
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 64 6", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("rect", { x: 0.5, y: 0.5, width: 63, height: 5, rx: 2 }),
    svg("rect", { x: 0.5, y: 0.5, width: 63 * share, height: 5, rx: 2 }),
  );
}
