// The numbers of an upstream: any knob, what it was and what it will be, wrong ones told where they stand.
//
// A change is sent with the version of the policy it was made from. If somebody else was faster the server refuses it;
// what he changed is then shown next to what is being changed here, and nothing that was typed is lost.

import { Refusal, ask, named } from "./link.js";
import { element, set, write } from "./dom.js";
import { confirmed } from "./dialogs.js";
import { spelled } from "./words.js";

const FIRST = ["bulkhead.limit", "bulkhead.queue", "bulkhead.max_wait", "timeout.call", "timeout.attempt", "retry.attempts", "breaker.failure_rate", "breaker.open_for", "breaker.enforce"];
const BEHIND = 2500;  // milliseconds that the stream may be behind, and tell the version before once more
const UNITS = { seconds: "s", bytes: "bytes", share: "0 to 1", count: "", number: "" };

export class Tune {
  constructor({ name, refused, changed }) {
    Object.assign(this, { name, refused, changed, rows: new Map(), etag: null, before: null, noticed: null, readAt: 0, policy: {}, file: null, aside: null });
    this.first = element("div", { class: "knobs" });
    this.rest = element("div", { class: "knobs" });
    this.find = element("input", { type: "search", placeholder: "Find a knob", "aria-label": "Find a knob", oninput: () => this.sift() });
    this.all = element("details", {}, element("summary", {}, "All knobs"), this.find, this.rest);
    this.diff = element("div", { class: "diff", "aria-live": "polite" });
    this.said = element("p", { class: "said", role: "alert", hidden: true });
    this.reload = element("button", { type: "button", class: "tool", hidden: true, onclick: () => this.read({ keep: true }) }, "Load what stands now");
    this.review = element("button", { type: "submit", class: "well", disabled: true }, "Review");
    this.undo = element("button", { type: "button", class: "tool", disabled: true, onclick: () => this.reset() }, "Undo all");
    this.form = element("form", { onsubmit: (event) => { event.preventDefault(); this.send(); } },
      this.first, this.all, this.diff, this.said, element("p", { class: "choices" }, this.reload, this.undo, this.review));
    this.node = element("section", { class: "tune panel", "aria-label": "Tune", id: "tune" }, element("h2", {}, "Tune"),
      element("p", { class: "soft small" }, "Nothing in flight is lost. Seconds, or 300ms; inf for no limit; none where it may be left out; empty for the default."), this.form);
    this.read();
  }

  /** The stream tells the version that holds now. A form that nobody types in follows it; else it is said. */
  follow(etag) {
    if (!this.etag || etag === this.etag || this.reading) return;
    if (etag === this.before && performance.now() - this.readAt < BEHIND) return;
    if (!this.edited().length) return this.read();
    if (etag === this.noticed) return;
    this.noticed = etag;
    this.tell("Somebody else changed this upstream while you were at it. What you typed is still here. Load what stands now, and look.", true);
  }

  /** Ask for the policy as it stands. `keep`: what is being typed stays. */
  async read({ keep = false } = {}) {
    this.reading = true;
    try {
      const { content, etag } = await ask(`${named(this.name)}/policy?knobs=1`);
      const before = this.policy;
      this.policy = content.policy;
      if (etag !== this.etag) Object.assign(this, { before: this.etag, etag, noticed: null });
      this.readAt = performance.now();
      this.file = content.file || null;
      this.aside = content.aside || null;
      if (!this.rows.size) this.build(content.knobs);
      for (const row of this.rows.values()) {
        const now = spelled(at(this.policy, row.path)), was = spelled(at(before, row.path));
        const edited = row.value() !== row.now;
        row.now = now;
        if (!(keep && edited)) row.put(now);
        write(row.other, keep && now !== was ? `somebody else made it ${now}; it was ${was}` : "");
      }
      this.tell("");
      this.reload.hidden = true;
      this.compare();
    } catch (error) { this.refused(error); this.tell(error.message); } finally { this.reading = false; }
  }

  build(knobs) {
    for (const knob of knobs) {
      const row = knobRow(knob, () => this.compare());
      this.rows.set(knob.path, row);
    }
    for (const path of FIRST) if (this.rows.has(path)) this.first.append(this.rows.get(path).node);
    let section = null;
    for (const [path, row] of this.rows) {
      if (FIRST.includes(path)) continue;
      const of = path.includes(".") ? path.slice(0, path.lastIndexOf(".")) : "policy";
      if (of !== section) this.rest.append(element("h3", { "data-section": of }, section = of));
      this.rest.append(row.node);
    }
  }

  sift() {
    const wanted = this.find.value.trim().toLowerCase();
    for (const node of this.rest.children) node.hidden = node.tagName === "H3" ? Boolean(wanted) : !node.textContent.toLowerCase().includes(wanted);
  }

  edited() {
    return [...this.rows.values()].filter((row) => row.value() !== row.now);
  }

  compare() {
    const edited = this.edited();
    for (const row of this.rows.values()) set(row.node, "data-edited", String(row.value() !== row.now));
    this.diff.replaceChildren(...(edited.length ? [changes(edited)] : []));
    this.review.disabled = this.undo.disabled = !edited.length;
  }

  reset() {
    for (const row of this.rows.values()) {
      row.put(row.now);
      this.blame(row, "");
    }
    this.tell("");
    this.compare();
  }

  /** Put a value into the form; it is not sent. */
  suggest(path, value) {
    const row = this.rows.get(path);
    if (!row) return;
    if (!FIRST.includes(path)) this.all.open = true;
    row.put(spelled(value));
    this.compare();
    row.node.scrollIntoView({ block: "center" });
    row.field.focus();
  }

  async send() {
    const edited = this.edited();
    if (!edited.length) return;
    const answer = await confirmed({ title: `Tune ${this.name}`, text: "This takes effect at once.", deed: "Apply", detail: changes(edited) });
    if (!answer) return;
    const patch = {};
    for (const row of edited) put(patch, row.path, row.sent());
    for (const row of this.rows.values()) this.blame(row, "");
    this.tell("");
    this.review.disabled = true;
    try {
      await ask(`${named(this.name)}/policy`, { method: "PATCH", body: patch, etag: this.etag, why: answer.why });
      await this.read();
      this.changed(`${this.name}: ${edited.map(({ path }) => path).join(", ")} changed`);
    } catch (error) { this.fail(error); }
    this.review.disabled = !this.edited().length;
  }

  fail(error) {
    if (!(error instanceof Refusal)) return this.tell("The server did not answer; what it did is not known. Load what stands now, and look.", true);
    if (error.status === 412) {
      return this.tell("Somebody else changed this upstream while you were at it, so nothing of yours was applied. What you typed is still here. Load what stands now, look, and apply again.", true);
    }
    let placed = 0;
    for (const { field, problem, remedy } of error.errors) {
      const row = this.rows.get(field) || [...this.rows.values()].find(({ path }) => field.endsWith(path));
      if (!row) continue;
      placed += 1;
      if (this.rest.contains(row.node)) this.all.open = true;
      this.blame(row, `${problem}; ${remedy}`);
    }
    this.tell(placed ? `Nothing was applied: ${placed === 1 ? "one value is" : `${placed} values are`} not right.` : error.message);
    if (!placed) this.refused(error);
    this.form.querySelector("[aria-invalid=true]")?.focus();
  }

  blame(row, text) {
    write(row.wrong, text);
    set(row.field, "aria-invalid", text ? "true" : null);
  }

  tell(text, stale = false) {
    write(this.said, text);
    this.said.hidden = !text;
    this.reload.hidden = !stale;
  }
}

function knobRow(knob, edited) {
  const { path, kind, unit, words = [], meaning = "" } = knob, id = `knob-${path}`;
  const none = knob.none && kind !== "words";
  const field = kind === "boolean" || kind === "words"
    ? element("select", { id, onchange: edited }, ...[...(kind === "boolean" ? ["true", "false"] : words), ...(knob.none ? ["none"] : [])].map((word) => element("option", { value: word }, word)))
    : element("input", { id, type: "text", inputmode: kind === "number" ? "decimal" : null, autocomplete: "off", spellcheck: "false", placeholder: spelled(knob.default), oninput: edited });
  const wrong = element("span", { class: "wrong" }), other = element("span", { class: "other" });
  const back = element("button", { type: "button", class: "back", title: `the default: ${spelled(knob.default)}`, "aria-label": `${path}: back to the default ${spelled(knob.default)}`,
    onclick: () => { field.value = field.tagName === "SELECT" ? spelled(knob.default) : ""; edited(); } }, "↺");
  field.setAttribute("aria-describedby", `${id}-about`);
  const node = element("div", { class: "knob", "data-knob": path },
    element("label", { for: id }, path), element("span", { class: "value" }, field, element("span", { class: "unit soft" }, UNITS[unit] ?? ""), back),
    element("span", { class: "about soft", id: `${id}-about` }, `${meaning.replaceAll("`", "")} Default ${spelled(knob.default)}${none ? ", may be none" : ""}.`), wrong, other);
  return {
    path, node, field, wrong, other, now: "",
    value: () => field.value.trim(),
    put(text) { field.value = text; },
    /** As JSON: empty is the default, numbers are numbers, a wait is a table; all else is for the server to judge. */
    sent() {
      const text = field.value.trim();
      if (text === "") return null;
      if (kind === "boolean") return text === "none" ? text : text === "true";
      if (/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text)) return Number(text);
      if (/^[[{]/.test(text)) try { return JSON.parse(text); } catch { return text; }
      return text;
    },
  };
}

/** What was, and what will be. */
export function changes(rows) {
  return element("table", { class: "changes" }, element("caption", { class: "unseen" }, "What changes"),
    element("thead", {}, element("tr", {}, ...["knob", "before", "after"].map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, element("th", { scope: "row" }, row.path),
      element("td", { class: "was" }, row.now), element("td", { class: "will" }, row.value() || "default")))));
}

function at(policy, path) {
  let value = policy;
  for (const part of path.split(".")) {
    if (value === null || value === undefined || typeof value !== "object") return value;
    value = value[part];
  }
  return value;
}

function put(patch, path, value) {
  const parts = path.split("."), last = parts.pop();
  let inner = patch;
  for (const part of parts) inner = inner[part] ||= {};
  inner[last] = value;
}
