// The page of one upstream: what it does now, why, how it is tuned, what its numbers advise.

import { ask, named } from "./link.js";
import { element, keyed, set, write } from "./dom.js";
import { confirmed } from "./dialogs.js";
import { SECONDS, chart, histogram, poolBar, poolWords, shareBar, shareWords, sparkline } from "./draw.js";
import { CIRCUITS, ENDPOINTS, LEVELS, MARKS, NAMES, ends, grouped, judged, long, number, percent, plural, rate, seconds, shares, spelled } from "./words.js";
import { eventLog } from "./log.js";
import { Tune } from "./tune.js";
import { Why } from "./why.js";

const ADVICE_EVERY = 5000;
const ENDS = ["live", "coalesced", "cached", "last_good", "static", "handler", "alternate", "refused", "failed", "unknown", "rejected", "cancelled"];

/** What each upstream was like in the last minute, as this page saw it: its pool and its latency breathe. */
export class Past {
  constructor() { this.of = new Map(); }

  keep({ upstreams }) {
    const names = new Set();
    for (const { name, pool, window } of upstreams) {
      names.add(name);
      let past = this.of.get(name);
      if (!past) this.of.set(name, past = []);
      past.push({ in_use: pool.in_use, waiting: pool.waiting, limit: number(pool.limit), p50: window.latency.count ? window.latency.p50 : NaN, p99: window.latency.count ? window.latency.p99 : NaN });
      if (past.length > SECONDS) past.shift();
    }
    for (const name of this.of.keys()) if (!names.has(name)) this.of.delete(name);
  }
}

export class UpstreamPage {
  constructor({ name, past, refused, said }) {
    Object.assign(this, { name, past, refused, said });
    this.mark = element("span", { class: "mark", "aria-hidden": "true" });
    this.reason = element("p", { class: "reason" });
    this.warnings = element("ul", { class: "warnings" });
    this.drift = element("section", { class: "drift-note", "aria-label": "Tuned by hand", hidden: true });
    this.buttons = this.controls();
    this.spark = sparkline({ height: 60, title: `Calls of ${name}` });
    this.per = element("p", { class: "soft small number" });
    this.bar = shareBar();
    this.words = shareWords();
    this.pool = poolBar();
    this.places = element("p", { class: "number strong" });
    this.placesMore = element("p", { class: "soft small number" });
    this.poolChart = chart({ title: `Places of ${name} in use, and callers that wait`, unit: (value) => String(Math.round(value)),
      lines: [{ name: "in use", class: "in-use", area: true }, { name: "waiting", class: "queued", area: true, above: true }] });
    this.timeChart = chart({ title: `How long ${name} takes`, unit: seconds, lines: [{ name: "p50", class: "p50" }, { name: "p99", class: "p99" }] });
    this.circuit = element("p", { class: "circuit strong" });
    this.circuitMore = element("p", { class: "soft small" });
    this.circuits = element("ul", { class: "circuits" });
    this.more = element("p", { class: "soft small" });
    this.times = table(["", "calls", "p50", "p90", "p99", "max"], "How long it takes, last 10 s");
    this.operations = table(["operation", "calls/s", "answers", "p50", "p99", "memory"], "Operations");
    this.counts = table(["how calls ended", "a second", "in all"], "Counters");
    this.sums = element("p", { class: "small sums" });
    this.endpoints = element("section", { class: "panel", hidden: true }, element("h2", {}, "Endpoints"));
    this.endpointList = element("ul", { class: "endpoints" });
    this.endpoints.append(this.endpointList);
    this.budget = element("p", { class: "soft small number" });
    this.log = eventLog({ title: "What happened here", of: name });
    this.why = new Why({ of: name, refused });
    this.tune = new Tune({ name, refused, changed: said });
    this.advice = element("section", { class: "panel advice", "aria-label": "Advice" }, element("h2", {}, "Advice"));
    this.advised = element("ol", {});
    this.advice.append(this.advised);
    const panel = (title, ...children) => element("section", { class: "panel", "aria-label": title }, element("h2", {}, title), ...children);
    this.node = element("article", { class: "one", "data-upstream": name },
      element("header", { class: "title" }, this.mark, element("div", {}, element("h1", {}, name), this.reason), this.buttons.node),
      this.warnings, this.drift,
      element("div", { class: "facts" },
        panel("Calls in the last minute", this.spark.node, this.per, this.bar.node, this.words.node),
        panel("Pool", this.places, this.pool.node, this.placesMore, this.poolChart.node),
        panel("Circuit", this.circuit, this.circuitMore, this.circuits, this.more, this.budget),
        panel("Time", this.timeChart.node, this.times.node)),
      element("div", { class: "columns" },
        element("div", {}, this.why.node, this.tune.node, this.advice),
        element("div", {}, this.endpoints, panel("Operations", this.operations.node), panel("Counters", this.counts.node, this.sums), this.log.node)));
    this.timer = setInterval(() => this.advise(), ADVICE_EVERY);
    this.advise();
  }

  end() {
    clearInterval(this.timer);
    this.why.end();
  }

  controls() {
    const button = (text, deed, attributes = {}) => element("button", { type: "button", "data-deed": deed, ...attributes, onclick: () => this.do(deed) }, text);
    const isolate = button("Isolate", "isolate", { class: "danger" }), restore = button("Restore", "restore", { class: "well" });
    const enforce = button("Stop enforcing", "enforce"), forget = button("Forget answers", "forget");
    return { node: element("div", { class: "deeds" }, isolate, restore, enforce, forget), isolate, restore, enforce, forget };
  }

  async do(deed, { key, url } = {}) {
    const { circuit } = this.told, enforced = !circuit.enforced, whom = key === undefined ? url || this.name : `the circuit ${key} of ${this.name}`;
    const [title, text, name, danger] = {
      isolate: [`Isolate ${whom}?`, "Nothing is sent any more; plan B answers, or the caller gets an error. It stays so until it is restored.", "Isolate", true],
      restore: [`Restore ${whom}?`, url ? "It gets calls again." : "The circuit is closed and begins anew with an empty window.", "Restore"],
      enforce: enforced ? [`Enforce the circuit of ${whom}?`, "An open circuit refuses calls again.", "Enforce"] : [`Stop enforcing the circuit of ${whom}?`, "It goes on counting and shows what it would have refused, and refuses nothing.", "Stop enforcing", true],
      forget: [`Forget what ${whom} answered?`, "Every remembered answer is dropped. Until it answers again, callers get defaults or errors where they would have had the last good one.", "Forget", true],
      drain: [`Drain ${whom}?`, "What is under way there ends as it will; nothing new is sent to it.", "Drain", true],
      fold: [`Write the tuned values of ${whom} into the policy file?`, `They are then what stands in ${this.tune.file}; its comments stay.`, "Write them"],
      drop: [`Drop the tuned values of ${whom}?`, "What stands in the file, or in the code, holds again at once.", "Drop them", true],
    }[deed];
    const answer = await confirmed({ title, text, deed: name, danger, detail: ["fold", "drop"].includes(deed) ? this.drifted() : null });
    if (!answer) return;
    const body = deed === "enforce" ? { enforce: enforced } : key !== undefined ? { circuit: key } : url ? { url } : {};
    const path = url ? `endpoints/${deed}` : ["fold", "drop"].includes(deed) ? `tuned/${deed}` : deed;
    try {
      await ask(`${named(this.name)}/${path}`, { method: "POST", body, why: answer.why });
      this.said(`${whom}: ${deed} done`);
      if (["fold", "drop", "enforce"].includes(deed)) this.tune.read({ keep: true });
    } catch (error) { this.refused(error, true); }
  }

  show(document) {
    const told = document.upstreams.find(({ name }) => name === this.name);
    set(this.node, "data-gone", String(!told));
    if (!told) return write(this.reason, "This upstream is not registered (any more).");
    this.told = told;
    const { level, reason } = judged(told), { rates, latency, waits } = told.window, share = shares(rates);
    set(this.node, "data-level", String(level));
    write(this.mark, LEVELS[level][0]);
    write(this.reason, `${reason} · ${told.kind === "http" ? "HTTP" : "functions"}`);
    if (!told.operations) return;  // its details are under way
    keyed(this.warnings, told.warnings, { key: (text) => text, make: (text) => ({ node: element("li", {}, "▲ ", text) }) });
    this.tune.follow(told.etag);
    this.showDrift(told);
    this.showButtons(told, document);
    this.spark.show(told, `Calls of ${this.name} in the last minute`);
    write(this.per, `${rate(rates.asked)} calls a second · ${rate(rates.attempts)} tries · ${rate(rates.retries)} retries`);
    this.bar.show(share);
    this.words.show(share);
    this.showPool(told);
    this.showCircuit(told);
    const past = this.past.of.get(this.name) || [];
    this.poolChart.show(past.map(({ in_use, waiting, limit }) => ({ values: [in_use, waiting], limit })), { least: 2, label: `${told.pool.in_use} places in use, ${told.pool.waiting} callers wait` });
    const limit = number(this.tune.policy.timeout?.attempt ?? Infinity);
    this.timeChart.show(past.map(({ p50, p99 }) => ({ values: [p50, p99], limit })), { least: 0.001, label: `p50 ${seconds(latency.p50)}, p99 ${seconds(latency.p99)}` });
    this.times.show([["upstream", latency], ["in the queue", waits]].map(([name, one]) =>
      [name, grouped(one.count), ...["p50", "p90", "p99", "max"].map((which) => one.count ? seconds(one[which]) : "–")]));
    this.operations.show(told.operations.map((operation) => this.operation(operation)));
    const total = { ...told.total };
    this.counts.show([["asked", rate(rates.asked), grouped(total.asked)],
      ...ENDS.filter((end) => total[end]).map((end) => [end.replace("_", " "), rate(rates[end]), grouped(total[end])]),
      ["in flight", "", grouped(total.in_flight)], ["tries", rate(rates.attempts), grouped(total.attempts)], ["retries", rate(rates.retries), grouped(total.retries)],
      ...(total.overran ? [["overran", rate(rates.overran), grouped(total.overran)]] : []), ...(total.fallback_failed ? [["plan B failed", "", grouped(total.fallback_failed)]] : [])]);
    set(this.sums, "data-ok", String(told.adds_up));
    const missing = total.asked - total.in_flight - ENDS.reduce((sum, end) => sum + total[end], 0);
    write(this.sums, told.adds_up ? "● They add up: every call ended in one way, or is in flight."
      : `✕ They do not add up: ${plural(Math.abs(missing), "call")} ${missing > 0 ? "ended in no way" : "ended more than once"}. Please report it.`);
    this.showEndpoints(told);
    this.log.show(document.events);
  }

  showDrift({ drift }) {
    const entries = Object.entries(drift), { file, aside } = this.tune, shape = JSON.stringify([drift, file, aside]);
    this.drift.hidden = !entries.length;
    if (this.drift.shape === shape) return;
    this.drift.shape = shape;
    this.drift.replaceChildren(element("h2", {}, `≠ ${plural(entries.length, "knob")} tuned away from the ${file ? "file" : "code"}`),
      aside ? element("p", { class: "said" }, `Set aside, since what the file says now does not go with it: ${aside}`) : "",
      this.drifted(entries),
      element("p", { class: "choices" },
        element("button", { type: "button", "data-deed": "drop", onclick: () => this.do("drop") }, "Drop them"),
        file ? element("button", { type: "button", class: "well", "data-deed": "fold", onclick: () => this.do("fold") }, "Write them into the file")
          : element("span", { class: "soft small" }, "They come from code: there is no policy file to write them into.")));
  }

  drifted(entries = Object.entries(this.told.drift)) {
    return element("table", { class: "changes" }, element("thead", {}, element("tr", {}, ...["knob", this.tune.file ? "in the file" : "in code", "now"].map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...entries.map(([path, [file, now]]) => element("tr", {}, element("th", { scope: "row" }, path), element("td", { class: "was" }, spelled(file)), element("td", { class: "will" }, spelled(now))))));
  }

  showButtons({ circuit, operations }) {
    const { isolate, restore, enforce, forget } = this.buttons;
    isolate.disabled = circuit.state === "isolated";
    restore.disabled = circuit.state === "closed";
    write(enforce, circuit.enforced ? "Stop enforcing" : "Enforce");
    forget.disabled = !operations.some(({ memory }) => memory);
  }

  showPool({ pool }) {
    this.pool.show(pool);
    write(this.places, poolWords(pool));
    write(this.placesMore, `${pool.waiting} of ${endlessly(pool.queue)} queued · peak ${pool.peak} · ${grouped(pool.rejected)} turned away${pool.abandoned ? ` · ${pool.abandoned} held by work that was given up and cannot be stopped` : ""}`);
  }

  showCircuit({ circuit, circuits, circuits_in_all, budget }) {
    const [mark, name, meaning] = CIRCUITS[circuit.state];
    set(this.circuit, "data-state", circuit.state);
    set(this.circuit, "data-mark", mark);
    const left = circuit.state === "open" ? (circuit.closes_in > 0.05 ? `, tries in ${circuit.closes_in.toFixed(1)} s` : ", tries with the next call") : "";
    write(this.circuit, `${name}${left}`);
    const known = (value, what) => value === null ? `${what} not known yet` : `${percent(value)} ${what}`;
    write(this.circuitMore, [meaning, circuit.since ? `for ${long(Math.max(0, Date.now() / 1000 - circuit.since))}` : "",
      circuit.enforced ? "" : "not enforced: it refuses nothing", circuit.calls ? `${circuit.failures} of ${circuit.calls} failed: ${known(circuit.failure_rate, "failures")}` : "",
      `opens at ${percent(circuit.threshold)} of at least ${circuit.min_calls}`, circuit.rejected ? `${grouped(circuit.rejected)} refused` : "",
      circuit.held_for ? `it asked to be left alone for ${seconds(circuit.held_for)} more` : ""].filter(Boolean).join(" · "));
    const own = circuits.slice(0, 50);
    keyed(this.circuits, own, {
      key: ({ key }) => key,
      make: ({ key }) => {
        const state = element("span", { class: "circuit" });
        const button = element("button", { type: "button", class: "tool" });
        const child = { node: element("li", { "data-circuit": key }, element("b", {}, String(key)), state, button), state, button };
        button.addEventListener("click", () => this.do(child.deed, { key }));
        return child;
      },
      show: (child, one) => {
        child.deed = one.state === "closed" || one.state === "half_open" ? "isolate" : "restore";
        set(child.state, "data-state", one.state);
        set(child.state, "data-mark", CIRCUITS[one.state][0]);
        write(child.state, `${CIRCUITS[one.state][1]}, ${one.failures} of ${one.calls} failed`);
        write(child.button, child.deed === "isolate" ? "Isolate" : "Restore");
      },
    });
    const more = (circuits_in_all || circuits.length) - own.length;
    write(this.more, more > 0 ? `and ${grouped(more)} more` : "");
    write(this.budget, budget ? `${grouped(Math.floor(number(budget.left)))} retries left in the budget${budget.suppressed ? `, ${grouped(budget.suppressed)} left out for want of it` : ""}` : "retries have no budget");
  }

  operation({ name, window: { rates, latency }, memory, adds_up: sums }) {
    const share = shares(rates), ended = ends(rates);
    const told = Object.keys(NAMES).filter((kind) => ended[kind]).map((kind) => `${MARKS[kind]} ${NAMES[kind]} ${percent(share[kind])}`).join(", ");
    const kept = memory ? `${grouped(memory.entries)} kept` : "–";
    return [sums ? name : `✕ ${name}: does not add up`, rate(rates.asked), told || "–", latency.count ? seconds(latency.p50) : "–", latency.count ? seconds(latency.p99) : "–", kept];
  }

  showEndpoints({ endpoints }) {
    this.endpoints.hidden = !endpoints?.length;
    if (!endpoints) return;
    keyed(this.endpointList, endpoints, {
      key: ({ url }) => url,
      make: ({ url }) => {
        const state = element("span", { class: "endpoint" }), more = element("span", { class: "soft small number" });
        const button = element("button", { type: "button", class: "tool" });
        const child = { node: element("li", { "data-endpoint": url }, element("b", {}, url), state, more, button), state, more, button };
        button.addEventListener("click", () => this.do(child.deed, { url }));
        return child;
      },
      show: (child, { state, in_use, latency }) => {
        const [mark, name] = ENDPOINTS[state] || ["○", state];
        child.deed = state === "draining" || state === "drained" ? "restore" : "drain";
        set(child.state, "data-state", state);
        set(child.state, "data-mark", mark);
        write(child.state, name);
        write(child.more, `${in_use} there now${latency === null || latency === undefined ? "" : `, usually ${seconds(latency)}`}`);
        write(child.button, child.deed === "drain" ? "Drain" : "Restore");
      },
    });
  }

  async advise() {
    if (document.hidden) return;
    try {
      const { content } = await ask(`advice?upstream=${encodeURIComponent(this.name)}`), mine = content.advice, shape = JSON.stringify(mine);
      if (this.advised.shape === shape) return;
      this.advised.shape = shape;
      this.advised.replaceChildren(...(mine.length ? mine.map((one) => this.advisedOn(one)) : [element("li", { class: "soft" }, "Nothing to advise: too little was seen, or the numbers fit.")]));
    } catch (error) { this.refused(error); }
  }

  advisedOn({ knob, now, suggested, sure, why, picture }) {
    const time = knob.startsWith("timeout."), unit = time ? seconds : (value) => String(Math.round(value * 10) / 10);
    const same = spelled(now) === spelled(suggested);
    return element("li", {},
      element("p", { class: "number" }, element("b", {}, knob), " ", spelled(now), same ? " fits" : " → ", same ? "" : element("b", {}, spelled(suggested)), " ", element("span", { class: "sure", "data-sure": sure }, `${{ high: "●●●", medium: "●●○", low: "●○○" }[sure] || ""} ${sure === "high" ? "sure" : sure === "medium" ? "fairly sure" : "not sure"}`)),
      element("p", {}, why),
      picture?.histogram?.length ? histogram(picture.histogram, { now, suggested: same ? NaN : suggested, unit, title: `${time ? "Times" : "Concurrency"} observed, against ${knob} now and as suggested` }) : null,
      same ? null : element("button", { type: "button", class: "tool", onclick: () => this.tune.suggest(knob, suggested) }, "Put it into the form"));
  }
}

const endlessly = (value) => value === "inf" ? "∞" : value;

/** A table whose cells are written where they differ. */
function table(heads, caption) {
  const body = element("tbody");
  const node = element("div", { class: "scroll" }, element("table", {}, element("caption", { class: "unseen" }, caption),
    element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)))), body));
  return {
    node,
    show(rows) {
      keyed(body, rows, {
        key: ([name]) => name,
        make: (row) => {
          const cells = row.map((_, at) => element(at ? "td" : "th", at ? { class: "number" } : { scope: "row" }));
          return { node: element("tr", {}, ...cells), cells };
        },
        show: ({ cells }, row) => row.forEach((text, at) => write(cells[at], text)),
      });
    },
  };
}
