// Why a call was refused or stale: recent calls, and the story of each.

import { ask } from "./link.js";
import { element, keyed, set, write } from "./dom.js";
import { waterfall } from "./draw.js";
import { MARKS, NAMES, clock, kindOf, linkTo, long, plural, seconds } from "./words.js";

const EVERY = 1000, ASKED = 100, OTHERS = 12;
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
      element("p", { class: "soft small" }, "Every call that was not plain live, and some of the others; those alike are one line. Pick one to read its story."),
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
    const wanted = this.calls.map((call) => ({ ...call, ended: kindOf(call.source, call.outcome) }))
      .filter((call) => this.filter === "all" || (this.filter === "odd" ? !call.plain : call.ended === "error"))
      .sort((one, other) => other.id - one.id);
    const groups = alike(wanted);
    // What is being read stays, even when the ring has forgotten it.
    for (const entry of this.open) if (!groups.has(entry.key)) groups.set(entry.key, entry.calls);
    write(this.none, groups.size ? "" : this.filter === "error" ? "No call ended in an error." : "Nothing to explain: every call was plain live.");
    this.none.hidden = groups.size > 0;
    keyed(this.list, groups, { key: ([key]) => key, make: ([key, calls]) => new Entry(this, key, calls), show: (entry, [, calls]) => entry.show(calls) });
  }
}

/** Calls that ended alike, for the same reasons, whatever the numbers: the newest group first. */
function alike(calls) {
  const groups = new Map();
  for (const call of calls) {
    const key = [call.upstream, call.operation, call.ended, call.text.replace(/\d+(\.\d+)?( \w+)?/g, "#")].join("|");
    if (groups.has(key)) groups.get(key).push(call);
    else groups.set(key, [call]);
  }
  return groups;
}

/** One line for all calls that are alike: how many, the newest, and the story of whichever is picked. */
class Entry {
  constructor(why, key, calls) {
    Object.assign(this, { why, key, calls });
    this.kind = element("span", { class: "kind" });
    this.times = element("span", { class: "times number" });
    this.took = element("span", { class: "took number" });
    this.at = element("time", { class: "number soft" });
    this.text = element("span", { class: "text soft" });
    this.story = element("div", { class: "story", id: `story-${calls[0].id}`, hidden: true });
    this.button = element("button", { type: "button", class: "call", "aria-expanded": "false", "aria-controls": this.story.id, onclick: () => this.turn() },
      this.kind, element("span", { class: "what" }, `${why.of === null ? `${calls[0].upstream}.` : ""}${calls[0].operation}`), this.times, this.took, this.at, this.text);
    this.node = element("li", { "data-call": calls[0].id }, this.button, this.story);
  }

  show(calls) {
    this.calls = calls;
    if (!this.story.hidden) return;
    const [newest] = calls;
    set(this.kind, "data-kind", newest.ended);
    set(this.kind, "data-mark", MARKS[newest.ended]);
    write(this.kind, how(newest));
    write(this.times, calls.length > 1 ? `× ${calls.length}` : "");
    write(this.took, seconds(newest.duration));
    write(this.at, clock(newest.at));
    write(this.text, newest.text);
  }

  turn() {
    const opening = this.story.hidden;
    this.story.hidden = !opening;
    set(this.button, "aria-expanded", String(opening));
    if (!opening) {
      this.why.open.delete(this);
      return this.show(this.calls);
    }
    this.why.open.add(this);
    this.tell(this.calls[0], this.calls);
  }

  /** The story of one; the others alike can be picked. */
  tell(call, calls) {
    const others = calls.length === 1 ? null : element("p", { class: "others" }, element("span", { class: "soft small" }, `${plural(calls.length, "call")} alike:`),
      ...calls.slice(0, OTHERS).map((one) => element("button", {
        type: "button", class: "tool number", "aria-pressed": String(one === call), onclick: () => { this.tell(one, calls); this.story.querySelector("[aria-pressed=true]").focus(); },
      }, `${clock(one.at)}, ${seconds(one.duration)}`)));
    this.story.replaceChildren(...[
      waterfall(call.steps, call.duration), others,
      this.why.of === null ? element("p", { class: "small" }, element("a", { href: linkTo(call.upstream) }, `Open ${call.upstream}`)) : null,
    ].filter(Boolean));
  }
}

function how({ ended, source, outcome, age }) {
  if (ended === "error") return outcome;
  if (outcome === "refused") return "refused";
  const old = age ? `, ${long(age)} old` : "";
  return `${ended === "default" ? source : NAMES[ended]}${old}`;
}
