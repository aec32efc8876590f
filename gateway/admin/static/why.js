// Why a call was refused or stale: recent calls, and the story of each.

import { ask } from "./link.js";
import { element, keyed, set, write } from "./dom.js";
import { waterfall } from "./draw.js";
import { MARKS, NAMES, clock, kindOf, long, seconds } from "./words.js";

const EVERY = 1000, ASKED = 60;
const FILTERS = { all: "all", odd: "not plain live", error: "errors only" };

export class Why {
  constructor({ of = null, refused }) {
    this.of = of;
    this.refused = refused;
    this.open = new Set();
    this.filter = "odd";
    this.paused = false;
    this.pause = element("button", { type: "button", class: "tool", "aria-pressed": "false", onclick: () => this.hold(!this.paused) }, "Hold");
    this.choices = Object.entries(FILTERS).map(([name, text]) => element("button", {
      type: "button", class: "tool", "data-filter": name, "aria-pressed": String(name === this.filter), onclick: () => this.choose(name),
    }, text));
    this.list = element("ol", { class: "calls" });
    this.none = element("p", { class: "soft none" });
    this.node = element("section", { class: "why panel", "aria-label": "Why" },
      element("header", {}, element("h2", {}, of === null ? "Why: recent calls of all upstreams" : "Why: recent calls"),
        element("div", { class: "finders" }, ...this.choices, this.pause)),
      element("p", { class: "soft small" }, "Every call that was not plain live, and some of the others. Pick one to read its story."),
      this.none, this.list);
    this.timer = setInterval(() => this.look(), EVERY);
    this.look();
  }

  end() {
    clearInterval(this.timer);
  }

  hold(paused) {
    this.paused = paused;
    set(this.pause, "aria-pressed", String(paused));
    write(this.pause, paused ? "Held: go on" : "Hold");
    if (!paused) this.look();
  }

  choose(name) {
    this.filter = name;
    for (const button of this.choices) set(button, "aria-pressed", String(button.dataset.filter === name));
    this.draw();
  }

  async look() {
    if (document.hidden || this.paused || this.asking) return;
    this.asking = true;
    try {
      const { content } = await ask(`calls?limit=${ASKED}${this.of === null ? "" : `&upstream=${encodeURIComponent(this.of)}`}`);
      this.calls = content.calls;
      this.draw();
    } catch (error) { this.refused(error); } finally { this.asking = false; }
  }

  draw() {
    if (!this.calls) return;
    const shown = this.calls.map((call) => ({ ...call, ended: kindOf(call.source, call.outcome) }))
      .filter((call) => this.filter === "all" || (this.filter === "odd" ? !call.plain : call.ended === "error"));
    shown.sort((one, other) => other.id - one.id);
    // One that is being read stays, even when the ring has forgotten it.
    for (const node of this.list.children) if (this.open.has(node.call.id) && !shown.some(({ id }) => id === node.call.id)) shown.push(node.call);
    write(this.none, shown.length ? "" : this.filter === "error" ? "No call ended in an error." : "Nothing to explain: every call was plain live.");
    this.none.hidden = shown.length > 0;
    keyed(this.list, shown, { key: ({ id }) => id, make: (call) => ({ node: this.entry(call) }) });
  }

  entry(call) {
    const story = element("div", { class: "story", id: `story-${call.id}`, hidden: true });
    const turn = () => {
      const opening = story.hidden;
      story.hidden = !opening;
      set(button, "aria-expanded", String(opening));
      opening ? this.open.add(call.id) : this.open.delete(call.id);
      if (opening && !story.firstChild) story.append(waterfall(call.steps, call.duration));
    };
    const button = element("button", { type: "button", class: "call", "aria-expanded": "false", "aria-controls": story.id, onclick: turn },
      element("span", { class: "kind", "data-kind": call.ended, "data-mark": MARKS[call.ended] }, how(call)),
      element("span", { class: "what" }, `${this.of === null ? `${call.upstream}.` : ""}${call.operation}`),
      element("span", { class: "took number" }, seconds(call.duration)),
      element("time", { class: "number soft" }, clock(call.at)),
      element("span", { class: "text soft" }, call.text));
    const node = element("li", { "data-call": call.id }, button, story);
    node.call = call;
    return node;
  }
}

function how({ ended, source, outcome, age }) {
  if (ended === "error") return outcome;
  if (outcome === "refused") return "refused";
  const old = age ? `, ${long(age)} old` : "";
  return `${ended === "default" ? source : NAMES[ended]}${old}`;
}
