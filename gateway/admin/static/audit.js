// Who changed what, when, from what to what, and why.

import { ask } from "./link.js";
import { element } from "./dom.js";
import { clock, linkTo, spelled } from "./words.js";

export class Audit {
  constructor({ refused }) {
    this.refused = refused;
    this.list = element("ol", { class: "audit" });
    this.node = element("section", { class: "panel", "aria-label": "Changes" }, element("h2", {}, "Changes"),
      element("p", { class: "soft small" }, "Every change by hand or from code: who, when, from what to what, and why. The newest first."), this.list);
    this.timer = setInterval(() => this.look(), 2000);
    this.look();
  }

  end() {
    clearInterval(this.timer);
  }

  async look() {
    if (document.hidden) return;
    try {
      const { content } = await ask("audit"), shape = JSON.stringify(content);
      if (shape === this.shape) return;
      this.shape = shape;
      const records = [...content.audit].sort((one, other) => other.at - one.at);
      this.list.replaceChildren(...(records.length ? records.map(entry) : [element("li", { class: "soft none" }, "Nobody has changed anything.")]));
    } catch (error) { this.refused(error); }
  }
}

function entry({ at, who, upstream, kind, changes = {}, facts = {}, why }) {
  return element("li", {}, element("time", { class: "number soft", datetime: new Date(at * 1000).toISOString() }, `${new Date(at * 1000).toLocaleDateString()} ${clock(at)}`),
    element("span", {}, element("b", {}, who || "somebody"), ` ${kind} `, upstream ? element("a", { href: linkTo(upstream) }, upstream) : ""),
    element("span", { class: "number" }, Object.entries(changes).map(([path, [before, after]]) => `${path} ${spelled(before)} → ${spelled(after)}`).concat(Object.entries(facts).map(([name, value]) => `${name} ${spelled(value)}`)).join(", ")),
    element("span", { class: "soft" }, why ? `“${why}”` : ""));
}
