// What happened, the newest first.

import { element, keyed, set } from "./dom.js";
import { clock, linkTo } from "./words.js";

const SHOWN = 60, MARKS = { circuit: "◑", policy: "≠", control: "■", endpoint: "◔", warning: "▲" };

export function eventLog({ title, of = null }) {
  const list = element("ol", { class: "events" }), none = element("p", { class: "soft none" }, "Nothing yet: circuits, tuning, endpoints and warnings come here.");
  const node = element("section", { class: "log panel", "aria-label": title }, element("h2", {}, title), none, list);
  return {
    node,
    show(events) {
      const mine = events.filter(({ upstream }) => of === null || upstream === of).slice(-SHOWN).reverse();
      if (none.hidden === !mine.length) none.hidden = mine.length > 0;
      keyed(list, mine, { key: ({ id }) => id, make: (event) => ({ node: entry(event, of) }) });
    },
  };
}

function entry({ at, kind, upstream, text }, of) {
  const node = element("li", { class: "event" },
    element("time", { class: "number soft", datetime: new Date(at * 1000).toISOString() }, clock(at)),
    element("span", { class: "mark", "aria-hidden": "true" }, MARKS[kind] || "·"),
    element("span", {}, of === null ? element("a", { href: linkTo(upstream) }, upstream) : "", of === null ? " " : "", told(kind, text)));
  set(node, "data-kind", kind);
  return node;
}

const told = (kind, text) => kind === "circuit" ? `circuit ${text.replace("half_open", "half-open").replace("->", "→")}` : text.replaceAll("->", "→");
