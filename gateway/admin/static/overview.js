// All upstreams at a glance. One element for each, in three shapes that are the style sheet's: cards, rows, a wall.

import { element, keyed, set, write } from "./dom.js";
import { poolBar, poolWords, shareBar, shareWords, sparkline } from "./draw.js";
import { CIRCUITS, KINDS, LEVELS, NAMES, inOrder, judged, linkTo, percent, plural, rate, seconds, shares } from "./words.js";
import { eventLog } from "./log.js";

export const VIEWS = ["cards", "rows", "wall"], ORDERS = ["worst first", "by name", "by traffic"];
const FEW = 6;

export class Overview {
  constructor({ settings }) {
    this.settings = settings;
    this.visible = new Set();
    this.search = element("input", { type: "search", id: "search", placeholder: "Find an upstream", "aria-label": "Find an upstream", oninput: () => this.draw() });
    this.view = element("button", { type: "button", class: "tool", id: "view", onclick: () => this.turn("view", VIEWS) });
    this.order = element("button", { type: "button", class: "tool", id: "order", onclick: () => this.turn("order", ORDERS) });
    this.sum = element("dl", { class: "sum" });
    this.list = element("ol", { class: "upstreams", "aria-label": "Upstreams" });
    this.none = element("p", { class: "none soft", hidden: true });
    this.log = eventLog({ title: "What happened" });
    this.node = element("div", { class: "overview" },
      element("div", { class: "glance" }, this.sum, element("div", { class: "finders" }, this.search, this.view, this.order)),
      element("div", { class: "columns" }, element("div", {}, heads(), this.list, this.none), this.log.node));
    this.watcher = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) isIntersecting ? this.visible.add(target) : this.visible.delete(target);
      this.draw();
    }, { rootMargin: "200px" });
  }

  turn(what, among) {
    const now = what === "view" ? this.shape() : this.settings[what] || among[0];
    this.settings[what] = among[(among.indexOf(now) + 1) % among.length];
    this.draw();
  }

  /** What was chosen; else cards for a few, rows for many. */
  shape() {
    return this.settings.view || ((this.told?.upstreams.length || 0) > FEW ? "rows" : "cards");
  }

  show(told) {
    this.told = told;
    this.draw();
    this.log.show(told.events);
  }

  draw() {
    if (!this.told) return;
    const { upstreams } = this.told, wanted = this.search.value.trim().toLowerCase(), view = this.shape(), order = this.settings.order || ORDERS[0];
    const rows = upstreams.map((upstream) => ({ upstream, ...judged(upstream) })).filter(({ upstream }) => upstream.name.toLowerCase().includes(wanted));
    const byName = (one, other) => inOrder(one.upstream.name, other.upstream.name);
    rows.sort(order === ORDERS[0] ? (one, other) => other.level - one.level || byName(one, other)
      : order === ORDERS[1] ? byName : (one, other) => other.upstream.window.rates.asked - one.upstream.window.rates.asked || byName(one, other));
    set(this.node, "data-view", view);
    write(this.view, `View: ${view}`);
    write(this.order, `Order: ${order}`);
    const focused = document.activeElement;
    keyed(this.list, rows, { key: ({ upstream }) => upstream.name, make: (row) => this.make(row), show: (child, row) => this.visible.has(child.node) && child.show(row, view) });
    if (focused !== document.activeElement && focused?.isConnected) focused.focus();  // its row changed places
    write(this.none, wanted ? `No upstream has “${wanted}” in its name.` : "There is no upstream yet.");
    this.none.hidden = rows.length > 0;
    this.total();
  }

  make({ upstream }) {
    const row = upstreamRow(upstream);
    this.visible.add(row.node);
    this.watcher.observe(row.node);
    return row;
  }

  total() {
    const { upstreams, gateway } = this.told, rates = {};
    for (const { window } of upstreams) for (const [name, value] of Object.entries(window.rates)) rates[name] = (rates[name] || 0) + value;
    const share = upstreams.length ? shares(rates) : {};
    const facts = [
      ["calls a second", rate(rates.asked || 0)],
      ...KINDS.map((kind) => [NAMES[kind], percent(share[kind]), kind]),
      ["retries a second", rate(rates.retries || 0)],
      ["event loop late", seconds(gateway.lag.now), null, `at most ${seconds(gateway.lag.max)}`],
    ];
    keyed(this.sum, facts, {
      key: ([name]) => name,
      make: ([name, , kind]) => {
        const value = element("dd", { class: kind ? "number kind" : "number", "data-kind": kind });
        return { node: element("div", {}, element("dt", {}, name), value), value };
      },
      show: ({ value, node }, [, text, , more]) => { write(value, text); set(node, "title", more || null); },
    });
  }

  /** Move to the next upstream, or the one before; from nowhere to the first. */
  move(by) {
    const links = [...this.list.querySelectorAll("a.open")], at = links.indexOf(document.activeElement);
    links[Math.max(0, Math.min(links.length - 1, at < 0 ? (by > 0 ? 0 : links.length - 1) : at + by))]?.focus();
  }

  find() {
    this.search.focus();
    this.search.select();
  }

  /** Whether there was something to end. */
  escape() {
    const searching = this.search.value !== "" || document.activeElement === this.search;
    this.search.value = "";
    this.search.blur();
    if (searching) this.draw();
    return searching;
  }
}

const heads = () => element("div", { class: "heads", "aria-hidden": "true" },
  ...["", "upstream", "a minute of calls", "answers, last 10 s", "pool", "p50 · p90 · p99", "queue p99"].map((text) => element("span", {}, text)));

function upstreamRow({ name }) {
  const mark = element("span", { class: "mark", "aria-hidden": "true" });
  const reason = element("span", { class: "reason" }), drift = element("span", { class: "drift", hidden: true });
  const circuit = element("span", { class: "circuit" });
  const spark = sparkline({ title: `Calls of ${name}` }), per = element("span", { class: "per number" });
  const bar = shareBar(), words = shareWords(), pool = poolBar(), places = element("span", { class: "number" });
  const quantiles = ["p50", "p90", "p99"].map((which) => element("span", { class: "number", "data-name": which }));
  const queued = element("span", { class: "queued number", "data-name": "queue p99" });
  const node = element("li", { class: "row", "data-upstream": name },
    mark,
    element("div", { class: "who" }, element("a", { class: "open", href: linkTo(name), title: name }, name), element("span", { class: "state" }, circuit, drift), reason),
    element("div", { class: "traffic" }, spark.node, per),
    element("div", { class: "answers" }, bar.node, words.node),
    element("div", { class: "pool" }, pool.node, places),
    element("div", { class: "quantiles" }, ...quantiles), queued);
  return {
    node,
    show({ upstream, level, reason: text }) {
      const { rates, latency, waits } = upstream.window, share = shares(rates), changed = Object.keys(upstream.drift).length;
      set(node, "data-level", String(level));
      write(mark, LEVELS[level][0]);
      write(reason, text);
      set(node, "data-plain", String(text === "well"));
      set(node, "data-said", String(/^(circuit|isolated|half-open)/.test(text)));
      set(circuit, "data-state", upstream.circuit.state);
      set(circuit, "data-mark", CIRCUITS[upstream.circuit.state][0]);
      write(circuit, upstream.circuit.enforced ? `circuit ${CIRCUITS[upstream.circuit.state][1]}` : `circuit ${CIRCUITS[upstream.circuit.state][1]}, not enforced`);
      write(drift, changed ? `≠ ${plural(changed, "knob")} tuned` : "");
      drift.hidden = !changed;
      spark.show(upstream, `Calls of ${name} in the last minute; now ${rate(rates.asked)} a second`);
      write(per, `${rate(rates.asked)}/s`);
      bar.show(share);
      words.show(share);
      pool.show(upstream.pool);
      write(places, poolWords(upstream.pool));
      quantiles.forEach((quantile) => write(quantile, latency.count ? seconds(latency[quantile.dataset.name]) : "–"));
      write(queued, waits.count ? seconds(waits.p99) : "–");
    },
  };
}

/** One sentence on all of them, for the head of the page and the title of the tab. */
export function verdict({ upstreams }) {
  const ill = upstreams.map((upstream) => ({ name: upstream.name, ...judged(upstream) })).sort((one, other) => other.level - one.level || inOrder(one.name, other.name));
  const worst = ill[0]?.level || 0, some = ill.filter(({ level }) => level >= 2);
  if (!upstreams.length) return { level: 0, text: "No upstream is registered yet" };
  if (!some.length) {
    const helped = ill.filter(({ level }) => level === 1).length;
    return { level: worst, text: helped ? `${plural(helped, "upstream")} of ${upstreams.length} helped out by plan B` : `All ${upstreams.length === 1 ? "is" : `${upstreams.length} upstreams are`} well` };
  }
  const named = some.slice(0, 2).map(({ name, reason }) => `${name}: ${reason}`).join("; ");
  return { level: worst, text: `${some.length} of ${upstreams.length} ${some.length === 1 ? "needs" : "need"} a look. ${named}${some.length > 2 ? ", …" : ""}` };
}
