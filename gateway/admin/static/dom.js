// Elements: made by name, and changed only where they differ. 200 upstreams a second are then mostly comparisons.
// Text goes in as text, never as HTML: a name is whatever somebody called an upstream.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function drawn(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// What was written last, so that looking costs no layout.
const said = Symbol("text"), held = Symbol("attributes"), wide = Symbol("width"), kept = Symbol("children");

/** Text, if it is another one. */
export function write(node, text) {
  if (node[said] === text) return;
  node[said] = text;
  node.textContent = text;
}

/** An attribute, if it is another one; null takes it away. */
export function set(node, name, value) {
  const before = node[held] ||= {};
  if (before[name] === value) return;
  before[name] = value;
  if (value === null) node.removeAttribute(name);
  else node.setAttribute(name, value);
}

/** A width in per cent, if it is another one. The policy for styles forbids the attribute, not the property. */
export function widen(node, share) {
  const width = `${Math.round(1000 * Math.max(0, Math.min(1, share || 0))) / 10}%`;
  if (node[wide] === width) return;
  node[wide] = width;
  node.style.width = width;
}

/** Children by their keys: made once, kept, put in order, and removed when they are gone. */
export function keyed(parent, items, { key, make, show }) {
  const children = parent[kept] ||= new Map();
  const seen = new Set();
  let at = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let child = children.get(name);
    if (!child) children.set(name, child = make(item));
    seen.add(name);
    if (child.node === at) at = at.nextElementSibling;
    else parent.insertBefore(child.node, at);
    show?.(child, item);
  }
  for (const [name, child] of children) {
    if (seen.has(name)) continue;
    child.node.remove();
    children.delete(name);
  }
}

/** Whether a person is typing here. */
export const typing = (node) => node instanceof Element && node.matches("input:not([type=checkbox]), textarea, select");
